"""DPO by hand, against several anchors, and what must not matter."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import algorithm_from
from align.algorithms.preference.dpo import DPO, LOSSES, SMOOTHINGS
from align.algorithms.preference.preference import PairInputs
from align.algorithms.rows import Batch, Row, Totals, units_of
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.batching import build_batch
from align.learner.learner import Learner
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from rollouts.types import ScoredGroup
from tests.unit.align.algorithms.test_pairs import group
from tests.unit.tiny import row, save_model

BETA = 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: save_model(root / name, seed) for seed, name in enumerate(("base", "other", "third"))
    }


def inputs(*pairs: tuple[float, float, float, float, int, int]) -> PairInputs:
    """Chosen and rejected logprobs, theirs of the reference, and lengths."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)]
    return PairInputs(
        chosen_logprobs_U=columns[0], rejected_logprobs_U=columns[1],
        chosen_reference_U=columns[2], rejected_reference_U=columns[3],
        chosen_tokens_U=columns[4], rejected_tokens_U=columns[5],
    )  # fmt: skip


def pair(chosen: Row, rejected: Row, unit: int) -> tuple[Row, Row]:
    return replace(chosen, advantage=1.0, unit=unit), replace(rejected, advantage=-1.0, unit=unit)


PAIRS = (
    *pair(row((1, 2, 3), (4, 5)), row((1, 2, 3), (6, 7, 8)), 0),
    *pair(row((7,), (8, 9, 10)), row((7,), (3,)), 1),
    *pair(row((3, 4), (5,)), row((3, 4), (5, 6, 7, 8)), 2),
)


def learner_for(
    models: dict[str, Path],
    tmp_path: Path,
    algorithm: DPO,
    anchors: tuple[AnchorConfig, ...] = (AnchorConfig(to="base", beta=1.0),),
    **optimizer: Any,
) -> Training:
    """The policy starts at ``base``; the campaign's base is ``other``."""
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    spec = RoundSettings(
        algorithm=algorithm,
        anchors=AnchorsConfig(new=anchors, past=(), general=()),
        optimizer=OptimizerConfig(**optimizer),
    )
    references = References(base="other", parent="base", rounds={"third": "third"})
    training = learner.begin(spec, references, num_steps=5, seed=0, penalties=RetentionMethods())
    return training


def gradient(training: Training, rows: tuple[Row, ...]) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradient and metrics of one update, before the optimizer moves anything."""
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=rows))
    flat = [p.grad.flatten() for p in training.learner.policy.parameters() if p.grad is not None]
    return torch.cat(flat), metrics


def test_losses_by_hand() -> None:
    h_U = torch.tensor([0.0, 2.0, -4.0], dtype=torch.float64)
    found = {name: loss(h_U, BETA).tolist() for name, loss in LOSSES.items()}
    assert found["sigmoid"] == pytest.approx([log(2), log(1 + exp(-1)), log(1 + exp(2))])
    assert found["ipo"] == pytest.approx([1.0, 1.0, 25.0])
    assert found["hinge"] == pytest.approx([1.0, 0.0, 3.0])


def test_a_huge_margin_overflows_nothing() -> None:
    h_U = torch.tensor([1e4, -1e4], requires_grad=True)
    loss_U = LOSSES["sigmoid"](h_U, 1.0)
    loss_U.sum().backward()
    assert loss_U.tolist() == [0.0, 1e4]
    assert h_U.grad is not None
    assert h_U.grad.tolist() == [0.0, -1.0]


def test_a_step_by_hand() -> None:
    """h is (-5 + 6) - (-7 + 6) = 2 and (-4 + 2) - (-2 + 1) = -1; rewards are half of the ratios."""
    given = inputs((-5.0, -7.0, -6.0, -6.0, 2, 4), (-4.0, -2.0, -2.0, -1.0, 2, 1))
    loss, metrics = DPO(beta=BETA).pair_loss(given, Totals(tokens=9, sequences=4, units=2))
    assert loss.item() == pytest.approx((log(1 + exp(-1)) + log(1 + exp(0.5))) / 2)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "pairs/accuracy": 0.5,
            "pairs/margin": (1.0 - 0.5) / 2,
            "pairs/chosen_reward": (0.5 - 1.0) / 2,
            "pairs/rejected_reward": (-0.5 - 0.5) / 2,
        }
    )


def test_lengths_count_for_ipo_unless_told_otherwise() -> None:
    """Per token, h is 1/2 + 1/4 = 0.75 instead of 2; ipo's margin to reach is 1."""
    given, totals = inputs((-5.0, -7.0, -6.0, -6.0, 2, 4)), Totals(tokens=6, sequences=2, units=1)

    def loss(**fields: Any) -> float:
        return float(DPO(beta=BETA, **fields).pair_loss(given, totals)[0])

    assert loss(loss="ipo") == pytest.approx(0.0625)
    assert loss(loss="ipo", length_normalised=False) == pytest.approx(1.0)
    assert loss(loss="hinge") == pytest.approx(0.0)
    assert loss(loss="hinge", length_normalised=True) == pytest.approx(1 - 0.375)


