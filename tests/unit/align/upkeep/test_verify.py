"""Verification: a changed byte is named wherever it lies, and the exit code says so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from shutil import rmtree

import pytest

from align.store.snapshots.snapshots import SnapshotStore
from align.upkeep.verify import Verification, verify
from tests.unit.decided import keel
from tests.unit.life import Life


def artifact(life: Life) -> Path:
    record = life.ledger.rounds()[0]
    path = life.store.paths.attempt(record.index, record.name, record.attempt).artifact("ewc")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a Fisher diagonal")
    life.store.files.record([path])
    return path


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A store with two rounds, of which one was rejected."""
    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=0)
    return life


def verified(life: Life) -> Verification:
    return verify(life.evidence, lambda name, total: None)


def result_file(life: Life) -> Path:
    return life.config.folder / life.ledger.evaluations(life.evidence.base)[0].path


def weights(life: Life) -> Path:
    return life.store.paths.snapshot(life.evidence.base) / "config.json"


def replay(life: Life) -> Path:
    return life.store.paths.replay(life.evidence.accepted("policy")["plain"])


def flip(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_store_is_whole(life: Life) -> None:
    result = verified(life)
    assert result.whole and not result.not_recomputable and result.unnamed != ()
    assert (result.snapshots, result.collected, result.unhashed) == (3, 0, 0)
    told: list[tuple[str, int]] = []
    verify(life.evidence, lambda name, total: told.append((name, total)))
    assert len(told) == told[0][1] == result.snapshots + result.files


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("of", [result_file, weights, replay, artifact])
def test_damage_is_named(
    life: Life, of: Callable[[Life], Path], damage: Callable[[Path], None]
) -> None:
    path = of(life)
    path.parent.chmod(0o755)
    damage(path)
    (fault,) = verified(life).faults
    assert path.name.startswith(fault.path.rpartition("/")[2]) or path.name in fault.fault
    assert verified(life).not_recomputable == (["plain", "nightly-1"] if of is result_file else [])


def test_an_artifact_that_rounds_to_come_need_is_missed(life: Life) -> None:
    record = next(r for r in life.ledger.rounds() if r.name == "plain")
    attempt = life.store.paths.attempt(record.index, record.name, record.attempt)
    artifact = attempt.artifacts / "ewc.safetensors"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"x")
    life.store.files.record([artifact])
    assert verified(life).whole
    artifact.unlink()
    (fault,) = verified(life).faults
    assert fault.path == life.store.paths.relative(artifact)
    assert fault.fault == "is missing"


def test_a_folder_that_is_gone_is_missing_and_not_damaged(life: Life) -> None:
    folder = weights(life).parent
    folder.chmod(0o755)
    rmtree(folder)
    (fault,) = verified(life).faults
    assert (fault.path, fault.fault) == (life.store.paths.relative(folder), "is missing")


def test_a_row_that_names_nothing_is_named(life: Life) -> None:
    with closing(sqlite3.connect(life.config.folder / "ledger.db")) as ledger, ledger:
        ledger.execute("PRAGMA foreign_keys = OFF")
        ledger.execute(
            "INSERT INTO evaluations VALUES (?, 'general', 'h', 'evaluations/x', 1, 0.5, '')",
            ("e" * 64,),
        )
    faults = [fault.sentence for fault in verified(life).faults]
    assert any("of evaluations names a row of snapshots that is not there" in f for f in faults)
    assert any("evaluations/x is missing" in f for f in faults)


def test_the_command_says_it_by_its_exit_code(life: Life, tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(life.stated.model_dump(mode="json", exclude_unset=True)))
    code, out, _ = keel("verify", str(path))
    assert code == 0 and "every byte is as it was written" in out
    flip(weights(life))
    code, out, _ = keel("verify", str(path))
    assert code == 1 and "config.json has changed since it was published" in out
    code, out, _ = keel("verify", str(path), "--json")
    assert code == 1 and json.loads(out)["whole"] is False
    code, _, error = keel("verify", str(path), "--set", f"store={tmp_path / 'none'}")
    assert code == 2 and "there is no campaign in this store yet" in error


def test_a_remote_snapshot_is_read_where_it_lies(tmp_path: Path) -> None:
    far = tmp_path / "far"
    life = Life(
        tmp_path,
        store=f"file://{far}",
        cache=str(tmp_path / "cache"),
        ledger=f"sqlite:///{tmp_path / 'ledger.db'}",
    )
    base = life.evidence.base
    empty = SnapshotStore(tmp_path / "empty", life.store.snapshots._remote, life.ledger.collections)
    empty.verify(base)
    flip(far / "snapshots" / base / "config.json")
    with pytest.raises(Exception, match="has changed since it was published"):
        empty.verify(base)
    assert not (tmp_path / "empty" / "snapshots").exists()
