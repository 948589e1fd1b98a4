"""Backups of a ledger and of a store, and what `keel restore` makes of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from align.config.store import KeepConfig
from align.errors import LedgerLost, SnapshotError, StoreBusy, StoreError, UserError
from align.gate.evidence import Evidence, stored_evidence
from align.schedule.inbox.purge import purge
from align.store.backups.ledger_backups import LedgerBackups, back_up, ledger_file
from align.store.backups.lost import read_backup
from align.store.backups.restore import restore_ledger
from align.store.backups.whole import write_backup
from align.store.remote import Remote
from align.store.snapshots.snapshots import Provenance
from align.upkeep.collect import BY_HAND, collect
from align.upkeep.verify import verify
from tests.unit.campaigns import campaign
from tests.unit.life import Life
from tests.unit.stores import BETTER, GOOD, HARMFUL, made, stub, write_steps


def file_of(evidence: Evidence) -> Path:
    file = ledger_file(evidence.config)
    assert file is not None
    return file


def test_the_newest_backups_are_kept_and_are_nobodys(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, ledger_backups=2)
    with evidence.ledger.lease("keel run"):
        for _ in range(4):
            assert back_up(evidence.config) is None
    backups = LedgerBackups(file_of(evidence)).files()
    assert [path.name for path in backups] == ["000003.db", "000004.db"]
    assert {path.stat().st_mode & 0o777 for path in backups} == {0o600}
    with closing(sqlite3.connect(backups[-1])) as copy:
        assert copy.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    assert read_backup(backups[-1]).decided == ("round0",)


def test_no_backups_where_none_are_wanted_and_a_failure_is_a_remark(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, ledger_backups=0)
    assert back_up(evidence.config) is None
    folder = LedgerBackups(file_of(evidence)).folder
    assert not folder.exists()
    folder.write_text("in the way")
    remark = back_up(evidence.config.model_copy(update={"ledger_backups": 1}))
    assert remark is not None
    assert remark.startswith("warning: the ledger was not backed up")


def test_backups_lie_behind_the_url_too(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    remote = Remote(f"file://{tmp_path}/far")
    backups = LedgerBackups(file_of(evidence), remote)
    for _ in range(3):
        backups.write(2)
    assert sorted(remote.versions("ledger-backups")) == [
        "ledger-backups/000002.db",
        "ledger-backups/000003.db",
    ]
    # Another machine has the URL alone.
    elsewhere = LedgerBackups(tmp_path / "elsewhere/ledger.db", remote)
    newest = elsewhere.newest()
    assert newest is not None
    assert newest.name == "000003.db"
    assert read_backup(newest).decided == ("round0",)


def test_a_lost_ledger_comes_back_and_a_whole_one_stays(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, BETTER)
    config, file = evidence.config, file_of(evidence)
    back_up(config)
    with pytest.raises(UserError, match="is whole"):
        restore_ledger(config)
    del evidence
    damaged = file.read_bytes()[:9000]
    file.write_bytes(damaged)
    restored = restore_ledger(config)
    assert restored.decided == ("round0", "round1")
    assert (restored.aside / "ledger.db").read_bytes() == damaged
    assert [r.state for r in stored_evidence(config).ledger.rounds()] == [
        "accepted",
        "rejected",
    ]


def test_the_newest_whole_backup_is_taken(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    config, file = evidence.config, file_of(evidence)
    back_up(config)
    back_up(config)
    newest = LedgerBackups(file).files()[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    del evidence
    file.unlink()
    assert restore_ledger(config).backup.name == "000001.db"
    for backup in LedgerBackups(file).files():
        backup.write_bytes(b"")
    file.unlink()
    with pytest.raises(UserError, match=r"no backup of the ledger that is whole; .* round0"):
        restore_ledger(config)


def test_going_back_says_what_is_lost_and_moves_it_aside(tmp_path: Path) -> None:
    first = made(tmp_path, GOOD, BETTER)
    config, file = first.config, file_of(first)
    saved = tmp_path / "before.db"
    write_backup(first.store, file, saved)
    with closing(sqlite3.connect(saved)) as old, old:
        old.execute("DROP TRIGGER verdicts_are_never_deleted")
        old.execute("DROP TRIGGER alias_moves_are_never_deleted")
        old.execute("DELETE FROM alias_moves WHERE round = 1")
        old.execute("DELETE FROM rounds WHERE name = 'round1' AND attempt > 0")
        lost = "(SELECT id FROM snapshots WHERE round = 'round1')"
        old.execute(f"DELETE FROM evaluations WHERE snapshot IN {lost}")
        old.execute(f"DELETE FROM snapshots WHERE id IN {lost}")
    state, checkpoint = (
        first.ledger.rounds()[1].state,
        config.folder / "rounds/01-round1/checkpoint/x",
    )
    checkpoint.parent.mkdir()
    checkpoint.write_text("of the lost round")
    del first
    restored = restore_ledger(config, saved)
    told = "\n".join(restored.lines())
    assert f"round round1 was {state} after the backup; keel run trains and judges it again" in told
    assert told.count("same weights: 1 snapshot (") == 1
    assert "1 attempt (attempt 1 of round round1)" in told
    assert not (config.folder / "rounds/01-round1/attempt-1").exists()
    assert (restored.aside / "rounds/01-round1/attempt-1/metrics.jsonl").is_file()
    assert (restored.aside / "rounds/01-round1/checkpoint/x").is_file()
    assert (config.folder / "rounds/00-round0/attempt-1/metrics.jsonl").is_file()
    ledger = stored_evidence(config).ledger
    assert [record.state for record in ledger.rounds()] == ["accepted", "planned"]


def test_nothing_is_replaced_by_what_is_no_backup_of_this_campaign(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    config, file = evidence.config, file_of(evidence)
    other = made(tmp_path / "other", GOOD, name="other")
    write_backup(other.store, file_of(other), tmp_path / "other.db")
    (tmp_path / "torn.db").write_bytes((tmp_path / "other.db").read_bytes()[:8192])
    (tmp_path / "folder").mkdir()
    before = file.read_bytes()
    for source, fault in (
        ("other.db", "of the campaign 'other'"),
        ("torn.db", "no ledger that can be restored"),
        ("folder", "no ledger in this folder"),
        ("nowhere.db", "no such backup"),
    ):
        with pytest.raises(UserError, match=fault):
            restore_ledger(config, tmp_path / source)
    assert file.read_bytes() == before
    with evidence.ledger.lease("keel run"), pytest.raises(StoreBusy):
        restore_ledger(config, write_backup(evidence.store, file, tmp_path / "own.db").path)
    assert not list(config.folder.glob("restored-*"))


def test_a_whole_store_comes_back(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, BETTER)
    config, file = evidence.config, file_of(evidence)
    record = evidence.ledger.evaluations()[0]
    written = write_backup(evidence.store, file, tmp_path / "whole")
    assert (written.num_snapshots, written.missing) == (3, ())
    with pytest.raises(UserError, match="something is there already"):
        write_backup(evidence.store, file, tmp_path / "whole")
    snapshot = next((config.folder / "snapshots").glob("*/config.json"))
    snapshot.chmod(0o644)
    snapshot.write_text("{}")
    (config.folder / record.path).unlink()
    broken = write_backup(evidence.store, file, tmp_path / "broken")
    assert sorted(sentence.split()[0] for sentence in broken.missing) == [record.path, "snapshot"]
    del evidence
    file.unlink()
    told = restore_ledger(config, tmp_path / "whole").lost
    assert f"back again: 1 snapshot ({snapshot.parent.name[:12]})" in told
    assert f"back again: 1 file that the ledger has hashes of ({record.path})" in told
    again = stored_evidence(config)
    assert not list(again.faults())
    assert again.store.snapshots.open(snapshot.parent.name).kind == "model"
    kept = next(config.folder.glob(f"restored-*/snapshots/{snapshot.parent.name}/config.json"))
    assert kept.read_text() == "{}"


def test_what_was_collected_is_neither_missed_nor_brought_back(tmp_path: Path) -> None:
    life = Life(tmp_path / "life")
    for gain in (20, 20, 21, 22, 23, 24, 0):
        life.round(gain)
    before = life.ledger.rounds()
    collect(life.evidence, KeepConfig(accepted=1, rejected=0), alone=True)
    gone = life.ledger.collected()
    assert {r.state for r in before if r.candidate in gone} == {"accepted", "rejected"}
    file = file_of(life.evidence)
    written = write_backup(life.store, file, tmp_path / "whole")
    assert (written.missing, written.num_snapshots) == ((), len(life.store.snapshots.sizes()))
    restored = restore_ledger(life.config, tmp_path / "whole")
    assert not [line for line in restored.lost if line.startswith("snapshot")]


def test_a_backup_goes_without_what_was_collected_and_names_what_is_lost(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, HARMFUL)
    accepted, rejected = (record.candidate for record in evidence.ledger.rounds())
    assert accepted and rejected
    replayed = evidence.store.paths.replay(accepted)
    replayed.parent.mkdir()
    replayed.write_text("{}")
    evidence.files.record([replayed])
    file = file_of(evidence)
    write_backup(evidence.store, file, tmp_path / "before.db")
    on_the_way = evidence.store.snapshots.publish(
        lambda folder: stub(folder, "run") and None,
        Provenance(kind="model", parent=accepted, round="round1"),
    )
    evidence.ledger.record_snapshot(on_the_way)
    assert write_backup(evidence.store, file, tmp_path / "all").num_snapshots == 4
    collect(evidence, BY_HAND, alone=True)
    assert write_backup(evidence.store, file, tmp_path / "whole").missing == ()
    # The older ledger knows nothing of the collection.
    told = [*restore_ledger(evidence.config, tmp_path / "before.db").lines()]
    assert f"collected after the backup: 1 snapshot ({rejected[:12]})" in told
    again = stored_evidence(evidence.config)
    assert again.ledger.collected() == {rejected}
    assert verify(again, lambda name, total: None).whole
    replayed.unlink()
    missing = write_backup(again.store, file, tmp_path / "lacking").missing
    assert missing == (f"replay/{replayed.name} is missing",)


def test_a_store_that_is_gone_comes_back_with_its_metrics_and_for_its_user_alone(
    tmp_path: Path,
) -> None:
    evidence = made(tmp_path, GOOD)
    metrics = write_steps(evidence, 0, 1, [{"reward/mean": 0.5}])
    write_backup(evidence.store, file_of(evidence), tmp_path / "whole")
    expected, config = metrics.read_bytes(), evidence.config
    evidence.ledger.database.engine.dispose()
    config.folder.rename(tmp_path / "lost")
    restore_ledger(config, tmp_path / "whole")
    assert metrics.read_bytes() == expected
    assert config.folder.stat().st_mode & 0o777 == 0o700
    assert verify(stored_evidence(config), lambda name, total: None).whole


def test_a_backup_with_a_damaged_snapshot_restores_nothing(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    config, file = evidence.config, file_of(evidence)
    write_backup(evidence.store, file, tmp_path / "whole")
    snapshot = next((tmp_path / "whole/snapshots").glob("*/config.json"))
    snapshot.chmod(0o644)
    snapshot.write_text("{}")
    before = file.read_bytes()
    with pytest.raises(SnapshotError):
        restore_ledger(config, tmp_path / "whole")
    assert file.read_bytes() == before


def test_a_server_is_backed_up_by_its_own_means(tmp_path: Path) -> None:
    config = campaign(tmp_path, ledger="postgresql://keel@127.0.0.1:9/none")
    with pytest.raises(UserError, match="database server") as refused:
        restore_ledger(config)
    assert "pg_restore" in (refused.value.remedy or "")
    assert back_up(config) is None


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("text")
    with pytest.raises(LedgerLost, match="no ledger"):
        read_backup(tmp_path / "x.db")


def test_a_purge_leaves_no_backup_from_before(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    backups = LedgerBackups(file_of(evidence))
    evidence.store.renew_backups()
    assert backups.files() == []
    for _ in range(3):
        back_up(evidence.config)
    purge(evidence.store, {}, "somebody")
    assert [path.name for path in backups.files()] == ["000004.db"]
    with closing(sqlite3.connect(backups.files()[0])) as copy:
        assert copy.execute("SELECT count(*) FROM inbox_purges").fetchone() == (1,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE stored_files SET path = '../../reward.py'", "'../../reward.py'"),
        ("UPDATE evaluations SET path = '/etc/passwd'", "'/etc/passwd'"),
    ],
)
def test_a_backup_that_names_other_files_restores_nothing(
    tmp_path: Path, change: str, named: str
) -> None:
    evidence = made(tmp_path, GOOD)
    config, file = evidence.config, file_of(evidence)
    backup = tmp_path / "whole"
    write_backup(evidence.store, file, backup)
    with closing(sqlite3.connect(backup / "ledger.db")) as ledger:
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        for (trigger,) in ledger.execute(triggers).fetchall():
            ledger.execute(f'DROP TRIGGER "{trigger}"')
        assert ledger.execute(change).rowcount
        ledger.commit()
    before = file.read_bytes()
    for source in (backup, backup / "ledger.db"):
        with pytest.raises(StoreError, match=f"{named} leads out of the store"):
            restore_ledger(config, source)
    assert file.read_bytes() == before and not list(config.folder.glob("restored-*"))


def test_a_link_in_a_backup_brings_no_file_into_the_store(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    write_backup(evidence.store, file_of(evidence), tmp_path / "whole")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "whole/rounds").mkdir(exist_ok=True)
    (tmp_path / "whole/rounds/leak.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="the link points to a file outside the backup"):
        restore_ledger(evidence.config, tmp_path / "whole")
    assert not list(evidence.config.folder.rglob("leak.jsonl"))