def test_the_chosen_answers_likelihood_stands_beside_the_loss() -> None:
    """Per token the chosen answers have -5/2 and -4/2 nats."""
    given = inputs((-5.0, -7.0, -6.0, -6.0, 2, 4), (-4.0, -2.0, -2.0, -1.0, 2, 1))
    totals = Totals(tokens=9, sequences=4, units=2)
    plain, beside = (DPO(beta=BETA, sft=sft).pair_loss(given, totals)[0] for sft in (0.0, 0.2))
    assert beside.item() - plain.item() == pytest.approx(0.2 * (2.5 + 2.0) / 2)


def test_smoothing_by_hand() -> None:
    right_U, flipped_U = torch.tensor([1.0]), torch.tensor([3.0])
    assert SMOOTHINGS["conservative"](right_U, flipped_U, 0.25).item() == pytest.approx(1.5)
    assert SMOOTHINGS["robust"](right_U, flipped_U, 0.25).item() == pytest.approx(0.0)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 0.45))
def test_robust_smoothing_is_unbiased(right: float, flipped: float, rate: float) -> None:
    """Averaged over labels that are swapped at the rate, it is the loss of the right label."""
    robust = SMOOTHINGS["robust"]
    r, f = (torch.tensor([x], dtype=torch.float64) for x in (right, flipped))
    expected = (1 - rate) * robust(r, f, rate) + rate * robust(f, r, rate)
    assert expected.item() == pytest.approx(right, abs=1e-6)


def test_the_normaliser_of_several_anchors_cancels() -> None:
    """All answers of at most two tokens over {a, b, end}. The weighted mean of two anchors' logprobs
    and their normalised geometric mixture give every pair the same loss; the mixture is the right
    reference, because KL to it and the weighted KL to the anchors differ by a constant of the prompt."""
    generator = torch.Generator().manual_seed(0)
    end, weights = 2, (0.3, 0.7)
    answers = [(end,), *product((0, 1), (0, 1, end))]
    anchors = [
        {
            prefix: torch.randn(3, generator=generator, dtype=torch.float64).log_softmax(-1)
            for prefix in ((), (0,), (1,))
        }
        for _ in weights
    ]

    def logprob(anchor: dict[Any, torch.Tensor], answer: tuple[int, ...]) -> float:
        return sum(float(anchor[answer[:t]][token]) for t, token in enumerate(answer))

    for anchor in anchors:
        assert sum(exp(logprob(anchor, y)) for y in answers) == pytest.approx(1.0)
    mean = {
        y: sum(w * logprob(a, y) for w, a in zip(weights, anchors, strict=True)) for y in answers
    }
    log_z = log(sum(exp(value) for value in mean.values()))
    mixture = {y: value - log_z for y, value in mean.items()}
    assert log_z < -0.01, "equal anchors prove nothing"

    def margin(reference: dict[Any, float], chosen: Any, rejected: Any) -> float:
        given = inputs((-1.0, -2.0, reference[chosen], reference[rejected], 1, 1))
        return float(DPO().pair_loss(given, Totals(tokens=2, sequences=2, units=1))[0])

    for chosen, rejected in product(answers, answers):
        assert margin(mean, chosen, rejected) == pytest.approx(margin(mixture, chosen, rejected))

    policy = {y: 1 / len(answers) for y in answers}

    def kl(reference: dict[Any, float]) -> float:
        return sum(p * (log(p) - reference[y]) for y, p in policy.items())

    of_anchors = [kl({y: logprob(a, y) for y in answers}) for a in anchors]
    weighted = sum(w * value for w, value in zip(weights, of_anchors, strict=True))
    assert weighted == pytest.approx(kl(mixture) - log_z)


