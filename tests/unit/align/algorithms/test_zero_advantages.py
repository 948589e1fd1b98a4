"""A batch without signal: what is left of its gradient is that of the KL terms, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.rows import Batch, Row
from align.config.campaign import AnchorConfig, AnchorsConfig
from tests.unit.align.learner.test_learner import ROWS, gradients, make, models, relative, settings

__all__ = ["models"]

ANCHORS = AnchorsConfig(
    new=(AnchorConfig(to="round:first", beta=0.3),),
    past=(AnchorConfig(to="owner", beta=3.0),),
    general=(AnchorConfig(to="base", beta=1.0),),
)


def with_advantage(value: float | None) -> Batch:
    """`ROWS` with this advantage wherever they have one."""
    taught = [r if r.advantage is None else replace(r, advantage=value) for r in ROWS]
    return Batch(rows=tuple(taught))


def kl_gradient(models: dict[str, Path]) -> torch.Tensor:
    """Of the KL terms written out over whole logits, without the learner. The general rows are held to the
    base, where the policy is: nothing pulls there."""
    from transformers import AutoModelForCausalLM

    policy, other = (AutoModelForCausalLM.from_pretrained(models[n]) for n in ("base", "other"))

    def logprobs(model: Any, r: Row) -> torch.Tensor:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        return model(ids).logits[0, -len(r.completion_ids) - 1 : -1].log_softmax(-1)

    def kl(r: Row) -> torch.Tensor:
        own, held = logprobs(policy, r), logprobs(other, r).detach()
        return (own.exp() * (own - held)).sum()

    # 9 tokens of new prompts and 1 of a past one.
    loss = 0.3 * sum(kl(r) for r in ROWS[:3]) / 9 + 3.0 * kl(ROWS[3]) / 1
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gspo", "cispo", "ppo"])
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_without_advantages_the_anchors_alone_pull(
    models: dict[str, Path], tmp_path: Path, name: str, mini_batches: int
) -> None:
    """A second mini-batch computes the ratio to the start, which is then not 1 by definition."""
    spec = settings(anchors=ANCHORS, algorithm=algorithm_from(name).for_round(8))
    spec = spec.model_copy(
        update={"optimizer": spec.optimizer.model_copy(update={"mini_batches": mini_batches})}
    )
    learner = make(models, tmp_path, spec)
    flat = gradients(learner, with_advantage(0.0))
    untaught = gradients(make(models, tmp_path, spec), with_advantage(None))
    assert relative(flat, untaught) < 2e-6
    if mini_batches == 1:
        assert relative(flat, kl_gradient(models)) < 1e-5
        taught = gradients(make(models, tmp_path, spec), Batch(rows=ROWS))
        assert relative(taught, untaught) > 0.01
