"""Files of JSON lines: what is written is read, and a damaged line or a newer version is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from align.data.json_lines import Record, load_lines, save_lines
from align.errors import StoreError


def numbers(lines: Iterator[Record]) -> list[int]:
    """Read a head and the number of every record."""
    assert next(lines)["name"] == "a"
    return [int(record["n"]) for record in lines]


def loaded(path: Path) -> list[int]:
    return load_lines(path, numbers, newest=2, what="number")


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_saved_is_loaded(tmp_path: Path, version: int) -> None:
    path = tmp_path / "numbers.jsonl"
    save_lines(path, {"schema_version": version, "name": "a"}, ({"n": n} for n in (3, 1, 2)))
    assert loaded(path) == [3, 1, 2]
    assert path.read_text().splitlines()[1:] == ['{"n": 3}', '{"n": 1}', '{"n": 2}']


@pytest.mark.parametrize("line", ['{"n": 1', '{"m": 1}', '{"n": "one"}', "[]", "\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(f'{{"schema_version": 2, "name": "a"}}\n{{"n": 1}}\n{line}\n')
    with pytest.raises(StoreError, match="this is no number") as caught:
        loaded(path)
    assert caught.value.where == f"{path}:3"


def test_a_file_without_a_head_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text("")
    with pytest.raises(StoreError, match="this is no number"):
        loaded(path)


def test_a_newer_version_is_told_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    save_lines(path, {"schema_version": 3}, [])
    with pytest.raises(StoreError, match=r"(?s)version 3 is newer than 2.*update Keel"):
        loaded(path)


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_lines(path, {"schema_version": 2}, [{"n": float("nan")}])
    assert not path.exists()
