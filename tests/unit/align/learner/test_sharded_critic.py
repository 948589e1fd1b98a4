"""PPO's critic over two ranks, in processes over gloo, against one rank."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from align.algorithms.policy_gradient.actor_critic.ppo import PPO, CriticConfig
from align.algorithms.rows import Batch
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.learner import Learner
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

ROWS = (
    row((1, 2, 3), (4, 5), 1.0),
    row((7,), (8, 9, 10), -1.0),
    row((3, 4), (5, 6, 7, 8), 0.5),
    row((5, 6), (7, 8, 9, 3), None, "general"),
)
"""Rows of passes of their own; the last one's has no value to learn."""
POLICIES = {"full": None, "lora": LoraConfig(rank=2)}


def begin(ranks: Ranks, folder: Path, lora: LoraConfig | None) -> Training:
    learner = Learner(
        folder / "base",
        PolicyConfig(model="tiny", lora=lora),
        folder_of=lambda _: folder / "base",
        scratch=folder,
        tolerance=1e9,
        ranks=ranks,
    )
    spec = RoundSettings(
        algorithm=PPO(critic=CriticConfig(lr=1e-2)),
        anchors=AnchorsConfig(new=(), past=(), general=(AnchorConfig(to="base", beta=1.0),)),
        optimizer=OptimizerConfig(lr=1e-3, micro_batch_tokens=8),
    )
    references = References(base="base", parent="base")
    return learner.begin(spec, references, num_steps=4, seed=1, penalties=RetentionMethods())


def steps(ranks: Ranks, folder: Path, name: str) -> dict[str, object]:
    """Take three steps, the third again from a checkpoint; write the critic and one that loads it."""
    own = folder / f"{ranks.size}-{name}"
    training = begin(ranks, folder, POLICIES[name])
    lines = [training.update(Batch(rows=ROWS)) for _ in range(2)]
    training.checkpoint(own / "checkpoint", 2, identity={})
    lines.append(training.update(Batch(rows=ROWS)))
    resumed = begin(ranks, folder, POLICIES[name])
    resumed.restore(own / "checkpoint", identity={})
    again = resumed.update(Batch(rows=ROWS))
    assert training.critic is not None
    written, loaded = own / "critic", own / "loaded"
    written.mkdir(parents=True, exist_ok=True)
    loaded.mkdir(parents=True, exist_ok=True)
    training.critic.save(written)
    ranks.exchange(None)
    fresh = begin(ranks, folder, POLICIES[name]).critic
    assert fresh is not None
    fresh.load(written)
    fresh.save(loaded)
    numbers = sum(tensor.numel() for tensor in training.critic.named_tensors().values())
    return {"lines": lines, "again": again, "numbers": numbers}


def untimed(line: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in line.items() if not key.startswith("time/")}


def a_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    results = {name: steps(Ranks(rank, 2), folder, name) for name in POLICIES}
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_a_critic_out_and_learn_as_one_does(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    expected = {name: steps(SOLO, tmp_path, name) for name in POLICIES}
    multiprocessing.start_processes(  # type: ignore[no-untyped-call,attr-defined]
        a_rank, args=(tmp_path,), nprocs=2, start_method="spawn"
    )
    ranks = [json.loads((tmp_path / f"results-{rank}.json").read_text()) for rank in range(2)]
    keys = ("grad_norm", "critic/grad_norm", "loss/value", "loss/policy")
    for name, alone in expected.items():
        parts = [rank[name]["numbers"] for rank in ranks]
        # All rows of each matrix are dealt out; the head's only row and its bias lie on the first rank.
        assert sum(parts) == alone["numbers"] and parts[0] - parts[1] == 33, name
        both = ranks[0][name]
        assert untimed(both["lines"][2]) == untimed(both["again"]), "a checkpoint is exact"
        for line, other in zip(alone["lines"], both["lines"], strict=True):  # type: ignore[call-overload]
            assert {k: other[k] for k in keys} == {
                k: pytest.approx(line[k], rel=1e-4, abs=1e-4) for k in keys
            }, name
            assert line["critic/grad_norm"] > 0
        written = load_file(tmp_path / f"2-{name}" / "critic" / "critic.safetensors")
        own = load_file(tmp_path / f"1-{name}" / "critic" / "critic.safetensors")
        loaded = load_file(tmp_path / f"2-{name}" / "loaded" / "critic.safetensors")
        assert written.keys() == own.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in written.items())
        for tensor_name, tensor in own.items():
            torch.testing.assert_close(written[tensor_name], tensor, rtol=1e-4, atol=1e-4)
