"""Rows of a data file or of a ``datasets`` id, each with the place it came from.

JSON, JSONL and CSV are read with the standard library, parquet with pyarrow, anything else by
Hugging Face ``datasets``; pyarrow unpacks ``.gz``, ``.bz2``, ``.zst`` and ``.lz4``. Rows are read lazily
and are plain dicts of the kinds that `rollouts.values` holds; what is in them is not judged.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rollouts.errors import UserError
from rollouts.values import Unholdable, normalised

PATHS_START = (
    "paths in a campaign file start from its folder, those of a command from the current one"
)
"""Likely cause of a path that leads nowhere."""
LONGEST_LINE = 2**26
"""Most characters of a line; a longer one is no row of a text that a model could read."""
LARGEST_JSON = 2**30
"""Most bytes, or unpacked characters, of a ``.json`` file, which is read as a whole."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""Suffix behind that of a text format, and pyarrow's name of its codec."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """One record of a source."""

    location: str
    """``prompts.jsonl:7`` (the line), or ``prompts.parquet row 7`` where there are no lines."""
    values: dict[str, Any]


class _StandsTwice(ValueError):
    """Error for a key that an object of a JSON text has twice."""


def read_rows(source: str, split: str) -> Iterator[FileRow]:
    """Yield the rows of a file by its suffix, else of the ``split`` of a ``datasets`` id
    (``id:config``).

    Raises a `UserError` for a missing or unreadable source, and for a value of a kind that is not kept;
    the line is named where there is one, and the column.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    packing = COMPRESSIONS.get(suffix)
    reader = TEXTS.get(Path(path.stem).suffix.lower()) if packing else READERS.get(suffix)
    if reader is None and not path.is_file():
        return map(_held, _datasets(source, split))
    if reader is None:
        packed = ", ".join(COMPRESSIONS)
        raise UserError(
            f"cannot read {path.suffix or 'this kind of'} file",
            where=source,
            remedy=f"convert it to one of {', '.join(READERS)}; all but .parquet may end in {packed}",
        )
    if path.is_dir():
        raise UserError("is a folder, not a file", where=source, remedy="name a file in it")
    if path.exists() and not path.is_file():
        problem = "is a pipe or a device, and a campaign's files are read more than once"
        raise UserError(problem, where=source, remedy="write its content into a file")
    return map(_held, _guarded(source, path, reader, packing))


def _held(row: FileRow) -> FileRow:
    """Return the row with its values in the kinds that are kept."""
    values = {}
    for column, value in row.values.items():
        try:
            values[column] = normalised(value)
        except (Unholdable, RecursionError) as error:
            kind = error.kind if isinstance(error, Unholdable) else "lists nested too deeply"
            inside = f", at {error.path}" if isinstance(error, Unholdable) and error.path else ""
            raise UserError(
                f"column {column!r} holds {kind}{inside}, which is not kept with a prompt",
                where=row.location,
                remedy="write it as text, numbers, bytes, decimals, dates, lists or mappings with text "
                "keys, or drop the column",
            ) from error
    return FileRow(location=row.location, values=values)


def _guarded(
    source: str,
    path: Path,
    reader: Callable[[str, io.BufferedReader], Iterator[FileRow]],
    packing: str | None,
) -> Iterator[FileRow]:
    """Yield the reader's rows; turn errors of opening and decoding into messages."""
    try:
        with _opened(path, packing) as stream:
            yield from reader(source, stream)
    except FileNotFoundError as error:
        raise UserError(
            f"cannot open the file: {error.strerror or error}",
            where=source,
            cause=f"there is no {path.absolute()}; {PATHS_START}",
            remedy=_file_meant(path) or "correct the path",
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read the file: {error.strerror or error}",
            where=source,
            remedy=f"check that it can be read{' and unpacked whole' if packing else ''}",
        ) from error
    except UnicodeDecodeError as error:
        with _opened(path, packing) as stream:
            where = f"{source}{_undecodable(stream)}"
        raise UserError(f"not UTF-8: {error}", where=where, remedy="save it as UTF-8") from error


def _file_meant(path: Path) -> str | None:
    """Return advice to name the file of nearly this name in the same folder; None if there is none."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return f"did you mean {str(path.with_name(close[0]))!r}?" if close else None


def _opened(path: Path, packing: str | None) -> io.BufferedReader:
    if packing is None:
        return path.open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=packing))


def _undecodable(stream: io.BufferedReader) -> str:
    """Return the line of the first bytes that are not UTF-8, as ``:7``."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return f":{number}"
    return ""


