"""Replayed answers and texts: the loss by hand, and nothing else that acts on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from align.algorithms.imitation.sft import SFT
from align.algorithms.rows import Batch, Row
from align.config.campaign import AnchorsConfig, OptimizerConfig, ReplayConfig, RoundSettings
from align.data.replay.rehearsal import answer_units, best_answers, confidence, rehearsed
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.unit.align.retention.trainings import MIXED, learner_of
from tests.unit.tiny import row

ROWS = (row((1, 2, 3), (4, 5, 6), None, "answers"), row((7, 2), (8,), None, "answers"))
REPLAY = ReplayConfig.model_validate({"answers": {"weight": 0.5}, "pretraining": "texts.jsonl"})
NO_ANCHORS = AnchorsConfig(new=(), past=(), general=())


def training(models: dict[str, Path], folder: Path, policy: str, spec: RoundSettings) -> Training:
    learner = learner_of(models, folder, policy)
    return learner.begin(
        spec, References(base="base", parent="base"), num_steps=6, seed=5, penalties=RetentionMethods()
    )  # fmt: skip


def settings(**changes: object) -> RoundSettings:
    values = {"anchors": NO_ANCHORS, "optimizer": OptimizerConfig(lr=1e-3, max_grad_norm=1e9)}
    return RoundSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_the_gradient_is_that_of_imitation_times_the_weight(
    policy: str, models: dict[str, Path], tmp_path: Path
) -> None:
    replayed = training(models, tmp_path, policy, settings(replay=REPLAY))
    logprobs = [v for r in replayed.learner.completion_logprobs(ROWS) for v in r]
    metrics = replayed.update(Batch(rows=ROWS))
    assert metrics["rehearsal/answers"] == pytest.approx(-sum(logprobs) / 4, rel=1e-5)
    assert "rehearsal/texts" not in metrics
    taught = tuple(replace(r, source="new", advantage=1.0) for r in ROWS)
    imitated = training(models, tmp_path, policy, settings(algorithm=SFT())).update(
        Batch(rows=taught)
    )
    assert metrics["grad_norm"] == pytest.approx(0.5 * imitated["grad_norm"], rel=1e-4)


def test_a_term_adds_to_the_loss_and_changes_no_other_term(
    models: dict[str, Path], tmp_path: Path
) -> None:
    texts = tuple(replace(r, source="texts") for r in ROWS)
    spec = settings(anchors=AnchorsConfig(), replay=REPLAY)
    with_rows = training(models, tmp_path, "full", spec).update(
        Batch(rows=(*MIXED.rows, *ROWS, *texts))
    )
    without = training(models, tmp_path, "full", settings(anchors=AnchorsConfig())).update(MIXED)
    assert with_rows["rehearsal/answers"] == with_rows["rehearsal/texts"]
    for name in ("loss/policy", "kl/past/owner", "entropy"):
        assert with_rows[name] == pytest.approx(without[name], rel=1e-5), name
    assert with_rows["grad_norm"] != without["grad_norm"]


def answer(name: str, round_: str, *logprobs: float) -> RolloutGroup:
    tokens = tuple(range(1, len(logprobs) + 1))
    completion = Completion(token_ids=tokens, logprobs_T=logprobs, text="", finish_reason="stop")
    prompt = Prompt(id=name, text=name, source="past", round=round_, owner=round_)
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1, 2), completions_G=(completion,), policy="parent", seed=0
    )


GROUPS = [
    answer("a", "one", -1.0, -3.0), answer("b", "one", -0.5), answer("c", "one", -4.0),
    answer("d", "two", -9.0), answer("e", "two"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "threshold", "names"),
    [(0.5, None, "abd"), (0.1, None, "bd"), (1.0, None, "abcd"), (1.0, -2.0, "ab"), (0.3, 0.0, "")],
)
def test_the_best_share_of_each_round_is_kept(
    keep: float, threshold: float | None, names: str
) -> None:
    """Mean log-probabilities are -2, -0.5, -4 and -9; the answer without tokens is nobody's."""
    scores = {group.prompt.id: confidence(group.completions_G[0]) for group in GROUPS}
    assert scores == {"a": -2.0, "b": -0.5, "c": -4.0, "d": -9.0, "e": 0.0}
    best = best_answers(GROUPS, scores, keep=keep, threshold=threshold)
    assert "".join(group.prompt.id for group in best) == names
    assert best_answers(GROUPS, {}, keep=keep, threshold=threshold) == []


def test_rehearsed_rows_come_in_turn_and_remember_no_sampler() -> None:
    (stream,) = rehearsed(answer_units(GROUPS[:4]), "answers", 1.5, seed=3)
    steps = [stream.at(step) for step in range(8)]
    assert [len(step) for step in steps] == [1, 2, 1, 2, 1, 2, 1, 2]
    first = [row.completion_ids for step in steps[:3] for row in step]
    rows: list[Row] = [row for step in steps for row in step]
    assert len(rows) == 12 and {r.source for r in rows} == {"answers"}
    assert all(r.advantage is None and not r.sampler_logprobs_T for r in rows)
    assert len(first) == 4
    assert stream.at(5) == steps[5]
    assert rehearsed([], "texts", 1.0, seed=0) == []
