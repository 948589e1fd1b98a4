"""Trackers: what they are told is what other programs read; one that fails does not stop a round."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.report.trackers import TRACKERS, TrackedObserver, open_tracker
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, campaign, rounds

STEPS = (
    ("00-first.1", 0, {"reward/mean": 0.5, "entropy": 2.0}),
    ("00-first.1", 1, {"reward/mean": 0.75}),
    ("01-second.1", 0, {"reward/mean": 0.25}),
)


class Memory:
    """A tracker that keeps what it is told, and raises from some call on."""

    def __init__(self, calls: float = inf) -> None:
        self.calls, self.closed = calls, False
        self.logged: list[tuple[str, int, Mapping[str, float]]] = []

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        if len(self.logged) >= self.calls:
            raise OSError("the disk is full")
        self.logged.append((run, step, metrics))

    def close(self) -> None:
        self.closed = True
        if self.calls < inf:
            raise OSError("the disk is full")


def log_all(tracker: Any) -> None:
    for run, step, metrics in STEPS:
        tracker.log(run, step, metrics)
    tracker.close()


def test_a_campaign_is_tracked_and_a_broken_tracker_is_left_out(tmp_path: Path) -> None:
    whole, broken, watcher = Memory(), Memory(calls=1), Watcher()
    with TrackedObserver(watcher, [broken, whole]) as observer:
        run_campaign(
            campaign(tmp_path, rounds=rounds({"steps": 2})),
            start_engine=Starter(),
            observer=observer,
        )
    assert [(run, step) for run, step, _ in whole.logged] == [
        ("00-round0.1", 0),
        ("00-round0.1", 1),
        ("00-round0.1", 1),
    ]
    assert "reward/mean" in whole.logged[0][2]
    assert whole.logged[2][2]["gate/accepted"] == 1.0
    assert "gate/general/parent" in whole.logged[2][2]
    assert whole.closed
    assert len(broken.logged) == 1
    assert watcher.steps == [("round0", 0), ("round0", 1)]
    assert set(watcher.verdicts) == {"round0"}
    assert sum("Memory is left out" in note for note in watcher.notes) == 1


def test_only_finite_numbers_are_tracked() -> None:
    memory = Memory()
    TrackedObserver(Watcher(), [memory])._log("run", 3, {"a": nan, "b": inf, "c": 1.0})
    assert memory.logged == [("run", 3, {"c": 1.0})]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in list(sys.modules):
        if module.partition(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_tracker(name, tmp_path, "small")
    assert f"pip install 'keel-align[{name}]'" in str(caught.value)


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        open_tracker("tensorbord", tmp_path, "small")


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_all(open_tracker("tensorboard", tmp_path, "small"))
    found = {}
    for folder in sorted((tmp_path / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["tensors"]:
            points = [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)]
            found[folder.name, tag] = points
    assert found == {
        ("00-first.1", "reward/mean"): [(0, 0.5), (1, 0.75)],
        ("00-first.1", "entropy"): [(0, 2.0)],
        ("01-second.1", "reward/mean"): [(0, 0.25)],
    }


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_mlflow_reads_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    from align.report.trackers.mlflow import MlflowTracker

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri() if kind == "file" else f"sqlite:///{tmp_path / 'mlflow.db'}"
    log_all(MlflowTracker(tmp_path, "small", uri if kind == "file" else None))
    log_all(MlflowTracker(tmp_path, "small", uri))  # The experiment is there already.
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["00-first.1"] * 2 + ["01-second.1"] * 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    first = next(run for run in runs if run.info.run_name == "00-first.1")
    history = client.get_metric_history(first.info.run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.5), (1, 0.75)]


def test_wandb_writes_offline_runs(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    log_all(open_tracker("wandb", tmp_path, "small"))
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert any(b"reward/mean" in file.read_bytes() for file in files)


def test_trackio_reads_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    log_all(open_tracker("trackio", tmp_path, "small"))
    found = {
        (run, row["step"], name): row[name]
        for run in SQLiteStorage.get_runs("small")
        for row in SQLiteStorage.get_logs("small", run)
        for name in row
        if name in ("reward/mean", "entropy")
    }
    assert found == {(run, step, name): v for run, step, m in STEPS for name, v in m.items()}
