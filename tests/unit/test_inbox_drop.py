"""Files in the drop folder: whole or not at all, put away with a report, and never stored twice."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from align.inbox import drop
from align.inbox.drop import add_file, make_drop, sweep
from align.inbox.inbox import Inbox
from rollouts.errors import UserError
from tests.unit.inboxes import TASTE, opened, pair

FORMS = {"taste": TASTE}


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def dropped(folder: Path) -> tuple[Inbox, Path]:
    _, inbox = opened(folder)
    return inbox, make_drop(folder / "inbox", FORMS) / "taste"


def test_a_file_is_taken_and_put_away(tmp_path: Path) -> None:
    inbox, place = dropped(tmp_path)
    write(place / "night.jsonl", pair(1, user="u"), {"x": 1}, pair(1, user="u"))
    (intake,) = sweep(tmp_path / "inbox", inbox, FORMS)
    assert (intake.stored, intake.quarantined, intake.duplicates) == (1, 1, 1)
    assert intake.reasons == {"night.jsonl:2": "neither a pair nor a rating"}
    assert not list(place.iterdir())
    done = sorted(file.name.partition("-")[2] for file in (tmp_path / "inbox/done/taste").iterdir())
    assert done == ["night.jsonl", "night.jsonl.report.json"]
    report = next((tmp_path / "inbox/done/taste").glob("*.report.json"))
    assert json.loads(report.read_text())["stored"] == 1
    assert [(row.source, row.user) for row in inbox.rows("taste")] == [
        ("night.jsonl:1", "u"),
        ("night.jsonl:2", None),
    ]
    assert sweep(tmp_path / "inbox", inbox, FORMS) == []


def test_parquet_and_files_beside_the_streams(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    inbox, place = dropped(tmp_path)
    pq.write_table(pa.Table.from_pylist([pair(1), pair(2)]), place.parent / "rows.parquet")
    (intake,) = sweep(tmp_path / "inbox", inbox, FORMS)
    assert (intake.stream, intake.stored) == ("taste", 2)


@pytest.mark.parametrize("name", [".rows.jsonl", "rows.jsonl.part", "rows.jsonl.tmp", "notes.md"])
def test_a_file_without_its_final_name_is_left_alone(tmp_path: Path, name: str) -> None:
    inbox, place = dropped(tmp_path)
    write(place / name, pair(1))
    assert sweep(tmp_path / "inbox", inbox, FORMS) == []
    (place / name).rename(place / "rows.jsonl")
    assert sweep(tmp_path / "inbox", inbox, FORMS)[0].stored == 1


@pytest.mark.parametrize("content", ['{"prompt": "a", "cho', "", "[1]\n"])
def test_a_file_that_cannot_be_read_is_stored_in_no_part(tmp_path: Path, content: str) -> None:
    inbox, place = dropped(tmp_path)
    (place / "bad.jsonl").write_text(json.dumps(pair(1)) * bool(content) + "\n" + content)
    (intake,) = sweep(tmp_path / "inbox", inbox, FORMS)
    assert intake.error
    assert inbox.waiting("taste").count == 0
    failed = sorted(file.name for file in (tmp_path / "inbox/failed/taste").iterdir())
    assert len(failed) == 2
    report = json.loads((tmp_path / "inbox/failed/taste" / failed[1]).read_text())
    assert report["error"] == intake.error


def test_a_folder_that_is_no_stream(tmp_path: Path) -> None:
    inbox, place = dropped(tmp_path)
    (place.parent / "tatse").mkdir()
    write(place.parent / "tatse" / "rows.jsonl", pair(1))
    (intake,) = sweep(tmp_path / "inbox", inbox, FORMS)
    assert "did you mean 'taste'" in (intake.error or "")
    assert len(list((tmp_path / "inbox/failed/tatse").iterdir())) == 2


def test_a_crash_before_a_file_is_put_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, place = dropped(tmp_path)
    write(place / "rows.jsonl", pair(1), pair(2))

    def crash(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(drop, "_put_away", crash)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path / "inbox", inbox, FORMS)
    (intake,) = sweep(tmp_path / "inbox", inbox, FORMS)
    assert (intake.stored, intake.duplicates) == (0, 2)
    assert inbox.waiting("taste").count == 2


def test_one_process_sweeps_at_a_time(tmp_path: Path) -> None:
    inbox, place = dropped(tmp_path)
    write(place / "rows.jsonl", pair(1))
    with (tmp_path / "inbox" / ".sweep").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(tmp_path / "inbox", inbox, FORMS) == []
    assert len(sweep(tmp_path / "inbox", inbox, FORMS)) == 1


def test_adding_a_file_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    inbox, _ = dropped(tmp_path)
    with pytest.raises(UserError, match="cannot open the file"):
        add_file(inbox, TASTE, tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="holds no rows"):
        add_file(inbox, TASTE, write(tmp_path / "empty.jsonl"))
    deep = tmp_path / "deep.jsonl"
    deep.write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match="nested too deeply"):
        add_file(inbox, TASTE, deep)
