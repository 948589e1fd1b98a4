"""Every method on two ranks, which share the weights or hold an adapter each, against one rank: two
processes over gloo, no Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from align.algorithms.preference.dpo import DPO
from align.algorithms.rows import Batch
from align.config.campaign import AnchorsConfig, PolicyConfig, ReplayConfig, RoundSettings
from align.config.mergers.settings import HMAMergeConfig
from align.config.retention.anchors import AnchorConfig, FollowConfig
from align.learner.learner import Learner
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.references import References
from align.learner.training import Training
from align.retention.mergers.hma import BlockFit
from align.retention.mergers.merge import Merge
from align.retention.methods import RetentionMethods
from tests.unit.align.retention.test_every_method import SETTINGS
from tests.unit.align.retention.trainings import (
    KINDS,
    MIXED,
    NEW,
    PAIRS,
    POLICIES,
    after_a_step,
    begin,
    kinds_of,
    save_models,
)
from tests.unit.tiny import row

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
        first = after_a_step(learner, config)
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
    for policy in POLICIES:
        metrics[f"a moving reference, {policy}"] = moving_reference(ranks, folder, policy)
        metrics[f"a fitted merge, {policy}"] = fitted_merge(ranks, folder, policy)
        metrics[f"rehearsal, {policy}"] = rehearsal(ranks, folder, policy)
    return metrics


def rehearsal(ranks: Ranks, folder: Path, policy: str) -> list[dict[str, float]]:
    """Take steps beside replayed answers and a text, which one rank of two has none of."""
    own = folder / f"{ranks.size}-rehearsal-{policy}"
    answers = (row((1, 2, 3), (4, 5, 6), None, "answers"), row((7, 2), (8,), None, "answers"))
    batch = Batch(rows=(*MIXED.rows, *answers, row((3,), (9, 4, 4), None, "texts")))
    replay = ReplayConfig.model_validate({"answers": {"weight": 0.5}, "pretraining": "texts.jsonl"})

    def begun() -> Training:
        return begin(learner_of_ranks(ranks, folder, policy), replay=replay, lr=1e-2)

    training = begun()
    lines = [training.update(batch), training.update(batch)]
    training.checkpoint(own, 2, identity={})
    lines.append(training.update(batch))
    resumed = begun()
    resumed.restore(own, identity={})
    lines.append(resumed.update(batch))
    keys = ("grad_norm", "rehearsal/answers", "rehearsal/texts")
    return [{key: line[key] for key in keys} for line in lines]


def learner_of_ranks(ranks: Ranks, folder: Path, policy: str) -> Learner:
    return Learner(
        folder / "base",
        PolicyConfig(model="tiny", **POLICIES[policy]),
        folder_of=lambda name: folder / name,
        scratch=folder,
        tolerance=1e9,
        ranks=ranks,
    )


def fitted_merge(ranks: Ranks, folder: Path, policy: str) -> list[dict[str, float]]:
    """Fit a merge of two snapshots, begin with it and take a step; the line comes four times.

    Under an adapter the trained snapshot is one that a step was taken with, and the other is the base.
    """
    learner, run = learner_of_ranks(ranks, folder, policy), "other"
    if policy == "lora":
        run = f"{ranks.size}-trained"
        trained = begin(learner, lr=1e-2)
        for _ in range(2):
            trained.update(Batch(rows=NEW))
        learner.save(folder / run)
        ranks.exchange(None)
        learner = learner_of_ranks(ranks, folder, policy)
    config = HMAMergeConfig(blocks=2, share=0.5, steps=3)
    merge = Merge(config=config, base="base", past=(), anchor="base", runs=(run,), share=0.5)
    shares = learner.compute(BlockFit(merge=merge, config=config, rows=NEW))
    training = learner.begin(
        RoundSettings(anchors=AnchorsConfig(new=(), past=(), general=())),
        References(base="base", parent="base", beginning=replace(merge, block_shares=shares)),
        num_steps=1,
        seed=1,
        penalties=RetentionMethods(),
    )
    line = {"grad_norm": training.update(Batch(rows=NEW))["grad_norm"]}
    return [line | {f"share {block}": share for block, share in enumerate(shares)}] * 4


def moving_reference(ranks: Ranks, folder: Path, policy: str) -> list[dict[str, float]]:
    """Take steps of DPO whose reference moves after each; the last line is from a checkpoint."""
    own = folder / f"{ranks.size}-moving-{policy}"
    anchors = AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=1.0, follow=FollowConfig(share=0.6)),),
        past=(),
        general=(),
    )

    def begun() -> Training:
        learner = learner_of_ranks(ranks, folder, policy)
        return begin(learner, anchors=anchors, algorithm=DPO(pairs="file"), lr=1e-2)

    training = begun()
    lines = [training.update(Batch(rows=PAIRS)), training.update(Batch(rows=PAIRS))]
    training.checkpoint(own, 2, identity={})
    lines.append(training.update(Batch(rows=PAIRS)))
    resumed = begun()
    resumed.restore(own, identity={})
    lines.append(resumed.update(Batch(rows=PAIRS)))
    return [{key: line[key] for key in ("grad_norm", "pairs/margin")} for line in lines]


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


@pytest.mark.slow
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
