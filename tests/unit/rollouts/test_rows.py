"""Files of rows, kind by kind: what is read as it was written, and what is one message about its place."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rollouts import rows
from rollouts.errors import UserError
from rollouts.rows import read_rows


def read(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(str(path), "train")]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


TWO = [{"prompt": "ä b", "n": 1}, {"prompt": "c", "n": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TWO).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", LINES),
        ("p.ndjson", LINES),
        ("p.JSONL", LINES),
        ("p.jsonl", b"\xef\xbb\xbf" + LINES),
        ("p.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("p.jsonl", LINES.replace(b"\n", b"\n\n \n")),
        ("p.jsonl", LINES.rstrip()),
        ("p.json", json.dumps(TWO).encode()),
        ("p.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("p.json.gz", gzip.compress(json.dumps(TWO).encode(), mtime=0)),
        ("p.jsonl.bz2", bz2.compress(LINES)),
        ("a?b%20c#d e.ü.jsonl", LINES),
    ],
)
def test_one_content_in_many_wrappings(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == TWO


def test_zstandard_is_unpacked(tmp_path: Path) -> None:
    import pyarrow as pa

    with pa.output_stream(str(tmp_path / "p.jsonl.zst"), compression="zstd") as stream:
        stream.write(LINES)
    assert read(tmp_path / "p.jsonl.zst") == TWO


def test_tabs_part_the_columns_of_a_tsv_file(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("prompt\tn\na, b\t1\n")
    assert read(tmp_path / "p.tsv") == [{"prompt": "a, b", "n": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n', ":3: not UTF-8"),
        ("p.csv", b"prompt\na\n\xff\n", ":3: not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}'.encode("utf-16"), ": is UTF-16"),
        ("p.jsonl", b"\x00\x01\x02", ":1: not valid JSON"),
        ("p.jsonl", b'{"a": 1}{"a": 2}', ":1: not valid JSON: Extra data"),
        ("p.json", LINES, ":2: not valid JSON: Extra data at column 1"),
        ("p.json", LINES, "name it .jsonl"),
        ("p.jsonl", b'[{"a": 1}]', ":1: holds a list"),
        ("p.jsonl.gz", gzip.compress(LINES, mtime=0)[:-12], "cannot read the file"),
        ("p.jsonl.gz", LINES, "cannot read the file"),
        ("p.parquet", b"", "not a parquet file"),
        ("p.parquet.gz", b"", "cannot read .gz file"),
        ("p.xlsx", b"PK", "cannot read .xlsx file"),
        ("p", b"a", "cannot read this kind of file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert message.startswith(str(tmp_path / name)) and words in message


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.jsonl.gz"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    assert read(tmp_path / name) == []


def test_a_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    assert "is a folder, not a file" in refused(tmp_path / "p.jsonl")
    assert "No such file" in refused(tmp_path / "q.jsonl")
    os.symlink(tmp_path / "nowhere", tmp_path / "r.csv")
    assert "No such file" in refused(tmp_path / "r.csv")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_an_endless_line_is_an_error_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 1000)
    with (tmp_path / name).open("wb") as file:
        file.write(b'{"prompt": "a"}\n')
        file.truncate(2 << 30)
    assert f"{name}:2: the line has more than 1,000 characters" in refused(tmp_path / name)


def test_a_json_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "p.json").open("wb") as file:
        file.truncate(2 << 30)
    message = refused(tmp_path / "p.json")
    assert "a .json file is read as a whole" in message and "name it .jsonl" in message


VALUES: dict[str, Callable[[Any], Any]] = {
    "not a number": lambda pa: (pa.array([float("nan")]), float("nan")),
    "infinity": lambda pa: (pa.array([float("-inf")]), float("-inf")),
    "half": lambda pa: (pa.array([0.5], pa.float16()), 0.5),
    "bytes": lambda pa: (pa.array([b"\x00\xff"]), b"\x00\xff"),
    "decimal": lambda pa: (pa.array([Decimal("1.10")]), Decimal("1.10")),
    "wide decimal": lambda pa: (
        pa.array([Decimal(10**60)], pa.decimal256(61)),
        Decimal(10**60),
    ),
    "date": lambda pa: (pa.array([date(2024, 1, 2)]), date(2024, 1, 2)),
    "datetime": lambda pa: (pa.array([datetime(2024, 1, 2, 3)]), datetime(2024, 1, 2, 3)),
    "nanosecond type": lambda pa: (
        pa.array([1000], pa.timestamp("ns")),
        datetime(1970, 1, 1, 0, 0, 0, 1),
    ),
    "zone": lambda pa: (
        pa.array([datetime(2024, 1, 2, tzinfo=UTC)], pa.timestamp("us", "UTC")),
        datetime(2024, 1, 2, tzinfo=UTC),
    ),
    "duration": lambda pa: (pa.array([timedelta(days=-1)]), timedelta(days=-1)),
    "struct": lambda pa: (pa.array([{"a": {"b": [1, None]}}]), {"a": {"b": [1, None]}}),
    "map": lambda pa: (
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        [["k", 1]],
    ),
    "category": lambda pa: (pa.array(["x"]).dictionary_encode(), "x"),
    "large string": lambda pa: (pa.array(["x"], pa.large_string()), "x"),
    "unsigned": lambda pa: (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_parquet_column_is_held(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column, value = VALUES[kind](pa)
    pq.write_table(pa.table({"prompt": ["a"], "x": column}), tmp_path / "p.parquet")
    (row,) = read(tmp_path / "p.parquet")
    assert repr(row["x"]) == repr(value)


def test_a_value_that_is_not_held_names_row_column_and_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stamps = pa.array([[0], [0, 1]], pa.list_(pa.timestamp("ns")))
    pq.write_table(pa.table({"prompt": ["a", "b"], "when": stamps}), tmp_path / "p.parquet")
    message = refused(tmp_path / "p.parquet")
    assert "p.parquet row 2: column 'when' holds a time with nanoseconds, at 1" in message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    assert "is a pipe or a device" in refused(tmp_path / "p.jsonl")


def test_a_parquet_date_beyond_all_calendars(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = pa.array([-(10**17)], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a"], "when": when}), tmp_path / "p.parquet")
    assert "holds a date or time that cannot be read" in refused(tmp_path / "p.parquet")


def test_a_parquet_column_that_stands_twice(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")
    assert "two columns are named 'prompt'" in refused(tmp_path / "p.parquet")
