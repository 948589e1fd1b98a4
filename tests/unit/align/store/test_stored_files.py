"""Evidence cannot change unseen: hashes of stored files, and what becomes of files that lose theirs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.replay.buffer import ReplayBuffer
from align.errors import EvidenceError
from align.gate.evidence import Evidence, stored_evidence
from align.report.records.history import detail
from align.round.measurement.damage import IN_TURN, SURVEYED, evidence_notes, turn_of
from align.store import stored_files
from align.store.paths import StorePaths
from align.store.stored_files import StoredFiles
from tests.unit.campaigns import Starter, Watcher, campaign, no_engine, rounds
from tests.unit.ledgers import started


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CampaignConfig:
    """Two rounds that were run on a real model. Tests only read it."""
    config = campaign(tmp_path_factory.mktemp("finished"))
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    return config


@pytest.fixture
def copied(finished: CampaignConfig, tmp_path: Path) -> CampaignConfig:
    """The same campaign with a store that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "store")
    return campaign(tmp_path)


def flip(path: Path) -> None:
    """Turn every value around."""
    table = pq.ParquetFile(path).read()
    column = table.schema.get_field_index("value")
    flipped = [1.0 - value for value in table["value"].to_pylist()]
    pq.write_table(table.set_column(column, table.schema.field(column), [flipped]), path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


HARM: dict[str, Callable[[Path], None]] = {"edited": flip, "cut": cut, "removed": os.remove}


def results_file(evidence: Evidence, suite: str = "second") -> Path:
    candidate = next(r.candidate for r in evidence.ledger.rounds() if r.name == "second")
    record = next(e for e in evidence.ledger.evaluations(candidate) if e.suite == suite)
    return evidence.folder / record.path


# the record


def test_bytes_and_folders_reach_the_disk_before_the_hash_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = started(tmp_path)
    path = tmp_path / "evaluations" / "aa" / "x.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    files = StoredFiles(tmp_path, ledger.database)
    synced: list[tuple[Path, str | None]] = []
    monkeypatch.setattr(stored_files, "sync", lambda p: synced.append((p, files.hash_of(path))))
    files.record([path])
    assert synced[0] == (path, None), "the file first, and no hash is on record yet"
    folders = {path.parent, path.parent.parent, tmp_path}
    assert {p for p, _ in synced[1:]} == folders and {h for _, h in synced} == {None}
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.hash_of(path) == sha256, "of abc, from FIPS 180-2"
    assert files.check(path) == path


def test_the_record_only_grows(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    path = tmp_path / "x.jsonl"
    files = StoredFiles(tmp_path, ledger.database)
    for content in (b"one", b"two"):
        path.write_bytes(content)
        files.record([path], reason=content.decode())
    assert files.hashes()["x.jsonl"].reason == "two"
    for statement in ("UPDATE stored_files SET sha256 = ''", "DELETE FROM stored_files"):
        with pytest.raises(Exception, match="append-only"), ledger.database.write() as connection:
            connection.execute(text(statement))


def test_every_file_that_verdicts_and_rounds_rest_on_has_a_hash(finished: CampaignConfig) -> None:
    hashes = stored_evidence(finished).files.hashes()
    kept = [
        path.relative_to(finished.folder).as_posix()
        for folder in ("evaluations", "replay")
        for path in (finished.folder / folder).rglob("*")
        if path.suffix in (".parquet", ".jsonl")
    ]
    assert len(kept) >= 9 + 2 and set(kept) <= hashes.keys()


# reading what was changed


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("read", ["recompute", "judge", "history"])
def test_a_changed_file_is_named_by_whatever_reads_it(
    copied: CampaignConfig, harm: str, read: str
) -> None:
    evidence = stored_evidence(copied)
    path = results_file(evidence)
    HARM[harm](path)
    with pytest.raises(EvidenceError) as caught:
        if read == "recompute":
            evidence.recompute("second")
        elif read == "history":
            detail(evidence, "second")
        else:
            record = next(
                e for e in evidence.ledger.evaluations() if evidence.folder / e.path == path
            )
            evidence.locate(record.snapshot, record.suite_hash)
    assert caught.value.where == str(path)
    assert "keel run" in (caught.value.remedy or "")


@pytest.mark.parametrize("harm", HARM)
def test_running_again_measures_a_damaged_file_again(copied: CampaignConfig, harm: str) -> None:
    """The same weights and seeds give the same values, so the verdict is the recorded one again."""
    evidence = stored_evidence(copied)
    path = results_file(evidence)
    values = pq.ParquetFile(path).read()["value"].to_pylist()
    HARM[harm](path)
    watcher = Watcher()
    run_campaign(copied, start_engine=Starter(), observer=watcher)
    assert pq.ParquetFile(path).read()["value"].to_pylist() == values
    assert any(path.name in note and "measured again" in note for note in watcher.notes)
    again, recorded = stored_evidence(copied).recompute("second")
    assert again.to_json() == recorded.to_json()
    notes = list(evidence_notes(stored_evidence(copied), recorded))
    assert len(notes) == 1 and "measured again: the file" in notes[0]
    run_campaign(copied, start_engine=no_engine, observer=Watcher())  # Nothing is left to do.


def test_results_of_a_suite_that_is_gone_are_named(copied: CampaignConfig) -> None:
    evidence = stored_evidence(copied)
    path = results_file(evidence)
    with evidence.ledger.database.write() as connection:
        connection.execute(
            text("UPDATE evaluations SET suite_hash = 'other' WHERE path = :path"),
            {"path": path.relative_to(copied.folder).as_posix()},
        )
    flip(path)
    watcher = Watcher()
    run_campaign(copied, start_engine=no_engine, observer=watcher)
    assert any(path.name in note and "restore it from a backup" in note for note in watcher.notes)


# stores older than the record


def forget_hashes(folder: Path) -> None:
    """Make a store what it was before files had hashes."""
    import sqlite3

    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute("DROP TABLE stored_files")


def test_an_old_store_opens_and_its_files_are_recorded_by_the_next_run(
    copied: CampaignConfig,
) -> None:
    forget_hashes(copied.folder)
    again, recorded = stored_evidence(copied).recompute("second")
    assert again.to_json() == recorded.to_json()
    (note,) = evidence_notes(stored_evidence(copied), recorded)
    assert "no hash on record and are not verified" in note
    watcher = Watcher()
    run_campaign(copied, start_engine=no_engine, observer=watcher)
    assert any("their hashes are recorded" in note for note in watcher.notes)
    assert not list(evidence_notes(stored_evidence(copied), recorded))
    flip(results_file(stored_evidence(copied)))
    with pytest.raises(EvidenceError):
        stored_evidence(copied).recompute("second")


def test_an_old_store_does_not_take_over_a_file_that_contradicts_its_ledger(
    copied: CampaignConfig,
) -> None:
    forget_hashes(copied.folder)
    path = results_file(stored_evidence(copied), "general")
    table = pq.ParquetFile(path).read()
    column = table.schema.get_field_index("value")
    zeros = [0.25] * table.num_rows
    pq.write_table(table.set_column(column, table.schema.field(column), [zeros]), path)
    watcher = Watcher()
    run_campaign(copied, start_engine=Starter(), observer=watcher)
    assert any(path.name in note and "its mean is 0.25" in note for note in watcher.notes)
    again, recorded = stored_evidence(copied).recompute("second")
    assert again.to_json() == recorded.to_json()


# replay and checkpoints


def with_a_third(config: CampaignConfig, folder: Path) -> CampaignConfig:
    specs = [spec.model_dump(mode="json") for spec in config.rounds]
    third = {**specs[0], "name": "third", "prompts": "demo://sort?n=60", "steps": 1}
    return campaign(folder, rounds=[*specs, third])


def edit_prompts(path: Path) -> None:
    path.write_text(path.read_text().replace("1", "2"))


@pytest.mark.parametrize("harm", [edit_prompts, os.remove])
def test_prompts_to_replay_are_made_again_from_the_data(
    copied: CampaignConfig, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    accepted = stored_evidence(copied).accepted("policy")
    path = StorePaths(copied.folder).replay(accepted["second"])
    before = path.read_bytes()
    harm(path)
    watcher = Watcher()
    run_campaign(with_a_third(copied, tmp_path), start_engine=Starter(), observer=watcher)
    assert path.read_bytes() == before
    assert any("made again from the data of second" in note for note in watcher.notes)


def test_prompts_that_no_longer_follow_from_the_data_stop_the_round(
    copied: CampaignConfig, tmp_path: Path
) -> None:
    evidence = stored_evidence(copied)
    path = StorePaths(copied.folder).replay(evidence.accepted("policy")["second"])
    entries = ReplayBuffer.load(path).entries
    ReplayBuffer({name: list(prompts)[:-1] for name, prompts in entries.items()}).save(path)
    evidence.files.record([path])  # As if the data had been longer then.
    path.unlink()
    with pytest.raises(EvidenceError, match="is missing") as caught:
        config = with_a_third(copied, tmp_path)
        run_campaign(config, start_engine=Starter(), observer=Watcher())
    assert caught.value.where == str(path) and "backup" in (caught.value.remedy or "")


@pytest.mark.parametrize("changed", [True, False])
def test_a_round_whose_checkpoint_was_changed_starts_over(tmp_path: Path, changed: bool) -> None:
    spec = {"steps": 3, "checkpoint_every": 1, "prompts": "demo://rev?n=60"}
    config = campaign(tmp_path, rounds=rounds(spec))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at=("round0", 1)))
    (manifest,) = config.folder.glob("rounds/00-round0/checkpoint/step-*/checkpoint.json")
    if changed:
        manifest.write_text(manifest.read_text().replace('"skipped": 0', '"skipped": 1'))
    watcher = Watcher()
    run_campaign(config, start_engine=Starter(), observer=watcher)
    assert any("the round starts over" in note for note in watcher.notes) is changed
    assert any("goes on from step 2" in note for note in watcher.notes) is not changed


def test_results_that_no_row_names_are_no_damage(copied: CampaignConfig) -> None:
    """A run that was killed between a file and its row leaves a hash that nothing rests on."""
    evidence = stored_evidence(copied)
    path = results_file(evidence).with_name("other-12345678.parquet")
    path.write_bytes(b"x")
    evidence.files.record([path])
    path.write_bytes(b"y")
    watcher = Watcher()
    run_campaign(copied, start_engine=no_engine, observer=watcher)
    assert not any(path.name in note for note in watcher.notes)


@pytest.mark.parametrize("rows_per_attempt", [0, 5, 20, 100])
def test_all_rows_of_a_large_record_come_up_in_turn(rows_per_attempt: int) -> None:
    begun = 50
    unseen = set(range(1, SURVEYED + 1))
    for attempt in range(begun, begun + 1000):
        first = turn_of(attempt, SURVEYED + rows_per_attempt * (attempt - begun))
        unseen -= set(range(first + 1, first + IN_TURN + 1))
    assert len(unseen) < 0.01 * SURVEYED
