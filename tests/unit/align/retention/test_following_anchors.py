"""Anchors that move after the policy: when, how far, exact resume, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.algorithms.preference.dpo import DPO
from align.algorithms.rows import Batch
from align.config.campaign import AnchorsConfig, OptimizerConfig, RoundSettings
from align.config.retention.anchors import AnchorConfig, FollowConfig
from align.learner.references import References
from align.learner.training import Training
from align.retention.anchors.following import stagnates
from align.retention.methods import RetentionMethods
from rollouts.errors import UserError
from tests.unit.align.config.test_retention_config import made
from tests.unit.align.retention.trainings import (
    NEW,
    PAIRS,
    POLICIES,
    begin,
    learner_of,
    weights_of,
)


def begun(models: dict[str, Path], folder: Path, *follows: FollowConfig) -> Training:
    """Begin a round whose new rows are held by anchors that begin at the parent and follow."""
    terms = tuple(AnchorConfig(to="parent", beta=0.1, follow=follow) for follow in follows)
    spec = RoundSettings(
        anchors=AnchorsConfig(new=terms, past=(), general=()), optimizer=OptimizerConfig(lr=1e-2)
    )
    return learner_of(models, folder, "full").begin(
        spec, References(base="base", parent="base"), num_steps=6, seed=5,
        penalties=RetentionMethods(),
    )  # fmt: skip


def anchor(training: Training, label: str) -> dict[str, torch.Tensor]:
    """Weights of one anchor, by parameter name."""
    (anchors,) = training.penalties
    prefix = f"new/{label}/"
    tensors = anchors.tensors()
    return {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}


def test_a_hard_reset_comes_at_every_second_step(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, FollowConfig(every=2))
    start, kls = weights_of(training), []
    for step in range(1, 5):
        kls.append(training.update(Batch(rows=NEW))["kl/new/parent~1/2"])
        now = weights_of(training)
        reset = anchor(training, "parent~1/2")
        if step % 2 == 0:
            start = now
        assert all(torch.equal(reset[name], start[name]) for name in now)
    # Right after a reset policy and anchor are the same.
    assert kls[0] == pytest.approx(0.0, abs=1e-6) and kls[2] == pytest.approx(0.0, abs=1e-6)
    assert kls[1] > 1e-5 and kls[3] > 1e-5


def test_averages_of_several_rates_stand_side_by_side(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """After one step an anchor is its share of the way from the parent to the policy."""
    training = begun(models, tmp_path, FollowConfig(share=0.5), FollowConfig(share=0.1))
    start = weights_of(training)
    training.update(Batch(rows=NEW))
    end = weights_of(training)
    for share in (0.5, 0.1):
        for name, tensor in anchor(training, f"parent~{share:g}/1").items():
            torch.testing.assert_close(tensor, start[name] + share * (end[name] - start[name]))


def test_a_kl_beyond_the_limit_moves_the_anchor_at_once(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The second step is the first whose KL is above zero, and a limit far off is never reached."""
    for above, moves in ((1e-5, True), (1e3, False)):
        training = begun(models, tmp_path, FollowConfig(every=100, above=above))
        start = anchor(training, "parent~1/100")
        training.update(Batch(rows=NEW))
        still = anchor(training, "parent~1/100")
        assert all(torch.equal(still[name], start[name]) for name in start)
        training.update(Batch(rows=NEW))
        end, now = anchor(training, "parent~1/100"), weights_of(training)
        assert all(torch.equal(end[name], now[name]) for name in now) == moves


