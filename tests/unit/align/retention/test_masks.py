"""HFT, MoFO and MIGU: which weights a step may move, by hand and on a real learner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.campaign import AnchorsConfig, OptimizerConfig, RoundSettings
from align.config.retention.methods import HFTConfig, MIGUConfig, MoFOConfig
from align.learner.references import References
from align.retention.activations import watching
from align.retention.masks.hft import resting
from align.retention.masks.mofo import largest
from align.retention.methods import RetentionMethods
from tests.unit.align.retention.trainings import (
    MIXED,
    NEW,
    POLICIES,
    begin,
    learner_of,
    weights_of,
)


def test_half_of_each_block_rests_and_another_half_in_another_round() -> None:
    """Two of four attention matrices, one or two of three feed-forward ones, one of two norms."""
    attention = [f"model.layers.3.self_attn.{p}_proj.weight" for p in "qkvo"]
    feed = [f"model.layers.3.mlp.{p}_proj.weight" for p in ("up", "gate", "down")]
    norms = [f"model.layers.3.{p}_layernorm.weight" for p in ("input", "post_attention")]
    others = ["model.embed_tokens.weight", "model.norm.weight"]
    choices = [resting([*attention, *feed, *norms, *others], 0.5, seed) for seed in range(40)]
    for choice in choices:
        assert len(choice & set(attention)) == 2 and len(choice & set(norms)) == 1
        assert len(choice & set(feed)) in (1, 2) and not choice & set(others)
    assert len(set(choices)) > 10
    assert sum(len(choice & set(feed)) for choice in choices) == pytest.approx(60, abs=12)


def test_tensors_of_a_module_rest_together() -> None:
    parts = ["q_proj.bias", "q_proj.weight", "k_proj.bias", "k_proj.weight"]
    (choice,) = {resting([f"h.0.attn.{part}" for part in parts], 0.5, seed=3)}
    assert len(choice) == 2 and len({name.rpartition(".")[0] for name in choice}) == 1
    factors = [
        f"base.layers.0.mlp.{p}.lora_{f}.policy.weight" for p in ("up", "down") for f in "AB"
    ]
    choice = resting(factors, 0.5, seed=3)
    assert len(choice) == 2 and len({name.split(".lora_")[0] for name in choice}) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_resting_tensors_do_not_move_even_by_weight_decay(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    learner = learner_of(models, tmp_path, policy)
    spec = RoundSettings(
        anchors=AnchorsConfig(new=(), past=(), general=()),
        retention=(HFTConfig(),),
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1),
    )
    training = learner.begin(
        spec, References(base="base", parent="base"), num_steps=3, seed=7,
        penalties=RetentionMethods(),
    )  # fmt: skip
    start = weights_of(training)
    for _ in range(2):
        training.update(Batch(rows=NEW))
    still = {n for n, w in weights_of(training).items() if torch.equal(w, start[n])}
    assert still == resting(start, 0.5, seed=7)
    assert 0.3 < len(still) / len(start) < 0.7


def test_only_the_largest_momenta_move() -> None:
    momentum = torch.tensor([[0.1, -0.9], [0.5, 0.2], [0.0, 0.3]])
    assert largest(momentum, 0.3).tolist() == [[False, True], [True, False], [False, False]]
    assert largest(momentum, 0.01).sum() == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_of_mofo_moves_its_share_of_every_tensor(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """The step is Adam's own where momentum is large, and nothing elsewhere."""
    steps = {}
    for methods in ((), (MoFOConfig(share=0.25),)):
        training = begin(learner_of(models, tmp_path, policy), *methods)
        start = weights_of(training)
        training.update(Batch(rows=NEW))
        steps[len(methods)] = {n: w - start[n] for n, w in weights_of(training).items()}
        named = training.learner.policy.named_parameters()
        momenta = {n: training.optimizer.state[p]["exp_avg"] for n, p in named.items()}
    for name, step in steps[1].items():
        moves = largest(momenta[name], 0.25)
        assert torch.equal(step, torch.where(moves, steps[0][name], 0.0))
        assert int(moves.sum()) == max(1, round(0.25 * moves.numel()))


@pytest.mark.parametrize("policy", POLICIES)
def test_migu_gates_the_rows_whose_outputs_are_small(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """Gates from the outputs of the model's own modules, in a pass of this test."""
    gradients: list[dict[str, torch.Tensor]] = []
    shares: dict[str, torch.Tensor] = {}

    def see(name: str, _: torch.Tensor, outputs: torch.Tensor) -> None:
        part = (outputs.abs() / outputs.abs().sum(-1, keepdim=True)).sum(0)
        shares[name] = shares.get(name, torch.zeros(())) + part

    for methods in ((), (MIGUConfig(masked=0.75),)):
        learner = learner_of(models, tmp_path, policy)
        training = begin(learner, *methods)
        named = learner.policy.named_parameters()
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(0.1 if "lora_B" in name else 0.0)
        shares.clear()
        with watching(learner.policy.model, see):
            training.update(MIXED)
        gradients.append({n: p.grad for n, p in named.items() if p.grad is not None})
    assert shares
    for name, gradient in gradients[1].items():
        free = gradients[0][name]
        if name not in shares:
            torch.testing.assert_close(gradient, free)
            continue
        moves = largest(shares[name], 0.25)
        torch.testing.assert_close(gradient, free * moves[:, None])
        assert int(moves.sum()) == max(1, round(0.25 * len(moves)))
