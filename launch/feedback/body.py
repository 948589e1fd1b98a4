"""From the body of a request to rows: what can be used, and why the rest cannot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from align.examples.forms import Unusable
from align.inbox.deal import Submission
from align.inbox.feedback import MAX_KEY, MAX_ROW, Feedback, StreamForm

SOURCE = "http"


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyLimits:
    """What one request may hold, and all of them at once."""

    body_bytes: int = 8 << 20
    held_bytes: int = 64 << 20
    """Of all bodies that have arrived and are not answered."""
    rows: int = 1000
    row_chars: int = MAX_ROW
    """Of one row as JSON."""
    body_s: float = 30.0
    """Seconds for a body to arrive."""


class BadRequest(Exception):
    """A request that is refused as a whole."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A request's rows by what becomes of them."""

    submission: Submission
    """The usable rows."""
    places: tuple[int, ...]
    """Where each of them stood in the request, from 0."""
    rejected: tuple[tuple[int, str], ...]
    """Place and reason of the others."""


def parse(body: bytes, form: StreamForm, limits: BodyLimits, key: str | None) -> Parsed:
    """Read ``{"rows": [...]}``, a list of rows or one row.

    Raises:
        BadRequest: no JSON, no rows, too many, or a key that cannot be one.
    """
    rows = _rows(body)
    if len(rows) > limits.rows:
        raise BadRequest(413, f"{len(rows)} rows, at most {limits.rows} in one request")
    if not rows:
        raise BadRequest(422, "no rows")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise BadRequest(400, f"Idempotency-Key is not 1 to {MAX_KEY} printable characters")
    usable: list[Feedback] = []
    places: list[int] = []
    rejected: list[tuple[int, str]] = []
    for place, values in enumerate(rows):
        try:
            if not isinstance(values, dict):
                raise Unusable("not an object")
            usable.append(form.read(values, SOURCE, max_chars=limits.row_chars))
            places.append(place)
        except Unusable as reason:
            rejected.append((place, str(reason)))
    digest = "" if key is None else hashlib.sha256(form.stream.encode() + b"/" + body).hexdigest()
    submission = Submission(stream=form.stream, rows=tuple(usable), key=key, digest=digest)
    return Parsed(submission=submission, places=tuple(places), rejected=tuple(rejected))


def _rows(body: bytes) -> list[Any]:
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(400, f"not valid JSON: {error}") from error
    if isinstance(found, dict):
        found = found["rows"] if found.keys() == {"rows"} else [found]
    if not isinstance(found, list):
        raise BadRequest(400, 'expected {"rows": [...]}, a list of rows, or one row')
    return found