def _text(source: str, stream: io.BufferedReader, newline: str | None = None) -> io.TextIOWrapper:
    """Return the stream as text, without a byte order mark at its beginning."""
    if stream.peek(2)[:2] in UTF_16:
        raise UserError("is UTF-16", where=source, remedy="save it as UTF-8")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _lines(source: str, stream: io.BufferedReader, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a text; an endless one is an error and never fills memory."""
    with _text(source, stream, newline) as text:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), start=1):
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                raise UserError(
                    f"the line has more than {LONGEST_LINE:,} characters",
                    where=f"{source}:{number}",
                    cause="it is no text file, or its lines do not end with line breaks",
                    remedy="write one row a line",
                )
            yield line


def _jsonl(source: str, stream: io.BufferedReader) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(source, stream), start=1):
        if line.strip():
            location = f"{source}:{number}"
            try:
                value = json.loads(line, object_pairs_hook=_object_of)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"not valid JSON: {_fault(error)}",
                    where=location,
                    remedy="every line is one JSON object",
                ) from error
            yield FileRow(location=location, values=_object(value, location))


def _json(source: str, stream: io.BufferedReader) -> Iterator[FileRow]:
    size = os.fstat(stream.fileno()).st_size if stream.seekable() else 0
    with _text(source, stream) as file:
        text = "" if size > LARGEST_JSON else file.read(LARGEST_JSON)
    if size > LARGEST_JSON or len(text) == LARGEST_JSON:
        problem = f"has more than {LARGEST_JSON:,} bytes, and a .json file is read as a whole"
        raise UserError(problem, where=source, remedy="write one object a line and name it .jsonl")
    if not text.strip():
        return
    try:
        records = json.loads(text, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        several = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        raise UserError(
            f"not valid JSON: {_fault(error)}",
            where=f"{source}{line}",
            remedy="if it holds one object a line, name it .jsonl" if several else None,
        ) from error
    if not isinstance(records, list):
        raise UserError(
            f"holds a {type(records).__name__}, expected a list of objects", where=source
        )
    for number, record in enumerate(records, start=1):
        label = f"{source} row {number}"
        yield FileRow(location=label, values=_object(record, label))


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; json itself would silently keep the last of two values."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _StandsTwice(f"the key {twice!r} stands twice in one object")
    return mapping


def _fault(error: ValueError | RecursionError) -> str:
    """Say what is wrong with a JSON text: its syntax, a key, its depth, or a number that is too long."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, _StandsTwice):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has more digits than can be read"


def _csv(source: str, stream: io.BufferedReader, delimiter: str = ",") -> Iterator[FileRow]:
    csv.field_size_limit(LONGEST_LINE)
    lines = _lines(source, stream, newline="")
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
    try:
        names = list(reader.fieldnames or [])
        _check_names(f"{source}:1", names)
        for values in reader:
            location = f"{source}:{reader.line_num}"
            if None in values or None in values.values():
                raise UserError(
                    f"the row does not have {len(names)} fields as the header does",
                    where=location,
                    remedy="quote fields that hold commas or line breaks",
                )
            yield FileRow(location=location, values=dict(values))
    except csv.Error as error:
        raise UserError(
            f"not valid CSV: {error}", where=f"{source}:{reader.reader.line_num}"
        ) from error


def _parquet(source: str, stream: io.BufferedReader) -> Iterator[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        _check_names(source, file.schema_arrow.names)
        records = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
        for number, values in enumerate(records, start=1):
            yield FileRow(location=f"{source} row {number}", values=values)
    except (OverflowError, KeyError) as error:
        # A date before the year 1 or after 9999, or in a time zone that this machine does not know.
        raise UserError(
            f"holds a date or time that cannot be read: {error.args[0] if error.args else error}",
            where=source,
            remedy="write the column as text, or drop it",
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        # Arrow reports damaged pages as OSError; text that is no UTF-8 is a ValueError.
        raise UserError(
            f"not a parquet file, or a damaged one: {error}",
            where=source,
            remedy="write it again",
        ) from error


def _check_names(where: str, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two columns are named {twice[0]!r}", where=where, remedy="rename one")


TEXTS: dict[str, Callable[[str, io.BufferedReader], Iterator[FileRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
}
READERS: dict[str, Callable[[str, io.BufferedReader], Iterator[FileRow]]] = {
    **TEXTS,
    ".parquet": _parquet,
}


def _datasets(source: str, split: str) -> Iterator[FileRow]:
    import datasets  # type: ignore[import-untyped]

    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
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
    for number, values in enumerate(dataset, start=1):
        yield FileRow(location=f"{source}[{split}] row {number}", values=dict(values))


def _object(value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f'holds a {type(value).__name__}, expected an object such as {{"prompt": "..."}}',
            where=label,
        )
    return value
