"""POST /v1/feedback, GET /v1/stats, GET /healthz. An answer means that the rows are on the disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.numbering import Receipt
from align.schedule.inbox.rows import StreamForm, form_of
from align.schedule.inbox.writer import QueueFull, Writer, WriterClosed
from launch.feedback.body import BadRequest, BodyLimits, Parsed, parse
from launch.feedback.receive import Crowded, Receiver
from launch.feedback.sweeper import Sweeper
from launch.feedback.token import is_bearer
from rollouts.errors import RunError, UserError

RETRY_S = 1
CONFLICT = "its key came with another row before"


class Desk:
    """Handlers of the requests for one campaign: they check the token, the rows and their storage."""

    def __init__(
        self,
        inbox: Inbox,
        forms: Mapping[str, StreamForm],
        token: str,
        *,
        limits: BodyLimits,
        sweeper: Sweeper,
    ) -> None:
        self.inbox, self.forms = inbox, forms
        self._token, self._limits = token, limits
        self._receiver = Receiver(limits)
        self.writer, self.sweeper = Writer(inbox), sweeper
        self._seen: Counter[str] = Counter()

    async def feedback(self, request: Request) -> Response:
        """Store the usable rows of a request and say what is wrong with the others."""
        self._admit(request)
        try:
            form = form_of(self.forms, request.query_params.get("stream"))
        except UserError as error:
            raise BadRequest(404, f"{error.what}; {error.remedy}") from error
        key = request.headers.get("idempotency-key")
        async with self._receiver.body(request) as body:
            parsed = parse(body, form, self._limits, key)
            receipt = Receipt()
            if parsed.submission.rows:
                receipt = await asyncio.wrap_future(self.writer.submit(parsed.submission))
        if receipt.refused:
            raise BadRequest(422, "Idempotency-Key belongs to another request")
        answer = _answer(parsed, receipt)
        counts = {name: answer[name] for name in ("stored", "duplicates")}
        self._seen.update({**counts, "rejected": len(answer["rejected"])})
        useful = any(counts.values())
        headers = {"Idempotent-Replayed": "true"} if receipt.repeated else None
        return _json(answer, 200 if useful else 422, headers)

    async def stats(self, request: Request) -> Response:
        """Answer with the counts of what is stored, and of what came since the server began."""
        self._admit(request)
        counts = await asyncio.to_thread(self.inbox.counts)
        answer = {"streams": counts, "queued": self.writer.queued, "since_start": self._seen}
        return _json(answer)

    async def health(self, request: Request) -> Response:
        """Answer if feedback is taken; the answer says nothing else, so it needs no token."""
        status = "ok" if self.writer.alive else "closing"
        if self.sweeper.failing:
            status = "the drop folder is not read"
        return _json({"status": status}, 200 if status == "ok" else 503)

    def _admit(self, request: Request) -> None:
        if not is_bearer(request.headers.get("authorization"), self._token):
            raise BadRequest(401, "a bearer token is needed")


def make_app(
    inbox: Inbox,
    forms: Mapping[str, StreamForm],
    token: str,
    *,
    folder: Path,
    limits: BodyLimits | None = None,
) -> FastAPI:
    """Make the application, which while it runs also takes what lies in the drop folder.

    Args:
        folder: of the inbox, with ``drop`` in it.
    """
    sweeper = Sweeper(folder, inbox, forms)
    desk = Desk(inbox, forms, token, limits=limits or BodyLimits(), sweeper=sweeper)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with desk.writer:
            sweeping = asyncio.create_task(sweeper.run())
            yield
            sweeping.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # Plain routes: what FastAPI does for parameters and models costs more than storing a pair.
    app.add_route("/v1/feedback", desk.feedback, methods=["POST"])
    app.add_route("/v1/stats", desk.stats, methods=["GET"])
    app.add_route("/healthz", desk.health, methods=["GET"])
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status in (401, 408, 413):
        headers["Connection"] = "close"  # Whatever else is on its way is not read.
    return _json({"error": str(error)}, error.status, headers)


async def _later(request: Request, error: Exception) -> Response:
    headers = {"Retry-After": str(RETRY_S)}
    why = "the rows could not be stored"
    if isinstance(error, QueueFull):
        why = "the queue is full"
    elif isinstance(error, Crowded):
        why = "too much arrives at once"
        headers["Connection"] = "close"
    return _json({"error": f"{why}; try again"}, 503, headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # Nobody is there to read it.


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    BadRequest: _refused,
    ClientDisconnect: _gone,
    Crowded: _later,
    QueueFull: _later,
    WriterClosed: _later,
    RunError: _later,
}


def _answer(parsed: Parsed, receipt: Receipt) -> dict[str, Any]:
    """Make the answer to the sender, which names rows by their index in the request."""
    numbered = list(zip(parsed.places, receipt.outcomes, receipt.numbers, strict=True))
    conflicts = [(index, CONFLICT) for index, outcome, _ in numbered if outcome == "conflict"]
    rejected = sorted([*parsed.rejected, *conflicts])
    return {
        "stream": parsed.submission.stream,
        "stored": receipt.count("stored"),
        "duplicates": receipt.count("duplicate"),
        "numbers": [number for _, _, number in numbered if number is not None],
        "rejected": [{"index": index, "reason": reason} for index, reason in rejected],
    }


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    plain = asdict(content) if hasattr(content, "__dataclass_fields__") else content
    return Response(
        to_json(plain), status_code=status, headers=headers, media_type="application/json"
    )
