"""Documents of an index, and the change that a round makes to them, read from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from align.config.retrieval.settings import IndexConfig
from rollouts.errors import UserError, nearest
from rollouts.prompts import content_id
from rollouts.rows import FileRow, read_rows

LONGEST_KEY = 512
"""Most characters of a key; a longer one is a text in the wrong column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedDocument:
    """One text that prompts can be answered from."""

    key: str
    """Name that it is overwritten and forgotten by."""
    text: str
    round: str
    """Round that wrote it last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexChange:
    """Change of an index: first keys are forgotten, then documents are added."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """Text of every document to add, by key."""
    forgotten: tuple[str, ...] = ()
    """Keys to forget."""
    empties: bool = False
    """True if all earlier documents are forgotten."""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False)
    """File and line of every key, for messages."""

    @property
    def digest(self) -> str:
        """Return the sha256 of everything that the change does."""
        content = [self.empties, list(self.forgotten), list(self.texts.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_change(config: IndexConfig) -> IndexChange:
    """Read the change that a round's ``index`` states.

    Raises:
        UserError: a file cannot be read, holds no documents, or has a key twice with different texts.
    """
    texts: dict[str, str | None] = {}
    locations: dict[str, str] = {}
    for source in config.add:
        rows = 0
        for row, key, text in _documents(source, config):
            rows += 1
            if texts.get(key, text) != text:
                raise UserError(
                    f"the key {key!r} stands in the round's documents twice, with different texts",
                    where=row.location,
                    cause=f"the other one is {locations[key]}",
                    remedy="keep one of the two rows, or give them different keys; an earlier round's "
                    "document is overwritten by its key, one of the same round is not",
                )
            texts[key] = text
            locations.setdefault(key, row.location)
        if not rows:
            raise UserError("holds no documents", where=source)
    listed = [] if config.forget == "all" else list(dict.fromkeys(config.forget))
    for key in listed:
        if texts.get(key) is not None:
            raise UserError(
                f"the key {key!r} is forgotten and added in one round",
                where="forget",
                cause=f"the document is {locations[key]}",
                remedy="leave it out of forget: an added document takes the place of the one there",
            )
    emptied = [key for key, text in texts.items() if text is None]
    return IndexChange(
        texts={key: text for key, text in texts.items() if text is not None},
        forgotten=tuple(dict.fromkeys((*listed, *emptied))),
        empties=config.empties,
        locations={**dict.fromkeys(listed, "forget"), **locations},
    )


def check_forgotten(change: IndexChange, known: Iterable[str]) -> None:
    """Refuse to forget a key that no earlier round adds.

    Args:
        known: keys that the index has if every earlier round is accepted.

    Raises:
        UserError: the first such key.
    """
    keys = set(known)
    for key in change.forgotten:
        if key not in keys:
            raise UserError(
                f"no earlier round adds a document with the key {key!r}, so it cannot be forgotten",
                where=change.locations.get(key),
                remedy=f"{nearest(key, sorted(keys))}, or leave it out",
            )


def _documents(source: str, config: IndexConfig) -> Iterator[tuple[FileRow, str, str | None]]:
    """Yield each row of a file with its key and its text; None for a key to forget."""
    has_keys: bool | None = None
    for row in read_rows(source, config.split):
        if config.text not in row.values:
            raise UserError(
                f"no column {config.text!r}",
                where=row.location,
                remedy=f"{nearest(config.text, list(row.values))}; set text of the round's index",
            )
        if has_keys is None:
            has_keys = config.key in row.values
            if not has_keys and config.changed("key"):
                raise UserError(
                    f"no column {config.key!r}",
                    where=row.location,
                    remedy=f"{nearest(config.key, list(row.values))}; set key of the round's index",
                )
        text = _text(row, config.text)
        if has_keys:
            yield row, _key(row, config.key), text
        elif text is not None:
            yield row, content_id(text), text
        else:
            raise UserError(
                f"the document in column {config.text!r} is empty",
                where=row.location,
                remedy="take the row out; a row with a key and an empty text forgets the key",
            )


def _text(row: FileRow, column: str) -> str | None:
    """Return the text of a row; None if it is empty."""
    value = row.values[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise UserError(
            f"column {column!r} holds a {type(value).__name__}, and a document is text",
            where=row.location,
            remedy="write the document as text, or set text of the round's index to its column",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the document is not valid Unicode: {error}", where=row.location
        ) from error
    return value


def _key(row: FileRow, column: str) -> str:
    """Return the key of a row as text."""
    value: Any = row.values.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_KEY:
        shown = "nothing" if value in (None, "") else repr(value)[:60]
        raise UserError(
            f"the key in column {column!r} is {shown}; a key is a text of 1 to {LONGEST_KEY} characters or "
            "a whole number",
            where=row.location,
            remedy="give every document a key, or remove the column: they are then keyed by their texts",
        )
    return value
