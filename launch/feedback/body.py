"""Bodies of requests, parsed into usable rows and reasons why the rest cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic_core import from_json

from align.data.examples.forms import Unusable
from align.schedule.inbox.numbering import Submission
from align.schedule.inbox.rows import MAX_KEY, MAX_ROW, Feedback, StreamForm

SOURCE = "http"


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyLimits:
    """Limits of one request, and of all of them at once."""

    body_bytes: int = 8 << 20
    held_bytes: int = 64 << 20
    """Bytes of all bodies that have arrived and are not answered."""
    rows: int = 1000
    row_chars: int = MAX_ROW
    """Characters of one row as JSON."""
    body_s: float = 30.0
    """Seconds for a body to arrive."""


class BadRequest(Exception):
    """Error for a request that is refused as a whole."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """Rows of a request, usable and rejected."""

    submission: Submission
    """The usable rows."""
    places: tuple[int, ...]
    """Indices of the usable rows in the request, from 0."""
    rejected: tuple[tuple[int, str], ...]
    """Index and reason of each rejected row."""


def parse(body: bytes, form: StreamForm, limits: BodyLimits, key: str | None) -> Parsed:
    """Read ``{"rows": [...]}``, a list of rows or one row.

    Raises:
        BadRequest: no JSON, no rows, too many, or a key that cannot be one.
    """
    try:
        rows = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(400, f"not valid JSON: {error}") from error
    if isinstance(rows, dict):
        rows = rows["rows"] if rows.keys() == {"rows"} else [rows]
    if not isinstance(rows, list):
        raise BadRequest(400, 'expected {"rows": [...]}, a list of rows, or one row')
    if len(rows) > limits.rows:
        raise BadRequest(413, f"{len(rows)} rows, at most {limits.rows} in one request")
    if not rows:
        raise BadRequest(422, "no rows")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise BadRequest(400, f"Idempotency-Key is not 1 to {MAX_KEY} printable characters")
    usable: list[Feedback] = []
    indices: list[int] = []
    rejected: list[tuple[int, str]] = []
    for index, values in enumerate(rows):
        try:
            if not isinstance(values, dict):
                raise Unusable("not an object")
            usable.append(form.read(values, SOURCE, max_chars=limits.row_chars))
            indices.append(index)
        except Unusable as reason:
            rejected.append((index, str(reason)))
    digest = "" if key is None else hashlib.sha256(form.stream.encode() + b"/" + body).hexdigest()
    submission = Submission(stream=form.stream, rows=tuple(usable), key=key, digest=digest)
    return Parsed(submission=submission, places=tuple(indices), rejected=tuple(rejected))
