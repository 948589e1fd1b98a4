"""Files in the drop folder: whole or not at all, put away with a report, and never stored twice."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from align.schedule.inbox import drop
from align.schedule.inbox.drop import add_file, make_drop, sweep
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import MAX_ROW, StreamForm
from rollouts.errors import RunError, UserError
from tests.unit.inboxes import TASTE, opened, pair, settled

FORMS = {"taste": TASTE}


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return settled(file)


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
    settled(place.parent / "rows.parquet")
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
    settled(place / "bad.jsonl")
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
    for name in ("absent.txt", "owner/absent"):
        with pytest.raises(UserError, match="cannot open the file: there is none"):
            add_file(inbox, TASTE, tmp_path / name)


GOOD = json.dumps(pair(1)).encode() + b"\n"
LONG_NUMBER = b'{"prompt": "x", "chosen": "y", "rejected": "z", "n": ' + b"9" * 5000 + b"}\n"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        (b"a.jsonl", LONG_NUMBER, "more digits than can be read"),
        (b"a.json", b"[" + LONG_NUMBER + b"]", "more digits than can be read"),
        (b"a\xff.jsonl", GOOD, None),
        (b"\xc3\xa4" * 124 + b".jsonl", GOOD, None),
        (b"a\xff.jsonl", b"{", "not valid JSON"),
        (b"a.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
        (b"a.parquet", b"PAR1" + b"x" * 50 + b"PAR1", "a damaged one"),
    ],
)
def test_no_file_stands_in_the_way_of_the_next(
    tmp_path: Path, name: bytes, content: bytes, error: str | None
) -> None:
    inbox, place = dropped(tmp_path)
    odd = place / os.fsdecode(name)
    odd.write_bytes(content)
    os.utime(odd, (1.0, 1.0))
    write(place / "b.jsonl", pair(2))
    found, following = sweep(tmp_path / "inbox", inbox, FORMS)
    assert (error is None) == (found.error is None)
    assert (error or "") in (found.error or "")
    assert (found.stored, following.stored) == (0 if error else 1, 1)
    assert len(found.file.encode()) <= drop.MAX_NAME
    assert found.file.endswith(odd.suffix)
    assert not list(place.iterdir())
    away = tmp_path / "inbox" / ("failed" if error else "done") / "taste"
    assert f"{found.file}.report.json" in [f.name.partition("-")[2] for f in away.iterdir()]


def test_a_file_that_breaks_its_reader_is_put_away_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, place = dropped(tmp_path)
    write(place / "a.jsonl", {"x": 1})
    write(place / "b.jsonl", pair(2))
    judge = StreamForm.judge

    def broken(form: StreamForm, values: Any, *rest: Any, **named: Any) -> Any:
        if "x" in values:
            raise ZeroDivisionError("of the tests")
        return judge(form, values, *rest, **named)

    monkeypatch.setattr(StreamForm, "judge", broken)
    found, following = sweep(tmp_path / "inbox", inbox, FORMS)
    assert (found.error, following.stored) == ("ZeroDivisionError: of the tests", 1)


def test_a_ledger_that_cannot_be_used_is_no_fault_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, place = dropped(tmp_path)
    file = write(place / "a.jsonl", pair(1))

    def full(*given: Any, **named: Any) -> Any:
        raise RunError("the disk is full")

    monkeypatch.setattr(Inbox, "add", full)
    with pytest.raises(RunError, match="the disk is full"):
        sweep(tmp_path / "inbox", inbox, FORMS)
    assert file.exists()


def test_a_file_that_cannot_be_put_away_is_told_and_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, place = dropped(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        write(place / name, pair(ord(name[0])))

    def refuse(source: Any, target: Any) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        found = sweep(tmp_path / "inbox", inbox, FORMS)
    assert [(one.stored, one.error) for one in found] == [
        (1, "cannot be put away: not yours"),
    ] * 2
    assert [one.duplicates for one in sweep(tmp_path / "inbox", inbox, FORMS)] == [1, 1]


def test_a_file_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    inbox, place = dropped(tmp_path)
    file = place / "rows.jsonl"
    file.write_text(json.dumps(pair(1)) + "\n")
    assert sweep(tmp_path / "inbox", inbox, FORMS) == []
    settled(file)
    assert sweep(tmp_path / "inbox", inbox, FORMS)[0].stored == 1


@pytest.mark.parametrize("more", [json.dumps(pair(2)) + "\n", '{"prompt": '])
def test_a_file_that_grows_while_it_is_read_is_not_stored_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    inbox, place = dropped(tmp_path)
    file = write(place / "rows.jsonl", pair(1))
    judge, before = StreamForm.judge, file.read_bytes()

    def grows(form: StreamForm, *given: Any, **named: Any) -> Any:
        file.write_bytes(before + more.encode())
        return judge(form, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(StreamForm, "judge", grows)
        with pytest.raises(UserError, match=r"is still being written|not valid JSON"):
            add_file(inbox, TASTE, file)
        file.write_bytes(before)
        settled(file)
        assert sweep(tmp_path / "inbox", inbox, FORMS) == []
    assert inbox.waiting("taste").count == 0
    assert file.exists()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_row_of_any_way_in_has_the_same_longest_length(tmp_path: Path, name: str) -> None:
    inbox, _ = dropped(tmp_path)
    long = pair(1, chosen="x" * MAX_ROW, user="ann")
    file = write(tmp_path / name, long, pair(2, user="ann"))
    if file.suffix == ".csv":
        rows = [",".join(row.values()) for row in (long, pair(2, user="ann"))]
        file.write_text("\n".join([",".join(long), *rows]))
    intake = add_file(inbox, TASTE, file)
    assert (intake.stored, intake.quarantined) == (1, 1)
    assert f"longer than {MAX_ROW} characters" in intake.reasons.values()
    kept = inbox.rows("taste", state="quarantined")[0]
    assert kept.user == "ann"
    assert len(json.dumps(kept.payload)) < MAX_ROW / 10
