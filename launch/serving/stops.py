"""Stop texts for requests that name none: vLLM's server has no default, so the proxy adds them."""

from __future__ import annotations

import json
from collections.abc import Sequence

PATHS = ("/v1/chat/completions", "/v1/completions")
"""Paths of requests that may hold ``stop``."""


def with_stops(method: str, path: str, body: bytes, stops: Sequence[str]) -> bytes:
    """Return a request's body with these stop texts, unless it names its own or takes none.

    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a"}', ["b"])
    b'{"prompt": "a", "stop": ["b"]}'
    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a", "stop": null}', ["b"])
    b'{"prompt": "a", "stop": null}'
    """
    if not stops or method != "POST" or path not in PATHS:
        return body
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body  # The server says what is wrong with it.
    if not isinstance(request, dict) or "stop" in request:
        return body
    return json.dumps({**request, "stop": list(stops)}).encode()
