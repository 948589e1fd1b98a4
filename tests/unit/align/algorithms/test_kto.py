"""KTO by hand: ratings, mismatched answers, the baseline, the loss, and what must not matter."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import algorithm_from
from align.algorithms.preference.kto import KTO, mismatched, ratings_of
from align.algorithms.rows import Batch, Row, Totals
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.batching import build_batch, to_tensors
from align.learner.learner import Learner
from align.learner.references import References
from align.retention.methods import RetentionMethods
from tests.unit.align.algorithms.test_pairs import group
from tests.unit.tiny import row, save_model

RATED = (
    row((1, 2, 3), (4, 5), 1.0),
    row((7,), (8, 9, 10), -1.0),
    row((3, 4), (5, 6, 7, 8), 1.0),
    row((2, 2), (9,), -1.0),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def update(
    models: dict[str, Path],
    tmp_path: Path,
    rows: tuple[Row, ...],
    algorithm: KTO | None = None,
    **optimizer: Any,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradient and metrics of one update of ``base`` against ``other``, before anything moves."""
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    spec = RoundSettings(
        algorithm=algorithm or KTO(beta=0.5),
        anchors=AnchorsConfig(new=(AnchorConfig(to="base", beta=1.0),), past=(), general=()),
        optimizer=OptimizerConfig(**optimizer),
    )
    training = learner.begin(
        spec,
        References(base="other", parent="base"),
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=rows))
    flat = [p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]
    return torch.cat(flat), metrics


def measured(start: float, reference: float, advantage: float | None) -> Row:
    """One token's row whose needs are filled."""
    return replace(
        row((1,), (2,), advantage),
        start_logprobs_T=(start,),
        reference_logprobs_T=(reference,),
    )


def test_ratings_are_sides_of_the_mean() -> None:
    assert ratings_of(group(1.0, 0.0, 0.5, None)) == [1.0, -1.0, 0.0, None]
    assert ratings_of(group(1.0, None)) == [None, None]
    assert ratings_of(group(1.0, 0.0, 9.0, tokens={2: ()})) == [1.0, -1.0, None]


@given(st.floats(-1e6, 1e6), st.integers(2, 9))
def test_equal_scores_rate_nothing(value: float, count: int) -> None:
    """However the last bit of their mean is rounded."""
    assert ratings_of(group(*[value] * count)) == [0.0] * count


def test_prompts_pass_their_answers_on() -> None:
    """Prompts that all differ pass their answers on as in TRL: the first gets the last one's answer."""
    found = mismatched(RATED)
    assert [r.prompt_ids for r in found] == [r.prompt_ids for r in RATED]
    answers = [r.completion_ids for r in RATED]
    assert [r.completion_ids for r in found] == [answers[-1], *answers[:-1]]
    assert {(r.advantage, r.policy, r.sampler_logprobs_T) for r in found} == {(0.0, "data", ())}


@given(st.lists(st.integers(1, 4), max_size=12))
def test_no_prompt_meets_its_own_answers(prompts: list[int]) -> None:
    rows = [row((p,), (p * 10, i)) for i, p in enumerate(prompts)]
    found = mismatched(rows)
    assert all(r.completion_ids[0] != r.prompt_ids[0] * 10 for r in found)
    most = max((prompts.count(p) for p in prompts), default=0)
    if 2 * most <= len(prompts):
        assert sorted(r.completion_ids for r in found) == sorted(r.completion_ids for r in rows)
        assert sorted(r.prompt_ids for r in found) == sorted(r.prompt_ids for r in rows)


def test_a_mismatched_row_is_no_longer_than_the_longest_given_one() -> None:
    found = mismatched([row((1, 2, 3, 4), (5,)), row((6,), (7, 8, 9))])
    assert [(r.prompt_ids, r.completion_ids) for r in found] == [
        ((1, 2, 3, 4), (7,)), ((6,), (5,)),
    ]  # fmt: skip


def test_the_baseline_by_hand() -> None:
    """Mismatched log-ratios of 0.5 and 0.1; rows that KL alone holds pass through."""
    rows = [
        measured(-1.0, -1.5, 0.0),
        measured(-9.0, -1.0, 1.0),
        measured(-1.0, -1.1, 0.0),
        measured(-1.0, -9.0, None),
    ]
    found = KTO().complete(rows)
    assert [r.advantage for r in found] == [1.0, None]
    assert [r.baseline for r in found] == pytest.approx([0.3, 0.3])


