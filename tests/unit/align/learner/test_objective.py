"""What a pass asks of its models: references, temperatures, and the proof that engines are in step."""

from __future__ import annotations

from dataclasses import replace
from math import log, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.algorithms import algorithm_from
from align.algorithms.importance import ImportanceConfig
from align.algorithms.rows import DATA, Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    CampaignConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.errors import ParityError
from align.learner.batching import Denominators, to_tensors
from align.learner.learner import Learner
from align.learner.references import References
from align.learner.training import Training
from align.retention.anchors.kl_anchors import BetaController
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

PAIRS = tuple(
    replace(row((1, 2, unit), (3, 4 + unit) if side > 0 else (5,), side), policy=DATA, unit=unit)
    for unit in range(4)
    for side in (1.0, -1.0)
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, seed) for seed, name in enumerate(("base", "other"))}


def make(
    models: dict[str, Path], tmp_path: Path, spec: RoundSettings, *, tolerance: float = 1e9
) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=tolerance,
    )
    references = References(base="other", parent="base", rounds={"last": "base"})
    training = learner.begin(spec, references, num_steps=5, seed=0, penalties=RetentionMethods())
    return training


def settings(algorithm: dict[str, Any], *anchors: str, **changes: Any) -> RoundSettings:
    terms = tuple(AnchorConfig(to=to, beta=1.0) for to in anchors)
    return RoundSettings(
        algorithm=algorithm_from(algorithm),
        anchors=AnchorsConfig(new=terms, past=(), general=()),
    ).model_copy(update=changes)