def test_two_anchors_through_the_learner(models: dict[str, Path], tmp_path: Path) -> None:
    """Weights 1 and 3, against sums of log-probabilities that each model gives on its own."""
    anchors = (AnchorConfig(to="base", beta=0.5), AnchorConfig(to="round:third", beta=1.5))
    training = learner_for(models, tmp_path, DPO(beta=BETA), anchors)

    def sums(snapshot: str) -> list[float]:
        training.learner.load(snapshot)
        return [sum(values) for values in training.learner.completion_logprobs(list(PAIRS))]

    other, third, own = sums("other"), sums("third"), sums("base")
    ratios = [p - 0.25 * a - 0.75 * b for p, a, b in zip(own, other, third, strict=True)]
    margins = [BETA * (c - r) for c, r in zip(ratios[::2], ratios[1::2], strict=True)]
    _, metrics = gradient(training, PAIRS)
    assert metrics["loss/policy"] == pytest.approx(sum(log(1 + exp(-m)) for m in margins) / 3)
    assert metrics["pairs/margin"] == pytest.approx(sum(margins) / 3, rel=1e-4)
    assert not any(name.startswith("kl/") for name in metrics)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_order_and_split_do_not_matter(models: dict[str, Path], tmp_path: Path, loss: Any) -> None:
    algorithm = DPO(beta=BETA, loss=loss, label_smoothing=0.1)
    expected, metrics = gradient(learner_for(models, tmp_path, algorithm), PAIRS)
    assert expected.abs().max() > 1e-3
    turned, _ = gradient(learner_for(models, tmp_path, algorithm), PAIRS[::-1])
    split, parts = gradient(learner_for(models, tmp_path, algorithm, micro_batch_tokens=8), PAIRS)
    torch.testing.assert_close(turned, expected, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(split, expected, atol=2e-5, rtol=1e-3)
    shared = {name for name in metrics if name.startswith(("pairs/", "loss/"))}
    assert {n: parts[n] for n in shared} == pytest.approx({n: metrics[n] for n in shared}, abs=1e-5)


def test_swapping_the_sides_turns_the_gradient_at_zero_margin(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The reference is the policy itself: without anchors, the parent."""
    swapped = tuple(replace(r, advantage=-(r.advantage or 0.0)) for r in PAIRS)
    straight, metrics = gradient(learner_for(models, tmp_path, DPO(), ()), PAIRS)
    turned, _ = gradient(learner_for(models, tmp_path, DPO(), ()), swapped)
    assert metrics["loss/policy"] == pytest.approx(log(2))
    assert straight.abs().max() > 1e-3
    torch.testing.assert_close(turned, -straight, atol=1e-6, rtol=1e-4)


def test_training_widens_the_margin(models: dict[str, Path], tmp_path: Path) -> None:
    training = learner_for(models, tmp_path, DPO(beta=BETA), (), lr=1e-3)
    first = training.update(Batch(rows=PAIRS))
    for _ in range(4):
        last = training.update(Batch(rows=PAIRS))
    assert first["pairs/margin"] == pytest.approx(0.0, abs=1e-5)
    assert last["pairs/margin"] > 0.1
    assert last["pairs/accuracy"] == pytest.approx(1.0)


def advantages(batch: Batch) -> list[tuple[str, list[float | None]]]:
    return [(unit[0].source, [r.advantage for r in unit]) for unit in units_of(batch.rows)]


def test_rows_of_scored_groups() -> None:
    """New prompts keep only pairs; completions of past prompts are held by KL, paired or not."""
    groups = [group(1.0, 0.5, 0.0), group(0.5, 0.5), group(0.0, 0.5, None, 1.0, source="past")]
    batch = DPO().rows(groups)
    assert advantages(batch) == [
        ("new", [1.0, -1.0]), ("past", [1.0, -1.0]), ("past", [None]), ("past", [None]),
    ]  # fmt: skip
    assert [r.completion_ids[0] for r in batch.rows] == [3, 5, 6, 3, 4, 5]
    assert batch.metrics == {"pairs/made": 2.0, "pairs/ties": 1.0}
    assert batch.totals == Totals(tokens=8, sequences=4, units=2)


def test_a_completion_in_two_pairs_is_two_rows() -> None:
    batch = DPO(choose="all").rows([group(1.0, 0.0, 0.0)])
    assert advantages(batch) == [("new", [1.0, -1.0])] * 2
    assert DPO(choose="all", max_pairs=1).rows([group(1.0, 0.0, 0.0)]).totals.units == 1


def test_pairs_of_a_file_and_of_past_prompts_stay_apart() -> None:
    from align.data.examples import Unit, rows_of

    examples = rows_of([Unit(id="a", prompt=None, rows=PAIRS[:2])])
    past: list[ScoredGroup] = [group(1.0, 0.0, source="past")]
    algorithm = DPO(pairs="file")
    batch = build_batch(past, algorithm, replay_rewards=True, examples=examples)
    assert algorithm.material == "pairs"
    assert advantages(batch) == [("past", [1.0, -1.0]), ("new", [1.0, -1.0])]
    held = build_batch(past, algorithm, replay_rewards=False, examples=examples)
    assert advantages(held) == [("new", [1.0, -1.0]), ("past", [None]), ("past", [None])]
    assert held.metrics == {}


def test_online_pairs_need_a_group() -> None:
    with pytest.raises(ValueError, match=r"rounds\.0\.sampling\.group_size: dpo compares"):
        DPO().check(1, "rounds.0")
    DPO(pairs="file").check(1, "rounds.0")


def test_a_campaign_file_may_name_it() -> None:
    assert algorithm_from({"name": "dpo", "loss": "hinge"}) == DPO(loss="hinge")
    with pytest.raises(ValueError, match="label_smoothing"):
        algorithm_from({"name": "dpo", "label_smoothing": 0.5})
