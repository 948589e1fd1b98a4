"""Requests to an OpenAI-compatible server: many at a time, each tried again where that may help.

The key is read from the environment at each call and sent in a header; it stands in no message.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from rollouts.errors import RunError, UserError

MAY_PASS = {408, 409, 425, 429}
"""Statuses below 500 that may pass."""
REFUSED = {401, 403, 404}
"""Statuses that every other request would get too."""
LONGEST_PAUSE_S = 60.0
EXCERPT = 300
"""Characters of an error's text that are worth showing."""


class EndpointError(RunError):
    """A request without an answer, after all its tries."""


class EndpointRefusal(UserError):
    """A server that refuses every request of a kind; ``status`` is that of its answer."""

    status: int | None = None


@dataclass(frozen=True, kw_only=True)
class EndpointClient:
    """A server, and how patiently it is asked.

    Raises:
        UserError: the address cannot be used, or the key's variable is not set.
    """

    base_url: str
    """Up to ``/v1``, such as ``http://127.0.0.1:8000/v1``."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    retries: int = 4
    """Tries after the first."""
    backoff_s: float = 0.5
    """Pause before the first retry; it doubles."""
    deadline_s: float = 600.0
    """Seconds that one try may take."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"{self.base_url!r} is no http address",
                remedy="write it up to /v1, as in http://127.0.0.1:8000/v1",
            )
        if url.username or url.password:
            raise UserError(
                "the address holds a password",
                remedy="name an environment variable that holds it with --api-key-env",
            )
        self._key()
        if find_spec("httpx") is None:
            raise UserError(
                "asking an endpoint needs the package httpx, and it is not installed",
                remedy="pip install 'keel-align[rewards]'",
            )

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a GET request; see `post`."""
        return self._asked("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a POST request.

        Raises:
            UserError: the server refuses the key, or knows neither the path nor the model.
            EndpointError: no answer after all tries, or the request is refused.
        """
        return self._asked("POST", path, body)

    @cached_property
    def _http(self) -> Any:
        """Connections that all threads share."""
        import httpx

        # trust_env is off: no proxy and no netrc that the user does not see.
        return httpx.Client(trust_env=False, timeout=self.deadline_s)

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        import httpx

        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        problem, tries = "", 0
        for attempt in range(self.retries + 1):
            wait_s, tries = 0.0, attempt + 1
            try:
                url = f"{self.base_url.rstrip('/')}{path}"
                response = self._http.request(method, url, json=body, headers=headers)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return _mapping(response, path)
                problem = self._refusal(response.status_code, response.text, path)
                if response.status_code < 500 and response.status_code not in MAY_PASS:
                    break
                retry_after = response.headers.get("retry-after", "")
                wait_s = float(retry_after) if retry_after.isdigit() else 0.0
            if attempt < self.retries:
                doubled = self.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
                time.sleep(min(max(doubled, wait_s), LONGEST_PAUSE_S))
        raise EndpointError(f"{self.base_url}{path} gave no answer in {tries} tries", cause=problem)

    def _refusal(self, status: int, text: str, path: str) -> str:
        """Return status and text of an error, without the key that some servers repeat in it."""
        key = self._key()
        excerpt = (text.replace(key, "***") if key else text)[:EXCERPT]
        if status in REFUSED:
            refusal = EndpointRefusal(
                f"the endpoint refuses {path}: status {status}",
                where=self.base_url,
                cause=excerpt or None,
                remedy="check the address (up to /v1), the model's name, and the variable with the key",
            )
            refusal.status = status
            raise refusal
        return f"status {status}: {excerpt}"

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(
                f"the key of the endpoint is missing: the environment has no {self.api_key_env}",
                where=self.base_url,
                remedy=f"export {self.api_key_env}=...",
            )
        return key


def _mapping(response: Any, path: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise EndpointError(
            f"the answer of {path} is no JSON object", cause=str(response.text)[:EXCERPT]
        )
    return answer
