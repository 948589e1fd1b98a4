"""An OpenAI-compatible chat endpoint that is asked many questions politely.

At most ``concurrency`` questions are under way and ``requests_per_minute`` are sent; what may pass
(no connection, 408, 409, 425, 429, 5xx) is tried again, later each time and not before the server
says; every question ends by its deadline. Answers are kept by the hash of what was asked, so the same
question costs one request. The key is read from the environment at each call and sent in a header; it
stands in no option, message or log.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.library.judge.question import Question
from rewards.signatures.options import missing_package, positive, whole_number
from rollouts.errors import RunError, UserError

if TYPE_CHECKING:
    from httpx import AsyncClient, Response

AGAIN = {408, 409, 425, 429}
"""Statuses below 500 that may pass."""
REFUSED = {401, 403, 404}
"""Statuses that every other question would get too."""
KEPT = 1 << 16
"""Number of answers in the cache; the oldest go first."""
LONGEST_PAUSE_S = 60.0
EXCERPT = 300
"""Characters of an error's text that are worth showing."""


class JudgeError(RunError):
    """Question without an answer; its sample failed."""


@dataclass(slots=True)
class RequestPace:
    """Time of the next request on the monotonic clock, and the jitter of retries."""

    free_at: float = 0.0
    random: Random = field(default_factory=Random)

    async def turn(self, per_minute: float | None) -> None:
        """Wait until a request fits the rate."""
        if per_minute is None:
            return
        now = time.monotonic()
        at = max(now, self.free_at)
        self.free_at = at + 60.0 / per_minute
        await asyncio.sleep(at - now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Address and limits of a judge.

    Raises:
        UserError: an option cannot be used, or the key's variable is not set.
    """

    base_url: str = ""
    """Address up to ``/v1``: ``https://api.openai.com/v1``, ``http://127.0.0.1:8000/v1``."""
    model: str = ""
    """Name of the model at the endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    concurrency: int = 16
    """Questions under way at a time."""
    requests_per_minute: float | None = None
    """Highest rate of requests, tries included; None: no limit."""
    retries: int = 4
    """Number of tries after the first."""
    backoff_s: float = 0.5
    """Seconds of pause before the first retry; it doubles."""
    deadline_s: float = 60.0
    """Seconds for one question with all its tries, from when its turn comes."""
    max_tokens: int = 512
    """Tokens of the longest answer; one that is cut cannot be read, and abstains."""
    structured: bool = True
    """True if the endpoint takes ``response_format: json_schema`` (vLLM and OpenAI do)."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request to add or replace; None leaves one out (``temperature: null``)."""
    cache: OrderedDict[str, str] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )
    """Cached answers by the question's key."""
    pace: RequestPace = field(default_factory=RequestPace, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = urlsplit(str(self.base_url))
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"base_url must be an http address, got {self.base_url!r}",
                remedy="write it up to /v1, as in http://127.0.0.1:8000/v1",
            )
        if url.username or url.password:
            raise UserError(
                "base_url must not hold a password", remedy="name the key's variable in api_key_env"
            )
        if not self.model or not isinstance(self.model, str):
            raise UserError("a judge needs a model", remedy="add options: {model: NAME}")
        whole_number("concurrency", self.concurrency)
        whole_number("retries", self.retries, 0)
        whole_number("max_tokens", self.max_tokens)
        positive("backoff_s", self.backoff_s)
        positive("deadline_s", self.deadline_s)
        if self.requests_per_minute is not None:
            positive("requests_per_minute", self.requests_per_minute)
        _key(self.api_key_env)
        _httpx()

    async def ask(self, questions: Sequence[Question]) -> list[str | JudgeError]:
        """Ask all questions; return the JSON text of each answer, empty where the judge gave none, or
        its error.

        Raises:
            UserError: the endpoint refuses the key, or does not know the model.
        """
        answers: dict[str, str | JudgeError] = {
            q.key: self.cache[q.key] for q in questions if q.key in self.cache
        }
        new = {q.key: q for q in questions if q.key not in answers}
        if new:
            answers |= zip(new, await self._ask_new(list(new.values())), strict=True)
        self.cache.update({key: a for key, a in answers.items() if isinstance(a, str)})
        while len(self.cache) > KEPT:
            self.cache.popitem(last=False)
        return [answers[question.key] for question in questions]

    async def _ask_new(self, questions: Sequence[Question]) -> list[str | JudgeError]:
        """Ask questions of which no answer is kept, some of them side by side."""
        room = asyncio.Semaphore(self.concurrency)
        key = _key(self.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # trust_env is off: no proxy and no netrc that the campaign file does not show. The client
        # lives as long as one batch, since each batch may come with an event loop of its own.
        async with _httpx().AsyncClient(headers=headers, trust_env=False) as client:
            tasks = [asyncio.create_task(self._one(client, room, q)) for q in questions]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _one(
        self, client: AsyncClient, room: asyncio.Semaphore, question: Question
    ) -> str | JudgeError:
        problems: list[str] = []
        async with room:
            try:
                async with asyncio.timeout(self.deadline_s):
                    answer = await self._tries(client, question, problems)
            except TimeoutError:
                problems.append(f"no answer within {self.deadline_s:g} s")
                answer = None
        if answer is not None:
            return answer
        return JudgeError(
            f"the judge at {self.base_url} gave no answer in {len(problems)} tries",
            cause=problems[-1],
        )

    async def _tries(
        self, client: AsyncClient, question: Question, problems: list[str]
    ) -> str | None:
        """Try until one request gets an answer, and return it; add to ``problems`` what stood in the
        way."""
        for attempt in range(self.retries + 1):
            await self.pace.turn(self.requests_per_minute)
            nonce = secrets.token_hex(8)
            wait_s = 0.0
            try:
                response = await client.post(
                    f"{self.base_url.rstrip('/')}/chat/completions",
                    json=self._body(question, nonce),
                    timeout=self.deadline_s,
                )
            except _httpx().TransportError as error:
                problems.append(f"{type(error).__name__}: {error}")
            else:
                if response.is_success:
                    return question.answer(_content(response), nonce, self.structured)
                problems.append(self._refusal(response))
                if response.status_code < 500 and response.status_code not in AGAIN:
                    return None
                retry_after = response.headers.get("retry-after", "")  # Some name a date.
                wait_s = float(retry_after) if retry_after.isdigit() else 0.0
            if attempt < self.retries:
                doubled = self.backoff_s * 2**attempt * self.pace.random.uniform(0.5, 1.0)
                await asyncio.sleep(min(max(doubled, wait_s), LONGEST_PAUSE_S))
        return None

    def _body(self, question: Question, nonce: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": question.messages(nonce, self.structured),
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
        }
        if self.structured:
            form = {"name": "verdict", "strict": True, "schema": dict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {k: v for k, v in {**body, **self.extra_body}.items() if v is not None}

    def _refusal(self, response: Response) -> str:
        """Return status and text of an error, without the key that some servers repeat in it."""
        text = response.text
        key = _key(self.api_key_env)
        message = (text.replace(key, "***") if key else text)[:EXCERPT]
        if response.status_code in REFUSED:
            raise UserError(
                f"the judge at {self.base_url} refuses: status {response.status_code}",
                cause=message,
                remedy=f"check base_url, the model {self.model!r} and the key in api_key_env",
            )
        return f"status {response.status_code}: {message}"


def _content(response: Response) -> str:
    """Return the text of the model's message; empty where the response holds nothing."""
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        return ""


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise UserError(
            f"the judge's key is missing: the environment has no {variable}",
            remedy=f"export {variable}=..., and grant it to the reward's process with isolation: "
            f"{{environment: [{variable}]}}",
        )
    return key


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise missing_package("llm_judge", "httpx", error, "rewards") from error
    return httpx
