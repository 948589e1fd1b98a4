"""Collections: what is needed stays, what goes is named, and no crash leaves a half."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import update

from align.config.retention.anchors import AnchorConfig, AnchorsConfig
from align.config.store import KeepConfig
from align.errors import SnapshotError
from align.gate.evidence import stored_evidence
from align.store.backups.ledger_backups import copy_ledger
from align.store.ledger.lineage import move_production
from align.store.ledger.tables.core import evaluations
from align.store.snapshots.snapshots import Provenance, SnapshotStore
from align.upkeep.collect import BY_HAND, collect, plan_collection, tidy
from align.upkeep.needed import _View, needed_snapshots
from align.upkeep.verify import verify
from rollouts.errors import KeelError
from tests.unit.decided import keel
from tests.unit.ledgers import RAM
from tests.unit.life import Life

LITTLE = KeepConfig(accepted=1, rejected=0)


def silent(*_: object) -> None:
    pass


def check(life: Life) -> None:
    """Everything that can be reached loads, every verdict is drawn again, and what went is named."""
    evidence, store = life.evidence, life.store
    fresh = SnapshotStore(life.config.folder, collections=life.ledger.collections)
    gone = life.ledger.collected()
    for snapshot in needed_snapshots(evidence, LITTLE):
        fresh.open(snapshot)
    for record in life.ledger.snapshots():
        if record.id in gone:
            with pytest.raises(SnapshotError, match="was collected on"):
                fresh.open(record.id)
            assert fresh.manifest(record.id).provenance.round == record.round
        else:
            fresh.open(record.id)
    for record in evidence.committed():
        again, recorded = evidence.recompute(record.name)
        assert again == recorded
    for name in ("gate", "replay"):
        kept = evidence.look_back("nightly-x", name).kept  # type: ignore[arg-type]
        accepted = evidence.accepted("policy")
        assert not {accepted[n] for n in kept} & gone
        assert all(store.paths.replay(accepted[n]).is_file() for n in kept)
    result = verify(evidence, silent)
    assert result.whole and not result.not_recomputable


class Living(RuleBasedStateMachine):
    """Any sequence of rounds, moves of production and collections."""

    @initialize()
    def begin(self) -> None:
        self.scratch = TemporaryDirectory(dir=RAM)
        self.life, self.collected = Life(Path(self.scratch.name)), False
        self.life.round(gain=20)

    @rule(gain=st.sampled_from([0, 25]), loss=st.sampled_from([0, 25]), repairs=st.integers(0, 2))
    def live(self, gain: int, loss: int, repairs: int) -> None:
        self.life.round(gain, loss, repairs)

    @rule(accepted=st.sampled_from([1, 2, "all"]), rejected=st.sampled_from([0, 1, "all"]))
    def gather(self, accepted: int, rejected: int) -> None:
        keep = KeepConfig.model_validate({"accepted": accepted, "rejected": rejected})
        before = plan_collection(self.life.evidence, keep, alone=True)
        done = collect(self.life.evidence, keep, alone=True)
        assert done == before
        self.collected = True

    @precondition(lambda self: self.life.lived > 2)
    @rule(data=st.data(), back=st.booleans())
    def move(self, data: st.DataObject, back: bool) -> None:
        names = [r.name for r in self.life.ledger.rounds() if r.state == "accepted"]
        name = data.draw(st.sampled_from(names))
        # The other way, production already, or collected: nothing is moved.
        with suppress(KeelError):
            move_production(self.life.ledger, name, back=back, reason="t")

    @precondition(lambda self: self.collected)
    @invariant()
    def holds(self) -> None:
        check(self.life)
        self.collected = False

    def teardown(self) -> None:
        self.scratch.cleanup()


TestLiving = Living.TestCase
TestLiving.settings = settings(
    max_examples=4,
    stateful_step_count=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_what_a_night_leaves_is_named_with_its_reason(tmp_path: Path) -> None:
    life = Life(tmp_path)
    assert life.round(gain=20) == "accepted"
    assert life.round(gain=25, repairs=1) == "accepted"
    assert life.round(gain=0) == "rejected"
    records = {(s.round, i): s.id for i, s in enumerate(life.ledger.snapshots())}
    repaired, rejected = records["nightly-1", 2], records["nightly-2", 4]
    planned = plan_collection(life.evidence, BY_HAND, alone=True)
    reasons = {entry.name: entry.reason for entry in planned.garbage}
    assert reasons == {
        repaired: "made on the way: repaired, merged or replaced",
        rejected: "candidate of an attempt that was rejected",
        f"replay/{repaired[:16]}.jsonl": "its snapshot is not accepted, or goes too",
        f"replay/{rejected[:16]}.jsonl": "its snapshot is not accepted, or goes too",
    }
    assert set(planned.needed.values()) == {
        "the base",
        "alias production",
        "later rounds look back on round plain",
    }
    assert life.store.snapshots.open(rejected)  # Nothing was removed yet.
    kept = plan_collection(life.evidence, KeepConfig(rejected=1), alone=True)
    assert [e.name for e in kept.garbage if e.kind == "snapshot"] == [repaired]


def test_nights_beyond_those_kept_go_and_are_looked_at_no_more(tmp_path: Path) -> None:
    life = Life(tmp_path, keep={"accepted": 3, "rejected": 0})
    assert life.round(gain=20) == "accepted"
    for number in range(5):
        assert life.round(gain=20 + number) == "accepted"
        tidy(life.evidence, silent)
    gone = life.ledger.collected()
    reasons = {found.reason for id in gone if (found := life.ledger.collections.find(id))}
    assert reasons == {"accepted, and nothing looks back on it"}
    accepted = life.evidence.accepted("policy")
    left = [name for name, snapshot in accepted.items() if snapshot not in gone]
    assert left == ["plain", "nightly-3", "nightly-4", "nightly-5"]
    for purpose in ("gate", "replay"):
        lookback = life.evidence.look_back("nightly-6", purpose)  # type: ignore[arg-type]
        assert lookback.kept == tuple(left)
        assert lookback.left_out == ("nightly-1", "nightly-2")
    with pytest.raises(SnapshotError, match="nothing looks back on it"):
        move_production(life.ledger, "nightly-1", back=True, reason="a test")
    assert life.ledger.alias("production") == accepted["nightly-5"]


def test_the_best_so_far_stays(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=25, loss=-5)  # The best on the general suite: later nights lose of it.
    for _ in range(3):
        assert life.round(gain=25, loss=1) == "accepted"
    needed = needed_snapshots(life.evidence, LITTLE)
    best = life.evidence.accepted("policy")["nightly-1"]
    assert best in needed
    collect(life.evidence, LITTLE, alone=True)
    assert life.store.snapshots.open(best)


def test_of_equal_results_the_one_that_the_gate_compares_with_stays(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    for _ in range(4):
        assert life.round(gain=25) == "accepted"  # As good as each other on the general suite.
    line = [life.evidence.base, *life.evidence.accepted("policy").values()]
    shared = [e for e in life.ledger.evaluations() if e.suite == "general"]
    assert len({e.mean for e in shared}) == 1
    # Whatever was recorded first, the first on the line competes.
    with life.ledger.database.write() as connection:
        connection.execute(
            update(evaluations)
            .where(evaluations.c.snapshot == line[0])
            .values(recorded="2999-01-01T00:00:00.000+00:00")
        )
    view = _View(life.evidence, LITTLE, ())
    assert {e.snapshot for e in view._best_results(["general"])} == {line[0]}


def test_what_a_template_to_come_names_stays(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for gain in (20, 25, 25, 25, 25):
        assert life.round(gain=gain) == "accepted"
    named = life.evidence.accepted("policy")["nightly-1"]
    assert named not in needed_snapshots(life.evidence, LITTLE)
    (nightly,) = [spec for spec in life.stated.rounds if spec.name == "nightly"]
    anchor = AnchorConfig.model_validate({"to": "round:nightly-1", "beta": 1.0})
    template = nightly.model_copy(update={"anchors": AnchorsConfig(new=(anchor,))})
    needed = needed_snapshots(life.evidence, LITTLE, [template])
    assert needed[named] == "anchors of round nightly"
    unnamed = plan_collection(life.evidence, LITTLE, alone=True)
    assert named in {entry.name for entry in unnamed.garbage}
    gone = collect(life.evidence, LITTLE, alone=True, stated=[template])
    assert named not in {entry.name for entry in gone.garbage}


def test_an_older_backup_beside_a_lost_ledger_learns_what_was_collected_since(
    tmp_path: Path,
) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=0)
    old = tmp_path / "old.db"
    copy_ledger(life.config.folder / "ledger.db", old)
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(life.stated.model_dump(mode="json", exclude_unset=True)))
    assert keel("gc", str(path), "--apply")[0] == 0  # Backs the ledger up.
    gone = life.ledger.collected()
    life.ledger.database.engine.dispose()
    (life.config.folder / "ledger.db").unlink()
    code, output = keel("restore", str(path), "--from", str(old))[:2]
    assert code == 0 and "collected after the backup: 1 snapshot" in output
    assert stored_evidence(life.config).ledger.collected() == gone


def test_a_round_under_way_keeps_what_it_made_and_looks_back_on(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    for _ in range(4):
        life.round(gain=25)
    _, _, name, parent = life.begin()
    run = life.publish(name, parent, "run-1")
    accepted = life.evidence.accepted("policy")
    before = life.evidence.look_back(name, "replay").kept
    collect(life.evidence, LITTLE, alone=True)
    gone = life.ledger.collected()
    assert run.id not in gone
    assert life.evidence.look_back(name, "replay").kept == before
    assert not {accepted[n] for n in before} & gone


@pytest.mark.parametrize("step", ["recorded", "moved", "removed"])
def test_a_crash_is_finished_by_the_next_one(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=0, repairs=2)
    with monkeypatch.context() as patch:
        if step == "recorded":
            patch.setattr(SnapshotStore, "remove", kill)
        elif step == "moved":
            patch.setattr("align.store.snapshots.snapshots.shutil.rmtree", kill)
        else:
            patch.setattr("align.store.store.Store.withdraw", kill)
        with pytest.raises(Killed):
            collect(life.evidence, BY_HAND, alone=True)
    gone = life.ledger.collected()
    assert len(gone) == 3
    life.store.snapshots.clean()  # As the next run does.
    collect(life.evidence, BY_HAND, alone=True)
    check(life)
    assert not plan_collection(life.evidence, BY_HAND, alone=True).garbage
    assert life.store.snapshots.sizes().keys() == {
        s.id for s in life.ledger.snapshots() if s.id not in gone
    }
    assert not life.store.snapshots.staged()


def test_a_runner_is_not_disturbed(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(life.stated.model_dump(mode="json", exclude_unset=True)))
    with life.ledger.lease("keel run"):
        code, _, error = keel("gc", str(path), "--apply")
        assert code == 2 and "keel run is already running on this store" in error
        assert keel("gc", str(path))[0] == 0


def test_what_a_restored_ledger_does_not_know_goes_by_hand_alone(tmp_path: Path) -> None:
    life = Life(tmp_path, keep={"accepted": 1, "rejected": 0})
    life.round(gain=20)

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    origin = Provenance(kind="model", parent=life.evidence.base, round="lost")
    unknown = life.store.snapshots.publish(write, origin).id
    life.round(gain=0)
    tidy(life.evidence, silent)
    assert len(life.ledger.collected()) == 1 and life.store.snapshots.open(unknown)
    planned = plan_collection(life.evidence, BY_HAND, alone=False).garbage
    assert [(e.name, e.reason) for e in planned if e.kind == "snapshot"] == [
        (unknown, "no round recorded it")
    ]
    collect(life.evidence, BY_HAND, alone=True)
    assert unknown not in life.store.snapshots.sizes()


def test_packing_alone_removes_nothing(tmp_path: Path) -> None:
    life = Life(tmp_path, keep={"snapshots": "delta"})
    life.round(gain=20)
    life.round(gain=0, repairs=1)
    left = life.config.folder / "rounds/01-nightly-1/attempt-1/output/log.txt"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("of a person's own program")
    tidy(life.evidence, silent)
    assert left.is_file() and not life.ledger.collected()
    assert len(life.store.snapshots.sizes()) == len(life.ledger.snapshots())


def test_a_ledger_lost_after_a_collection_comes_back_with_it(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=0)
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(life.stated.model_dump(mode="json", exclude_unset=True)))
    assert keel("gc", str(path), "--apply")[0] == 0
    gone = life.ledger.collected()
    assert len(gone) == 1
    life.ledger.database.engine.dispose()
    (life.config.folder / "ledger.db").unlink()
    assert keel("restore", str(path))[0] == 0
    assert stored_evidence(life.config).ledger.collected() == gone
    assert keel("verify", str(path))[0] == 0


def test_a_snapshot_that_is_published_again_is_there_again(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    life.round(gain=0)
    (rejected,) = [s for s in life.ledger.snapshots() if s.round == "nightly-1"]
    manifest = life.store.snapshots.manifest(rejected.id)
    collect(life.evidence, BY_HAND, alone=True)
    assert rejected.id in life.ledger.collected()

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"made_by": "nightly-1/candidate"}))

    life.ledger.record_snapshot(life.store.snapshots.publish(write, manifest.provenance))
    assert rejected.id not in life.ledger.collected()
    assert life.store.snapshots.open(rejected.id)


def test_the_copy_behind_a_url_goes_too(tmp_path: Path) -> None:
    far = tmp_path / "far"
    life = Life(
        tmp_path,
        store=f"file://{far}",
        cache=str(tmp_path / "cache"),
        ledger=f"sqlite:///{tmp_path / 'ledger.db'}",
    )
    life.round(gain=20)
    life.round(gain=0)
    (rejected,) = [s.id for s in life.ledger.snapshots() if s.round == "nightly-1"]
    assert (far / "snapshots" / rejected).is_dir()
    collect(life.evidence, BY_HAND, alone=True)
    assert not list((far / "snapshots").glob(f"{rejected}/*"))
    assert not (far / "replay" / f"{rejected[:16]}.jsonl").exists()
    elsewhere = SnapshotStore(
        tmp_path / "other", life.store.snapshots._remote, life.ledger.collections
    )
    with pytest.raises(SnapshotError, match="was collected on"):
        elsewhere.open(rejected)
    assert verify(life.evidence, silent).whole


def test_files_that_nothing_names_go(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(gain=20)
    store = life.config.folder
    dead = store / "rounds/00-plain/attempt-7/critic"
    loose = {
        f"evaluations/{'0' * 16}/general-00000000.parquet",
        "evaluations/.x.parquet." + 32 * "a",
        "rounds/00-plain/attempt-7/critic/model.safetensors",
    }
    metrics = store / "rounds/00-plain/attempt-7/metrics.jsonl"
    for name in (*loose, metrics.relative_to(store).as_posix()):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("x")
    (store / "adapters-dead").mkdir()
    (store / "staging" / "half").mkdir(parents=True)
    planned = plan_collection(life.evidence, BY_HAND, alone=False)
    assert {e.name for e in planned.garbage} == {n for n in loose if ".x." not in n}
    done = collect(life.evidence, BY_HAND, alone=True)
    assert {e.name for e in done.garbage} == {*loose, "adapters-dead", "staging/half"}
    assert metrics.is_file() and not dead.exists()
    assert not any((store / name).exists() for name in (*loose, "adapters-dead", "staging/half"))