def test_a_snapshot_that_two_anchors_name_counts_twice(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec = settings({"name": "dpo", "pairs": "file"}, "parent", "round:last", "base")
    training = make(models, tmp_path, spec)
    assert training.objective.reference_of(PAIRS[0]) == (("base", 2 / 3), ("other", 1 / 3))


def test_rows_keep_their_order_whatever_is_known_of_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Or a round that goes on without the cache would deal out other mini-batches."""
    training = make(models, tmp_path, settings({"name": "dpo", "pairs": "file"}, "base"))
    fresh = training._completed(PAIRS)
    training.learner.reference_cache.clear()
    training._completed(PAIRS[4:])
    for found in (fresh, training._completed(PAIRS)):
        assert [r.completion_ids for r in found] == [r.completion_ids for r in PAIRS]
        assert all(r.reference_logprobs_T for r in found)


@pytest.mark.parametrize(
    "algorithm", [{"name": "dpo", "pairs": "file"}, {"name": "kto", "ratings": "file"}]
)
def test_rows_of_a_file_teach_at_temperature_1(
    models: dict[str, Path], tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    losses = []
    for temperature in (1.0, 0.5):
        sampling = SamplingConfig(temperature=temperature)
        training = make(models, tmp_path, settings(algorithm, "base", sampling=sampling))
        examples = training.spec.algorithm.examples(PAIRS)
        losses.append(training.update(Batch(rows=tuple(examples)))["loss/policy"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def sampled(training: Training, rows: tuple[Row, ...], version: str) -> list[Row]:
    """As engines would return them that hold the learner's weights."""
    training.learner.weights(version)
    logprobs = training.learner.completion_logprobs(list(rows))
    return [
        replace(one, policy=version, sampler_logprobs_T=found)
        for one, found in zip(rows, logprobs, strict=True)
    ]


def wrong(one: Row) -> Row:
    return replace(one, sampler_logprobs_T=tuple(v - 0.01 for v in one.sampler_logprobs_T))


def test_every_token_is_compared_before_the_first_of_several_steps(
    models: dict[str, Path], tmp_path: Path
) -> None:
    optimizer = OptimizerConfig(mini_batches=4)
    spec = settings({"name": "grpo"}, optimizer=optimizer)
    rows = tuple(replace(r, unit=None) for r in PAIRS)
    for place in range(len(rows)):
        training = make(models, tmp_path, spec, tolerance=1e-4)
        given = sampled(training, rows, "r/0")
        given[place] = wrong(given[place])
        with pytest.raises(ParityError):
            training.update(Batch(rows=tuple(given)))


def test_samples_of_the_drift_meter_prove_the_sync(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, settings({"name": "grpo"}), tolerance=1e-4)
    given = sampled(training, PAIRS, "r/3")
    assert training.divergence(given, "other") > 0
    with pytest.raises(ParityError, match="disagree"):
        training.divergence([*given[:-1], wrong(given[-1])], "other")
    # Of older weights nothing can be said.
    training.divergence([replace(wrong(one), policy="r/2") for one in given], "other")


def test_a_step_that_measured_nothing_does_not_steer() -> None:
    controller = BetaController(AnchorConfig(to="base", beta=0.5, target=0.1))
    controller.observe(nan)
    assert controller.beta == 0.5
    controller.observe(0.2)
    assert controller.beta > 0.5


def distilling(**changes: Any) -> RoundSettings:
    algorithm = {"name": "distill", "teacher": "base", "on_policy": False, **changes}
    return settings(algorithm, optimizer=OptimizerConfig(lr=1e-2))


def parts(training: Training) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    assert training.objective.moving_teacher is not None
    policy = training.learner.policy.named_parameters()
    teacher = training.objective.moving_teacher.named_tensors()
    assert policy.keys() == teacher.keys()
    return [p.detach().clone() for p in policy.values()], [t.clone() for t in teacher.values()]


def test_a_moving_teacher_goes_a_share_of_the_way_after_every_step(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = make(models, tmp_path, distilling(follow=0.25))
    rows = tuple(replace(r, unit=None, advantage=1.0) for r in PAIRS)
    _, before = parts(training)
    first = training.update(Batch(rows=rows))["loss/policy"]
    policy, after = parts(training)
    for old, new, learned in zip(before, after, policy, strict=True):
        torch.testing.assert_close(new, old + 0.25 * (learned - old))
    fixed = make(models, tmp_path, distilling())
    assert fixed.update(Batch(rows=rows))["loss/policy"] == pytest.approx(first, rel=1e-6)
    assert fixed.objective.moving_teacher is None
    slow, still = (one.update(Batch(rows=rows))["loss/policy"] for one in (training, fixed))
    assert slow != pytest.approx(still, rel=1e-3)


def test_a_moving_teacher_survives_a_stop(models: dict[str, Path], tmp_path: Path) -> None:
    rows = tuple(replace(r, unit=None, advantage=1.0) for r in PAIRS)
    whole = make(models, tmp_path, distilling(follow=0.25))
    curve = [whole.update(Batch(rows=rows))["loss/policy"] for _ in range(4)]
    stopped = make(models, tmp_path, distilling(follow=0.25))
    for _ in range(2):
        stopped.update(Batch(rows=rows))
    stopped.checkpoint(tmp_path / "checkpoint", 2, identity={})
    again = make(models, tmp_path, distilling(follow=0.25))
    found = again.restore(tmp_path / "checkpoint", identity={})
    assert found is not None and found.step == 2
    assert [again.update(Batch(rows=rows))["loss/policy"] for _ in range(2)] == curve[2:]


def following(teacher: str, **policy: Any) -> CampaignConfig:
    """Return a campaign whose teacher follows the policy."""
    algorithm = {"name": "distill", "teacher": teacher, "follow": 0.1}
    spec = {"name": "one", "prompts": "demo://rev", "steps": 1, "rewards": ["exact_match"]}
    return CampaignConfig.model_validate(
        {
            "name": "slow",
            "policy": {"model": "demo://digits", **policy},
            "rounds": [{**spec, "algorithm": algorithm}],
        }
    )


def test_another_model_cannot_follow() -> None:
    with pytest.raises(ValidationError, match="is no earlier policy"):
        following("model:elsewhere")


@pytest.mark.parametrize("policy", [{}, {"lora": {"rank": 2}}, {"ranks": 2}], ids=str)
def test_a_teacher_follows_every_layout_of_the_policy(policy: dict[str, Any]) -> None:
    assert following("base", **policy).rounds[0].algorithm.teacher_follows == 0.1


# KL terms on samples of older weights, and what they are a mean over


def anchored(estimator: str, algorithm: str = "grpo", source: str = "past", **changes: Any) -> Any:
    terms = (AnchorConfig(to="base", beta=1.0, estimator=estimator),)  # type: ignore[arg-type]
    empty: dict[str, Any] = {"new": (), "past": (), "general": ()}
    return RoundSettings(
        algorithm=algorithm_from({"name": algorithm}),
        anchors=AnchorsConfig(**{**empty, source: terms}),
    ).model_copy(update=changes)


@pytest.mark.parametrize(
    ("estimator", "level", "factor"),
    [
        *((name, "token", 0.5) for name in ("k1", "k2", "k3")),
        *((name, "sequence", 0.25) for name in ("full", "k1", "k2", "k3")),
        (
            "full",
            "token",
            1.0,
        ),  # It samples no token; only whole sequences correct what stands before.
        ("k2", "none", 1.0),
    ],
)
def test_kl_terms_weigh_samples_of_older_weights(
    models: dict[str, Path], tmp_path: Path, estimator: str, level: str, factor: float
) -> None:
    """The sampler found each of the two tokens twice as likely as the learner does."""
    spec = anchored(estimator, importance=ImportanceConfig(level=level))  # type: ignore[arg-type]
    found: dict[bool, tuple[float, float]] = {}
    for stale in (False, True):
        training = make(models, tmp_path, spec)
        (held,) = sampled(training, (row(advantage=None, source="past", owner="other"),), "r/0")
        older = tuple(value + log(2) for value in held.sampler_logprobs_T)
        held = replace(held, stale=stale, policy="r/-1", sampler_logprobs_T=older)
        over = Denominators.of(Batch(rows=(held,)))
        measured = training.objective.measure(to_tensors([held]), over, None)
        found[stale] = float(measured.loss.detach()), float(measured.metrics["kl/past/base"])
    assert found[True] == pytest.approx([factor * value for value in found[False]], rel=1e-5)


def test_rows_without_a_start_are_weighed_by_the_policy_as_it_is(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """With several updates a step, rows that teach have logprobs of its beginning, and held rows none."""
    training = make(models, tmp_path, anchored("k2"))
    held, teaches = sampled(
        training, (row(advantage=None, source="past", owner="other"), row(advantage=1.0)), "r/0"
    )
    rows = [
        replace(held, stale=True),
        replace(teaches, stale=True, start_logprobs_T=teaches.sampler_logprobs_T),
    ]
    measured = training.objective.measure(
        to_tensors(rows), Denominators.of(Batch(rows=tuple(rows))), None
    )
    assert measured.metrics["kl/past/base"].isfinite() and measured.metrics["kl/past/base"] > 0
    assert measured.loss.isfinite()


@pytest.mark.parametrize(
    ("estimator", "source", "factor"),
    [("k1", "new", 5 / 2), ("k2", "new", 1.0), ("full", "new", 1.0), ("k1", "past", 1.0)],
)
def test_the_kl_in_the_reward_of_rloo_is_a_mean_over_completions(
    models: dict[str, Path], tmp_path: Path, estimator: str, source: str, factor: float
) -> None:
    """Five tokens in two completions (arXiv 2402.14740: the KL is a part of a completion's reward)."""
    rows = [
        row(completion=completion, advantage=0.0, source=source, owner="other")
        for completion in ((4, 5), (6, 7, 8))
    ]
    losses = []
    for name in ("rloo", "grpo"):
        training = make(models, tmp_path, anchored(estimator, name, source))
        over = Denominators.of(Batch(rows=tuple(rows)))
        losses.append(float(training.objective.measure(to_tensors(rows), over, None).loss.detach()))
    assert losses[0] == pytest.approx(factor * losses[1], rel=1e-5)
