"""One row of feedback: a pair or a rating, read exactly as the round that will learn from it reads it.

The formats are those of `align.data.examples.forms`, under the column names of the round's ``data``. A row
that
no round could use is `Unusable`, with a reason; nothing is mended in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from align.config.campaign import CampaignConfig
from align.config.data import INBOX, ExamplesConfig
from align.data.examples.forms import FORMS, Example, Unusable
from rollouts.errors import UserError, nearest

FeedbackKind = Literal["pair", "rating"]
Values = Mapping[str, Any]

USER = "user"
"""Column with the key of the person who sent the row: what a purge names."""
KEY = "key"
"""Column with the sender's own key of the row: sent again, it is stored once."""
MAX_KEY = 256
"""Characters of a user's or a sender's key."""
MAX_ROW = 200_000
"""Characters of a row as JSON, however it comes."""
MAX_KEPT = 4000
"""Characters that are kept of a row that is longer, or cannot be read at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """A row as the inbox keeps it."""

    kind: FeedbackKind | None
    """Kind of feedback; None where the row is neither."""
    payload: str
    """The row's columns without those of user and key, as JSON with sorted names."""
    user: str | None
    key: str | None
    source: str
    """Origin of the row: ``http``, or a file and its line."""
    reason: str | None = None
    """Reason why the row is quarantined; None for a row that rounds may use."""

    hash: str = field(init=False)
    """sha256 of what was said and by whom: the same pair from two people is two votes."""

    def __post_init__(self) -> None:
        content = json.dumps([self.kind, self.payload, self.user])
        object.__setattr__(self, "hash", hashlib.sha256(content.encode()).hexdigest())


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamForm:
    """Form in which the rows of a stream are read."""

    stream: str
    config: ExamplesConfig
    """Names of the columns."""
    kinds: tuple[FeedbackKind, ...]
    """Kinds that the stream's rounds can learn from; a round that rates answers also reads pairs."""

    def read(
        self,
        values: Values,
        source: str,
        *,
        user_column: str = USER,
        max_chars: int = MAX_ROW,
    ) -> Feedback:
        """Read a row that rounds may use.

        Args:
            max_chars: longest row, in characters of its JSON.

        Raises:
            Unusable: it teaches nothing; the message says why.
        """
        user, key = _key(values, user_column), _key(values, KEY)
        columns = {name: v for name, v in values.items() if name not in (user_column, KEY)}
        payload = _payload(columns)
        if len(payload) > max_chars:
            raise Unusable(f"longer than {max_chars} characters")
        self.examples(columns)
        return Feedback(
            kind=self._kind(columns), payload=payload, user=user, key=key, source=source
        )

    def judge(self, values: Values, source: str, *, user_column: str = USER) -> Feedback:
        """Read a row, quarantined where `read` would refuse it."""
        try:
            return self.read(values, source, user_column=user_column)
        except Unusable as reason:
            return _quarantined(values, source, user_column, str(reason))

    def examples(self, columns: Values) -> list[Example]:
        """Return the examples that a row teaches."""
        return FORMS["pairs" if self._kind(columns) == "pair" else "ratings"](columns, self.config)

    def _kind(self, columns: Values) -> FeedbackKind:
        kind: FeedbackKind | None = None
        if self.config.chosen in columns or self.config.rejected in columns:
            kind = "pair"
        elif self.config.completion in columns:
            kind = "rating"
        if kind is None:
            raise Unusable("neither a pair nor a rating")
        if kind not in self.kinds:
            raise Unusable(f"a {kind}, and rounds of this stream learn from {self.kinds[0]}s")
        return kind


def stream_forms(config: CampaignConfig) -> dict[str, StreamForm]:
    """Return the streams that a campaign's rounds read, with their form; the first round of one
    decides."""
    forms: dict[str, StreamForm] = {}
    for spec in config.rounds:
        if spec.data is None or spec.data.stream is None:
            continue
        only_pairs = spec.algorithm.material == "pairs"
        form = StreamForm(
            stream=spec.data.stream,
            config=spec.data,
            kinds=("pair",) if only_pairs else ("rating", "pair"),
        )
        forms.setdefault(form.stream, form)
    return forms


def form_of(forms: Mapping[str, StreamForm], stream: str | None) -> StreamForm:
    """Return the form of a stream by name; without one, of the only stream there is."""
    if stream is None and len(forms) == 1:
        return next(iter(forms.values()))
    if stream is None or stream not in forms:
        known = list(forms)
        remedy = nearest(stream or "", known) if known else f"set data to {INBOX}NAME in a round"
        what = "which stream is meant is not said" if stream is None and known else ""
        raise UserError(what or f"no round reads {INBOX}{stream or ''}", remedy=remedy)
    return forms[stream]


def _payload(columns: Values) -> str:
    for name, value in columns.items():
        if not _is_plain(value):
            raise Unusable(f"column {name!r} cannot be kept as JSON")
    try:
        json.dumps(columns, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unusable("not valid Unicode") from error
    return json.dumps(columns, sort_keys=True)


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, bool | int | str):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(part) for name, part in value.items())
    return False


def _key(values: Values, column: str) -> str | None:
    value = values.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(f"{column!r} is not text")
    text = str(value)
    if not text or len(text) > MAX_KEY or not text.isprintable():
        raise Unusable(f"{column!r} is not 1 to {MAX_KEY} printable characters")
    return text


def _quarantined(values: Values, source: str, user_column: str, reason: str) -> Feedback:
    """Make a refused row, with as much of it as can be kept."""
    try:
        user = _key(values, user_column)
    except Unusable:
        user = None
    columns = {name: value for name, value in values.items() if name not in (user_column, KEY)}
    try:
        payload = _payload(columns)
    except Unusable:
        payload = json.dumps({"unreadable": repr(columns)[:MAX_KEPT]})
    if len(payload) > MAX_ROW:
        payload = json.dumps({"beginning": payload[:MAX_KEPT]})
    return Feedback(kind=None, payload=payload, user=user, key=None, source=source, reason=reason)
