"""JSON lines that a store keeps: a head with the version of the format, then one record on each line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from align.errors import StoreError
from align.store.durable import write_atomic

T = TypeVar("T")
Record = Mapping[str, Any]
"""One line as JSON values."""


def save_lines(path: Path, head: Record, records: Iterable[Record]) -> None:
    """Write a head, which has a ``schema_version``, and records atomically."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *records))
    write_atomic(path, text.encode("ascii"))


def load_lines(
    path: Path,
    read: Callable[[Iterator[Record]], T],
    *,
    newest: int,
    what: str,
    remedy: str = "restore it from a backup",
) -> T:
    """Return what ``read`` makes of the lines, the head first.

    Args:
        read: function of the lines; a ValueError, KeyError or TypeError in it means that the line it took
            last is damaged, and a StopIteration that a line is missing.
        newest: newest version of the format that is known here.
        what: name for people of one record.
        remedy: what to do about a damaged file.

    Raises:
        StoreError: a line is damaged, or a newer Keel wrote the file; ``where`` names the line.
    """
    number = 0

    def lines() -> Iterator[Record]:
        nonlocal number
        for number, line in enumerate(path.read_text("ascii", "replace").splitlines(), start=1):
            record = json.loads(line)
            if number == 1 and record["schema_version"] > newest:
                raise StoreError(
                    f"version {record['schema_version']} is newer than {newest}, the newest known here",
                    where=str(path),
                    remedy="update Keel",
                )
            yield record

    try:
        return read(lines())
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise StoreError(
            f"this is no {what} ({error!r})",
            where=f"{path}:{number}",
            cause="the file was edited or damaged",
            remedy=remedy,
        ) from error
