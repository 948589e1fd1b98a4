"""Stop texts of requests that name none: vLLM's server has no default for them, so the proxy adds them."""

from __future__ import annotations

import json
from collections.abc import Sequence

PATHS = ("/v1/chat/completions", "/v1/completions")
"""Where a request may say ``stop``."""


def with_stops(method: str, path: str, body: bytes, stops: Sequence[str]) -> bytes:
    """A request's body with these stop texts, unless it names its own or is none that could.

    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a"}', ["b"])
    b'{"prompt": "a", "stop": ["b"]}'
    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a", "stop": null}', ["b"])
    b'{"prompt": "a", "stop": null}'
    """
    if not stops or method != "POST" or path not in PATHS:
        return body
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return body  # The server says what is wrong with it.
    if not isinstance(asked, dict) or "stop" in asked:
        return body
    return json.dumps({**asked, "stop": list(stops)}).encode()