def test_a_moved_anchor_survives_a_checkpoint_bit_for_bit(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Stopped after three steps, one of them after a move, and between two moves."""
    follow, identity = FollowConfig(every=2, share=0.6), {"config": "abc"}
    straight = begun(models, tmp_path, follow)
    for _ in range(3):
        straight.update(Batch(rows=NEW))
    straight.checkpoint(tmp_path / "kept", 3, identity=identity)
    expected = [{**straight.update(Batch(rows=NEW)), "time/update_s": 0.0} for _ in range(2)]
    resumed = begun(models, tmp_path, follow)
    assert resumed.restore(tmp_path / "kept", identity=identity) is not None
    actual = [{**resumed.update(Batch(rows=NEW)), "time/update_s": 0.0} for _ in range(2)]
    assert actual == expected
    ours, theirs = anchor(resumed, "parent~0.6/2"), anchor(straight, "parent~0.6/2")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# A reference that moves


def referred(
    models: dict[str, Path], folder: Path, follow: FollowConfig | None, policy: str = "full"
) -> Training:
    """Begin a round of DPO on a file's pairs, whose reference is the parent and may follow."""
    term = AnchorConfig(to="parent", beta=1.0, follow=follow)
    anchors = AnchorsConfig(new=(term,), past=(), general=())
    learner = learner_of(models, folder, policy)
    return begin(learner, anchors=anchors, algorithm=DPO(pairs="file", beta=1.0), lr=1e-2)


@pytest.mark.parametrize("policy", POLICIES)
def test_dpo_begins_again_at_each_hard_reset_of_its_reference(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """The rows are a file's, so their reference is cached: a stale one would leave a margin."""
    training = referred(models, tmp_path, FollowConfig(every=2), policy)
    margins = [training.update(Batch(rows=PAIRS)) for _ in range(4)]
    shown = [line["pairs/margin"] for line in margins]
    assert shown[0] == pytest.approx(0.0, abs=1e-4) and shown[2] == pytest.approx(0.0, abs=1e-4)
    assert shown[1] > 1e-3 and shown[3] > 1e-3
    assert [line["moves/new/parent~1/2"] for line in margins] == [0.0, 1.0, 1.0, 2.0]
    frozen = referred(models, tmp_path, None, policy)
    still = [frozen.update(Batch(rows=PAIRS))["pairs/margin"] for _ in range(4)]
    assert still[1] == pytest.approx(shown[1], rel=1e-3) and still[2] > still[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_soft_update_is_that_share_of_the_way(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """TR-DPO's alpha of .6 on the trained weights, the factors of an adapter."""
    training = referred(models, tmp_path, FollowConfig(share=0.6), policy)
    start = weights_of(training)
    training.update(Batch(rows=PAIRS))
    moved = weights_of(training)
    metrics = training.update(Batch(rows=PAIRS))
    mixed = {name: start[name] + 0.6 * (moved[name] - start[name]) for name in start}

    def margins(weights: dict[str, torch.Tensor]) -> list[float]:
        for name, parameter in training.learner.policy.named_parameters().items():
            parameter.data.copy_(weights[name])
        sums = [sum(values) for values in training.learner.completion_logprobs(list(PAIRS))]
        return [c - r for c, r in zip(sums[::2], sums[1::2], strict=True)]

    expected = [p - r for p, r in zip(margins(moved), margins(mixed), strict=True)]
    assert metrics["pairs/margin"] == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert abs(sum(expected)) > 1e-3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_moved_reference_survives_a_checkpoint_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    follow, identity = FollowConfig(every=2, share=0.6), {"config": "abc"}
    straight = referred(models, tmp_path, follow, policy)
    for _ in range(3):
        straight.update(Batch(rows=PAIRS))
    straight.checkpoint(tmp_path / "kept", 3, identity=identity)
    expected = [{**straight.update(Batch(rows=PAIRS)), "time/update_s": 0.0} for _ in range(3)]
    resumed = referred(models, tmp_path, follow, policy)
    assert resumed.restore(tmp_path / "kept", identity=identity) is not None
    actual = [{**resumed.update(Batch(rows=PAIRS)), "time/update_s": 0.0} for _ in range(3)]
    assert actual == expected


def test_a_second_round_refers_to_its_own_parent(models: dict[str, Path], tmp_path: Path) -> None:
    """A learner outlives its rounds, and so does its cache of reference log-probabilities."""
    training = referred(models, tmp_path, FollowConfig(every=1))
    for _ in range(2):
        training.update(Batch(rows=PAIRS))
    spec, learner = training.spec, training.learner
    again = learner.begin(
        spec, References(base="base", parent="other"), num_steps=6, seed=5,
        penalties=RetentionMethods(),
    )  # fmt: skip
    assert again.update(Batch(rows=PAIRS))["pairs/margin"] == pytest.approx(0.0, abs=1e-4)


# A metric that stops improving


@pytest.mark.parametrize(
    ("recent", "settings", "expected"),
    [
        ([0.1, 0.3, 0.2], {}, False),  # Two steps have to be compared with two.
        ([0.1, 0.3, 0.2, 0.2], {}, True),
        ([0.1, 0.3, 0.2, 0.21], {}, False),
        ([0.1, 0.3, 0.2, 0.3], {"gain": 0.06}, True),
        ([0.1, 0.3, 0.2, 0.1], {"goal": "lower"}, False),
        ([0.1, 0.3, 0.2, 0.3], {"goal": "lower"}, True),
        ([9.0, 0.1, 0.3, 0.2, 0.3], {}, False),  # Older steps do not count.
    ],
)
def test_stagnation_by_hand(recent: list[float], settings: dict[str, Any], expected: bool) -> None:
    follow = FollowConfig(after_stagnation=2, **settings)
    assert stagnates(recent, 2, follow.gain, follow.goal) == expected


REWARDS = (0.1, 0.5, 0.4, 0.6, 0.6)
"""The third step is no better than the second, then counting begins again; the fifth equals the fourth."""


def stagnating(models: dict[str, Path], folder: Path, policy: str = "full") -> Training:
    follow = FollowConfig(after_stagnation=1, restart_optimizer=True)
    term = AnchorConfig(to="parent", beta=0.1, follow=follow)
    anchors = AnchorsConfig(new=(term,), past=(), general=())
    return begin(learner_of(models, folder, policy), anchors=anchors, lr=1e-2)


def rewarded(reward: float) -> Batch:
    return Batch(rows=NEW, metrics={"reward/mean": reward})


def test_stagnation_moves_the_anchor_and_restarts_the_optimizer(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = stagnating(models, tmp_path)
    moves, steps = [], []
    for reward in REWARDS:
        metrics = training.update(rewarded(reward))
        moves.append(metrics["moves/new/parent~1/stagnation1"])
        states = training.optimizer.state.values()
        steps.append(max((float(state["step"]) for state in states), default=0.0))
    assert moves == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert steps == [1.0, 2.0, 0.0, 1.0, 0.0]
    now, reset = weights_of(training), anchor(training, "parent~1/stagnation1")
    assert all(torch.equal(reset[name], now[name]) for name in now)


@pytest.mark.parametrize("policy", POLICIES)
def test_counting_survives_a_checkpoint(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """Stopped right after a move, when the optimizer has no moments, and again before the next."""
    for stop in (3, 4):
        straight, folder = stagnating(models, tmp_path, policy), tmp_path / str(stop)
        for reward in REWARDS[:stop]:
            straight.update(rewarded(reward))
        straight.checkpoint(folder, stop, identity={})
        resumed = stagnating(models, tmp_path, policy)
        resumed.restore(folder, identity={})
        rest = [*REWARDS[stop:], 0.7]
        expected, actual = (
            [{**training.update(rewarded(r)), "time/update_s": 0.0} for r in rest]
            for training in (straight, resumed)
        )
        assert actual == expected


def test_a_metric_that_no_step_reports_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    follow = FollowConfig(after_stagnation=1, metric="loss/polici")
    anchors = AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=0.1, follow=follow),), past=(), general=()
    )
    training = begin(learner_of(models, tmp_path, "full"), anchors=anchors)
    with pytest.raises(UserError, match="did you mean 'loss/policy'"):
        training.update(Batch(rows=NEW))


MOVING: dict[str, Any] = {"to": "parent", "beta": 0.1, "follow": {"every": 20}}
SFT: dict[str, Any] = {"name": "only", "algorithm": "sft", "data": "rows.jsonl", "steps": 2}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an owner": ({"past": [{**MOVING, "to": "owner"}]}, {}, "follow moves one anchor"),
    "stagnation without a number of steps": (
        {"new": [{**MOVING, "follow": {"metric": "entropy"}}]},
        {},
        "metric belongs to a move on stagnation",
    ),
    "a time": (
        {"new": [{**MOVING, "follow": {"after_stagnation": 2, "metric": "time/update_s"}}]},
        {},
        "is a time",
    ),
    "samples of a round that has none": (
        {"new": [{**MOVING, "follow": {"after_stagnation": 2}}]},
        {"rounds": [SFT]},
        "sft learns from a file",
    ),
    "the KL of a reference": (
        {"new": [{**MOVING, "follow": {"every": 20, "above": 0.1}}]},
        {"rounds": [{**SFT, "algorithm": {"name": "dpo", "pairs": "file"}}]},
        "follow.above is the KL of a term",
    ),
    "a metric of no kind": (
        {"new": [{**MOVING, "follow": {"after_stagnation": 2, "metric": "rewards/mean"}}]},
        {},
        "is none that a step reports",
    ),
    "one term twice": ({"new": [MOVING, MOVING]}, {}, "two anchors to 'parent~1/20'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anchors_that_cannot_move_are_refused(case: str) -> None:
    anchors, changes, message = REFUSED[case]
    with pytest.raises(ValidationError, match=message):
        made({"anchors": anchors}, **changes)


def test_a_frozen_anchor_is_stored_as_it_always_was() -> None:
    frozen = made({"anchors": {"new": {"to": "parent", "beta": 0.1}}})
    assert all("follow" not in a for a in frozen.content()["rounds"][0]["anchors"]["new"])
    moving = made({"anchors": {"new": MOVING}})
    assert moving.content()["rounds"][0]["anchors"]["new"][0]["follow"]["every"] == 20
    assert moving.hash() != frozen.hash()
