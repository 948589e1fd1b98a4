"""Every method on two ranks, which share the weights or hold an adapter each, against one rank: two
processes over gloo, no Ray."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from align.algorithms.rows import Batch
from align.config.campaign import PolicyConfig
from align.learner.learner import Learner
from align.learner.ranks.ranks import SOLO, Ranks
from tests.unit.align.retention.test_every_method import SETTINGS
from tests.unit.align.retention.trainings import KINDS, MIXED, NEW, begin, kinds_of, save_models

DIFFERS = {"mofo"}
"""Methods that treat each rank's part of a tensor by itself."""


def two_rounds(ranks: Ranks, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Run two rounds of every method; return the second's metrics, the last line from a checkpoint."""
    models = {"base": folder / "base"}
    metrics: dict[str, list[dict[str, float]]] = {}
    for name, config in SETTINGS.items():
        learner = Learner(
            models["base"],
            PolicyConfig(model="tiny", **KINDS[kinds_of(config)[0]]),
            folder_of=models.__getitem__,
            scratch=folder,
            tolerance=1e9,
            ranks=ranks,
        )
        own = folder / f"{ranks.size}-{name}"
        first = begin(learner, config)
        first.update(Batch(rows=NEW))
        first.write_artifacts(own, NEW)
        ranks.exchange(None)
        path = own / f"{name}.safetensors"
        artifacts = {name: path} if path.exists() else {}
        training = begin(learner, config, artifacts=artifacts)
        lines = [training.update(MIXED), training.update(MIXED)]
        training.checkpoint(own / "checkpoint", 2, identity={})
        lines.append(training.update(MIXED))
        resumed = begin(learner, config, artifacts=artifacts)
        resumed.restore(own / "checkpoint", identity={})
        lines.append(resumed.update(MIXED))
        metrics[name] = [
            {key: line[key] for key in ("grad_norm", f"retention/{name}") if key in line}
            for line in lines
        ]
    return metrics


def one_of_two(rank: int, folder: Path) -> None:
    """Run one rank; the first writes its metrics."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=300),
    )
    metrics = two_rounds(Ranks(rank, 2), folder)
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def test_two_ranks_are_held_as_one_is(tmp_path: Path) -> None:
    save_models(tmp_path)
    expected = two_rounds(SOLO, tmp_path)
    multiprocessing.start_processes(one_of_two, args=(tmp_path,), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    actual = json.loads((tmp_path / "metrics.json").read_text())
    for name, lines in expected.items():
        assert actual[name][2] == actual[name][3], f"{name}: a checkpoint is gone on with exactly"
        for line, other in zip(lines, actual[name], strict=True):
            loose = 0.1 if name in DIFFERS else 2e-3
            assert other == {k: pytest.approx(v, rel=loose, abs=1e-4) for k, v in line.items()}, (
                name
            )
