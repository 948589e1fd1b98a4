"""Rows of a data file or of a ``datasets`` id, each with the place it came from.

JSON, JSONL and CSV are read with the standard library, parquet with pyarrow, anything else by
Hugging Face ``datasets``. Rows are read lazily and are plain dicts; what is in them is not judged.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rollouts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record of a source."""

    place: str
    """``prompts.jsonl:7`` (the line), or ``prompts.parquet row 7`` where there are no lines."""
    values: dict[str, Any]


def read_rows(source: str, split: str) -> Iterator[Row]:
    """Rows of a file by its suffix, else of the ``split`` of a ``datasets`` id (``id:config``).

    Raises a `UserError` for a missing or unreadable source; the line is named where there is one.
    """
    path = Path(source).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is None and not path.is_file():
        return _datasets(source, split)
    if reader is None:
        known = ", ".join(READERS)
        raise UserError(
            f"cannot read {path.suffix or 'this kind of'} file",
            where=source,
            remedy=f"convert it to one of {known}",
        )
    return _guarded(source, path, reader)


def _guarded(
    source: str, path: Path, reader: Callable[[str, Path], Iterator[Row]]
) -> Iterator[Row]:
    """The reader's rows, with the errors of opening and decoding as messages."""
    try:
        yield from reader(source, path)
    except OSError as error:
        here = f"paths are relative to the current folder, {Path.cwd()}"
        raise UserError(
            f"cannot open the file: {error.strerror or error}", where=source, remedy=here
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error}", where=source, remedy="save it as UTF-8") from error


def _jsonl(source: str, path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{source}:{number}"
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise UserError(
                        f"not valid JSON: {_fault(error)}",
                        where=place,
                        remedy="every line is one JSON object",
                    ) from error
                yield Row(place=place, values=_object(value, place))


def _json(source: str, path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        records = json.loads(text)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"not valid JSON: {_fault(error)}", where=f"{source}{line}") from error
    if not isinstance(records, list):
        raise UserError(
            f"holds a {type(records).__name__}, expected a list of objects", where=source
        )
    for number, record in enumerate(records, start=1):
        place = f"{source} row {number}"
        yield Row(place=place, values=_object(record, place))


def _fault(error: ValueError) -> str:
    """What is wrong with a JSON text: its syntax, or a number too long to be one."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "a number has more digits than can be read"


def _csv(source: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(
        sys.maxsize
    )  # Of the process; how long a row may be is for its reader to say.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            names = list(reader.fieldnames or [])
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"two columns are named {twice[0]!r}", where=f"{source}:1")
            for values in reader:
                place = f"{source}:{reader.line_num}"
                if None in values or None in values.values():
                    raise UserError(
                        f"the row does not have {len(names)} fields as the header does",
                        where=place,
                        remedy="quote fields that hold commas or line breaks",
                    )
                yield Row(place=place, values=dict(values))
        except csv.Error as error:
            raise UserError(
                f"not valid CSV: {error}", where=f"{source}:{reader.reader.line_num}"
            ) from error


def _parquet(source: str, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as stream:
        try:
            batches = pq.ParquetFile(stream).iter_batches()
            records = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, values in enumerate(records, start=1):
                yield Row(place=f"{source} row {number}", values=values)
        except (pa.ArrowException, OSError, ValueError) as error:
            # Arrow reports damaged pages as OSError; text that is no UTF-8 is a ValueError.
            raise UserError(
                f"not a parquet file, or a damaged one: {error}",
                where=source,
                remedy="write it again",
            ) from error


READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _datasets(source: str, split: str) -> Iterator[Row]:
    import datasets  # type: ignore[import-untyped]

    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # datasets and its file systems raise dozens of kinds
        raise UserError(
            f"cannot load the dataset {source!r}, split {split!r}",
            where=source,
            cause=f"{type(error).__name__}: {str(error).strip()}",
            remedy=(
                f"a file needs a suffix of {', '.join(READERS)}; a dataset with several "
                "configurations is written id:config; without a network it has to be in the "
                "Hugging Face cache"
            ),
        ) from error
    for number, values in enumerate(found, start=1):
        yield Row(place=f"{source}[{split}] row {number}", values=dict(values))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f'holds a {type(value).__name__}, expected an object such as {{"prompt": "..."}}',
            where=place,
        )
    return value
