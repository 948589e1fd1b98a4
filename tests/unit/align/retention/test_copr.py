"""COPR's constraint: stored answers by hand, multipliers, prompts that are ranked again, and refusals."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from align.algorithms.preference.copr import COPR
from align.algorithms.preference.dpo import DPO
from align.algorithms.rows import Batch
from align.config.retention.methods import COPRConfig
from align.learner.training import Training
from align.retention.anchors.copr import COPRConstraint, RankedAnswers, read_sets, tensors_of
from tests.unit.align.config.test_retention_config import made
from tests.unit.align.retention.trainings import (
    NEW,
    PAIRS,
    accepted,
    after_a_step,
    begin,
    learner_of,
    weights_of,
)

SETTINGS = COPRConfig(multiplier=2.0, rate=0.5, beta=0.5)


def method_of(training: Training) -> COPRConstraint:
    (method,) = (m for m in training.penalties if isinstance(m, COPRConstraint))
    return method


@pytest.fixture
def artifacts(models: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """What a first round of DPO on two pairs leaves."""
    first = after_a_step(learner_of(models, tmp_path, "full"), SETTINGS)
    return accepted(first, tmp_path / "first", "copr")


def shares(*logits: float) -> list[float]:
    total = log(sum(exp(value) for value in logits))
    return [value - total for value in logits]


def test_a_round_stores_what_is_optimal_over_its_reference(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """The parent is the reference; of two answers r is 1/3, and beta .5 makes that 2/3 nats."""
    learner = learner_of(models, tmp_path, "full")
    learner.load("base")
    sums = [sum(values) for values in learner.completion_logprobs(list(PAIRS))]
    stored = {ranked.prompt: ranked for ranked in read_sets(artifacts["copr"])}
    assert len(stored) == 2
    for chosen, rejected, better, worse in zip(
        PAIRS[::2], PAIRS[1::2], sums[::2], sums[1::2], strict=True
    ):
        ranked = stored[chosen.prompt_ids]
        assert ranked.answers == (chosen.completion_ids, rejected.completion_ids)
        assert ranked.targets == pytest.approx(shares(better + 2 / 3, worse - 2 / 3), abs=1e-5)


def test_no_distance_is_in_excess_when_a_round_begins(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """It is counted from the parent's; the multiplier then moves by rate * lambda * excess."""
    training = begin(learner_of(models, tmp_path, "full"), SETTINGS, artifacts=artifacts, lr=2e-4)
    lines = [training.update(Batch(rows=NEW)) for _ in range(3)]
    excess = [line["copr/excess/round 0"] for line in lines]
    multipliers = [line["copr/lambda/round 0"] for line in lines]
    assert (
        excess[0] == pytest.approx(0.0, abs=1e-5)
        and 0.5 * 2.0 * abs(excess[1]) < 1.0
        and abs(excess[1]) > 1e-3
    )
    assert multipliers[0] == 2.0
    for before, after, over in zip(multipliers, multipliers[1:], excess, strict=False):
        assert log(after) == pytest.approx(log(before) + max(-1.0, min(1.0, 0.5 * before * over)))
    for line, over, multiplier in zip(lines, excess, multipliers, strict=True):
        assert line["retention/copr"] == pytest.approx(multiplier * over)


