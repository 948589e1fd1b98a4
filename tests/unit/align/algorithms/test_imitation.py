"""SFT, continual pre-training and rejection sampling: what is repeated, and the mean it is part of."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import Algorithm, algorithm_from
from align.algorithms.imitation.pretrain import Pretrain
from align.algorithms.imitation.rft import RFT
from align.algorithms.imitation.sft import SFT
from align.algorithms.outputs import Outputs
from align.algorithms.rows import DATA, Batch, Row, Totals
from align.config.campaign import AnchorConfig, AnchorsConfig, OptimizerConfig, SamplingConfig
from align.learner.batching import build_batch, to_tensors
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.align.learner.test_learner import gradients, make, settings
from tests.unit.tiny import row, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def demonstration(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Row:
    return replace(row(prompt, completion), sampler_logprobs_T=(), policy=DATA)


DEMONSTRATIONS = (
    demonstration((1, 2, 3), (4, 5)),
    demonstration((7,), (8, 9, 10)),
    demonstration((3, 4), (5, 6, 7, 8)),
)


def said(probs_NV: list[list[float]], targets_N: list[int], temperature: float = 1.0) -> Outputs:
    """Outputs of a model with these probabilities at temperature 1."""
    return Outputs(
        hidden_ND=torch.tensor(probs_NV).log(),
        head=lambda hidden_ND: hidden_ND,
        targets_N=torch.tensor(targets_N),
        temperature=temperature,
        dtype=torch.float32,
        vocabulary=len(probs_NV[0]),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("algorithm", [SFT(), Pretrain(), RFT()])
def test_loss_by_hand(algorithm: Algorithm, temperature: float) -> None:
    """The second row is held by KL only. Sampling's temperature is not the demonstrations'."""
    micro = to_tensors([row((9,), (0, 2)), row((9,), (1,), None)])
    outputs = said([[0.5, 0.3, 0.2], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], [0, 2, 1], temperature)
    loss, metrics = algorithm.objective(micro, outputs, Totals(tokens=6, sequences=2, units=2))
    assert loss.item() == pytest.approx((log(2) + log(4)) / 6)
    assert metrics["loss/policy"].item() == loss.item()


def test_a_forward_pass_that_teaches_nothing_costs_nothing() -> None:
    micro = to_tensors([row((9,), (1,), None)])
    outputs = said([[0.9, 0.1]], [1])
    loss, metrics = SFT().objective(micro, outputs, Totals(tokens=4, sequences=1, units=1))
    assert (loss.item(), metrics) == (0.0, {})


def test_what_each_learns_from() -> None:
    assert [algorithm_from(name).material for name in ("sft", "pretrain", "rft")] == [
        "demonstrations", "texts", "rollouts",
    ]  # fmt: skip
    assert [algorithm_from(name).needs_rewards for name in ("sft", "pretrain", "rft")] == [
        False, False, True,
    ]  # fmt: skip


def test_an_update_by_the_definition(models: dict[str, Path], tmp_path: Path) -> None:
    """Mean over completion tokens alone, beside a general prompt under KL, at any temperature."""
    from transformers import AutoModelForCausalLM

    anchors = AnchorsConfig(new=(), past=(), general=(AnchorConfig(to="round:first", beta=2.0),))
    sampling = SamplingConfig(temperature=0.5)
    spec = settings(algorithm=SFT(), anchors=anchors, sampling=sampling)
    held = row((5, 6), (7, 8), None, "general")
    found = gradients(make(models, tmp_path, spec), Batch(rows=(*DEMONSTRATIONS, held)))

    policy = AutoModelForCausalLM.from_pretrained(models["base"])
    other = AutoModelForCausalLM.from_pretrained(models["other"])

    def logits_NV(model: Any, r: Row) -> torch.Tensor:
        n = len(r.completion_ids)
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        return model(ids).logits[0, -n - 1 : -1]  # type: ignore[no-any-return]

    likelihood = sum(
        logits_NV(policy, r).log_softmax(-1)[range(len(r.completion_ids)), r.completion_ids].sum()
        for r in DEMONSTRATIONS
    )
    own, anchor = ((logits_NV(m, held) / 0.5).log_softmax(-1) for m in (policy, other))
    kl = (own.exp() * (own - anchor.detach())).sum()
    (-likelihood / 9 + 2.0 * kl / 2).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [SFT(), Pretrain(), RFT()])
def test_split_padding_and_order_do_not_matter(
    models: dict[str, Path], tmp_path: Path, algorithm: Algorithm
) -> None:
    whole = make(models, tmp_path, settings(algorithm=algorithm))
    small = OptimizerConfig(micro_batch_tokens=7)
    split = make(models, tmp_path, settings(algorithm=algorithm, optimizer=small))
    batch = Batch(rows=DEMONSTRATIONS)
    expected = gradients(whole, batch)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradients(split, batch), expected, atol=2e-5, rtol=1e-3)
    backwards = Batch(rows=DEMONSTRATIONS[::-1])
    torch.testing.assert_close(gradients(whole, backwards), expected, atol=2e-5, rtol=1e-3)


def test_demonstrations_become_likelier(models: dict[str, Path], tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=3e-3, epochs=2)
    training = make(models, tmp_path, settings(algorithm=SFT(), optimizer=optimizer))
    rows = list(DEMONSTRATIONS)
    first = training.update(Batch(rows=DEMONSTRATIONS))["loss/policy"]
    for _ in range(4):
        last = training.update(Batch(rows=DEMONSTRATIONS))["loss/policy"]
    own = [value for logprobs in training.learner.completion_logprobs(rows) for value in logprobs]
    assert -sum(own) / 9 < last < 0.7 * first


def completion(*ids: int) -> Completion:
    return Completion(token_ids=ids, logprobs_T=(-1.0,) * len(ids), text="", finish_reason="stop")


def scored(
    completions: list[Completion], values: list[float | None], source: Any = "new"
) -> ScoredGroup:
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id="p", text="p", source=source), prompt_ids=(3,),
            completions_G=tuple(completions), policy="v", seed=0,
        ),
        scores_G=tuple(
            Score(value=v, status="abstained" if v is None else "scored") for v in values
        ),
    )  # fmt: skip


GROUP = scored(
    [completion(1), completion(2), completion(3), completion(2), completion(4),
     Completion.failed("died"), completion(5)],
    [0.5, 1.0, 1.0, 1.0, 0.0, None, None],
)  # fmt: skip
"""Two answers are equal, one rollout failed, one reward abstained."""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [(2,)]),
        ({"keep": 2}, [(2,), (3,)]),
        ({"keep": 9}, [(2,), (3,), (1,), (4,)]),
        ({"keep": 9, "threshold": 0.5}, [(2,), (3,), (1,)]),
        ({"keep": 9, "threshold": 1.0}, [(2,), (3,)]),
        ({"threshold": 1.1}, []),
    ],
)
def test_the_best_are_kept_by_hand(settings: dict[str, Any], kept: list[tuple[int]]) -> None:
    algorithm = RFT(**settings)
    batch = algorithm.rows([GROUP])
    assert [r.completion_ids for r in batch.rows] == kept
    assert {r.advantage for r in batch.rows} <= {1.0}
    assert batch.metrics == {"rft/kept": len(kept), "rft/dropped": 6 - len(kept)}
    assert algorithm.informative(GROUP) == bool(kept)


@given(
    st.lists(st.one_of(st.none(), st.floats(-2, 2)), min_size=1, max_size=8),
    st.integers(1, 9),
    st.one_of(st.none(), st.floats(-2, 2)),
)
def test_nothing_that_is_dropped_is_better(
    values: list[float | None], keep: int, threshold: float | None
) -> None:
    group = scored([completion(i) for i in range(len(values))], values)
    rows = RFT(keep=keep, threshold=threshold).rows([group]).rows
    chosen = {r.completion_ids[0] for r in rows}
    usable = {
        i: v
        for i, v in enumerate(values)
        if v is not None and (threshold is None or v >= threshold)
    }
    assert len(rows) == len(chosen) == min(keep, len(usable))
    assert chosen <= usable.keys()
    dropped = usable.keys() - chosen
    assert not dropped or max(usable[i] for i in dropped) <= min(usable[i] for i in chosen)


def test_a_step_that_keeps_nothing_moves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    algorithm = RFT(threshold=2.0)
    training = make(models, tmp_path, settings(algorithm=algorithm))
    before = [p.detach().clone() for p in training.learner.policy.parameters()]
    metrics = training.update(build_batch([GROUP], algorithm, replay_rewards=False))
    assert metrics["rft/kept"] == 0.0
    assert metrics["parity/max_abs_diff"] == 0.0
    for old, new in zip(before, training.learner.policy.parameters(), strict=True):
        assert torch.equal(old, new)


def test_samples_beside_demonstrations_are_held_and_not_repeated() -> None:
    """Also where rewards of past prompts would teach other algorithms."""
    past = scored([completion(1), Completion.failed("died")], [1.0, None], "past")
    batch = build_batch([past], SFT(), replay_rewards=True, examples=DEMONSTRATIONS)
    assert sorted(str(r.advantage) for r in batch.rows) == ["1.0", "1.0", "1.0", "None"]
    assert batch.totals.tokens == 9
    assert batch.class_tokens["past"] == 1