def test_the_baseline_is_never_negative_and_zero_without_evidence() -> None:
    (below,) = KTO().complete([measured(-2.0, -1.0, 0.0), measured(-1.0, -1.0, 1.0)])
    (alone,) = KTO().complete([measured(-1.0, -2.0, 1.0)])
    assert below.baseline == alone.baseline == 0.0


def test_the_loss_by_hand() -> None:
    """Ratios 2 and -1, baseline 1, beta 0.5: gains of 0.5 (2 - 1) and 0.5 (1 + 1)."""
    good = replace(row((1,), (2, 3), 1.0), reference_logprobs_T=(-2.0, -2.0), baseline=1.0)
    bad = replace(row((4,), (5,), -1.0), reference_logprobs_T=(-1.0,), baseline=1.0)
    held = row((4,), (5, 6), None, "past")
    logprobs_N = torch.tensor([-1.0, -1.0, -2.0, -3.0, -3.0])
    algorithm = KTO(beta=0.5, desirable_weight=1.5, undesirable_weight=0.5)
    loss, metrics = algorithm.objective(
        to_tensors([good, bad, held]),
        SimpleNamespace(logprobs_N=logprobs_N),  # type: ignore[arg-type]
        Totals(tokens=3, sequences=2, units=2),
    )

    def missing(gain: float) -> float:
        return 1 - 1 / (1 + exp(-gain))

    assert loss.item() == pytest.approx((1.5 * missing(0.5) + 0.5 * missing(1.0)) / 2)
    assert metrics["ratings/gain"].item() == pytest.approx(0.75)
    assert metrics["ratings/accuracy"].item() == 1.0
    assert metrics["ratings/baseline"].item() == 1.0


def test_rows_of_scored_groups() -> None:
    groups = [
        group(1.0, 0.5, 0.0),
        replace_prompt(group(0.5, 0.5)),
        replace_prompt(group(0.0, 0.5, 1.0, source="past")),
    ]
    batch = KTO().rows(groups)
    assert [(r.source, r.advantage) for r in batch.rows] == [
        ("new", 1.0), ("new", -1.0), ("past", -1.0), ("past", 1.0),
        ("new", 0.0), ("new", 0.0), ("past", 0.0), ("past", 0.0), ("past", None),
    ]  # fmt: skip
    assert batch.metrics == {
        "ratings/desirable": 2.0, "ratings/undesirable": 2.0, "ratings/ties": 4.0,
    }  # fmt: skip


def replace_prompt(scored: Any) -> Any:
    """The same group under another prompt."""
    return replace(scored, group=replace(scored.group, prompt_ids=(9,)))


def test_mismatched_rows_are_measured_and_no_more(models: dict[str, Path], tmp_path: Path) -> None:
    """They change the baseline; the denominators are those of the ratings."""
    batch = build_batch([], KTO(ratings="file"), replay_rewards=False, examples=RATED)
    assert len(batch.rows) == 8
    _, metrics = update(models, tmp_path, batch.rows)
    _, alone = update(models, tmp_path, RATED)
    assert metrics["ratings/baseline"] > 0.01
    assert alone["ratings/baseline"] == 0.0
    # gain = beta side (ratio - z0): over as many good as bad ones the baseline cancels.
    assert metrics["ratings/gain"] == pytest.approx(alone["ratings/gain"], abs=1e-5)
    assert metrics["loss/policy"] != pytest.approx(alone["loss/policy"], abs=1e-4)


def test_order_and_split_do_not_matter(models: dict[str, Path], tmp_path: Path) -> None:
    rows = (*RATED, *mismatched(RATED))
    expected, metrics = update(models, tmp_path, rows)
    turned, _ = update(models, tmp_path, rows[::-1])
    split, parts = update(models, tmp_path, rows, micro_batch_tokens=6)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(turned, expected, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(split, expected, atol=2e-5, rtol=1e-3)
    for name in ("loss/policy", "ratings/gain", "ratings/accuracy", "ratings/baseline"):
        assert parts[name] == pytest.approx(metrics[name], abs=1e-5)


def test_online_ratings_need_a_group() -> None:
    with pytest.raises(ValueError, match=r"rounds\.0\.sampling\.group_size: kto rates"):
        KTO().check(1, "rounds.0")
    KTO(ratings="file").check(1, "rounds.0")
    assert algorithm_from("kto") == KTO()
    assert (KTO().material, KTO(ratings="file").material) == ("rollouts", "ratings")