def test_the_whole_gradient_is_divided_by_one_plus_the_multipliers(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """Gradients of the loss alone, of the stored answers alone, and of both."""
    norms = {}
    for name, rows, settings in (
        ("loss", NEW, None), ("both", NEW, SETTINGS), ("more", NEW, COPRConfig(multiplier=5.0)),
    ):  # fmt: skip
        methods = [] if settings is None else [settings]
        training = begin(learner_of(models, tmp_path, "full"), *methods, artifacts=artifacts)
        training.optimizer.step = lambda *_: None  # type: ignore[method-assign]
        training.update(Batch(rows=rows))
        named = training.learner.policy.named_parameters().values()
        norms[name] = torch.cat([p.grad.flatten() for p in named if p.grad is not None])
    held = norms["both"] * 3 - norms["loss"]
    assert held.abs().max() > 1e-4
    torch.testing.assert_close(norms["more"] * 6 - norms["loss"], held * 2.5, atol=1e-5, rtol=1e-3)


def test_the_constraint_keeps_what_a_round_would_lose(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """Steps that fight the stored order: the pairs' sides are swapped under other prompts' units."""
    swapped = tuple(
        replace(r, prompt_ids=(*r.prompt_ids, 9), advantage=-r.advantage) for r in PAIRS
    )  # type: ignore[operator]
    algorithm, excess = DPO(pairs="file", beta=1.0), {}
    for rate, multiplier in ((0.0, 1e-3), (0.5, 5.0)):
        settings = COPRConfig(rate=rate, multiplier=multiplier)
        training = begin(
            learner_of(models, tmp_path, "full"), settings,
            artifacts=artifacts, algorithm=algorithm, lr=3e-3,
        )  # fmt: skip
        lines = [training.update(Batch(rows=swapped)) for _ in range(6)]
        excess[multiplier] = lines[-1]["copr/excess/round 0"]
    assert excess[1e-3] > 0.0 and excess[5.0] < excess[1e-3]


def test_a_prompt_that_is_ranked_again_leaves_its_earlier_round(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """Two pairs are stored, and the second round ranks the first of them the other way."""
    turned = tuple(replace(r, advantage=-r.advantage, round="later") for r in PAIRS[:2])  # type: ignore[operator]
    training = begin(
        learner_of(models, tmp_path, "full"), SETTINGS,
        artifacts=artifacts, algorithm=COPR(pairs="file", beta=0.5),
    )  # fmt: skip
    training.update(Batch(rows=turned))
    assert {row.prompt_ids for row in method_of(training).own_rows()} == {PAIRS[2].prompt_ids}
    path = accepted(training, tmp_path / "second", "copr")["copr"]
    kept = {(ranked.round, ranked.prompt): ranked for ranked in read_sets(path)}
    assert set(kept) == {("round 0", PAIRS[2].prompt_ids), ("later", PAIRS[0].prompt_ids)}
    assert kept["later", PAIRS[0].prompt_ids].answers[0] == PAIRS[0].completion_ids


def test_at_most_so_many_prompts_are_stored_whatever_their_order(
    models: dict[str, Path], tmp_path: Path
) -> None:
    kept = []
    for name, rows in (("one", PAIRS), ("other", (*PAIRS[2:], *PAIRS[:2]))):
        settings = COPRConfig(stored=1)
        training = begin(
            learner_of(models, tmp_path, "full"), settings, algorithm=DPO(pairs="file")
        )
        training.update(Batch(rows=rows))
        (ranked,) = read_sets(accepted(training, tmp_path / name, "copr")["copr"])
        kept.append(ranked.prompt)
    assert kept[0] == kept[1]


def test_answers_come_back_from_an_artifact_as_they_were(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    sets = [
        RankedAnswers(
            round=name, temperature=t, prompt=prompt, answers=((4, 5), (6,), (7, 8, 9))[:size],
            targets=(-0.5, -1.25, -3.0)[:size],
        )
        for name, t, prompt, size in (("a", 1.0, (1, 2), 2), ("a", 1.0, (3,), 3), ("b/c", 0.7, (1,), 2))
    ]  # fmt: skip
    save_file(tensors_of(sets), tmp_path / "copr.safetensors")
    assert read_sets(tmp_path / "copr.safetensors") == sets


def test_an_adapter_takes_no_part_in_what_is_stored(
    models: dict[str, Path], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    """Full weights stored the answers, and a round of an adapter is held to them."""
    training = begin(learner_of(models, tmp_path, "lora"), SETTINGS, artifacts=artifacts)
    before = weights_of(training)
    line = training.update(Batch(rows=NEW))
    assert line["copr/excess/round 0"] == pytest.approx(0.0, abs=1e-5)
    assert any(not torch.equal(before[n], t) for n, t in weights_of(training).items())


def test_where_no_round_ranks_answers_it_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"rounds\.0\.retention: copr holds ranked answers"):
        made({"retention": ["kl_anchors", "copr"]})
    made({"retention": ["kl_anchors", "copr"]}, {"algorithm": "dpo"})
    with pytest.raises(ValidationError, match="outside of bounds"):
        made({"retention": [{"name": "copr", "multiplier": 20.0}]}, {"algorithm": "copr"})
