"""Anchors that move after the policy: when, how far, exact resume, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.algorithms.rows import Batch
from align.config.campaign import AnchorsConfig, OptimizerConfig, RoundSettings
from align.config.learning import AnchorConfig, FollowConfig
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.unit.align.config.test_retention_config import made
from tests.unit.align.retention.trainings import NEW, learner_of, weights_of


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


MOVING: dict[str, Any] = {"to": "parent", "beta": 0.1, "follow": {"every": 20}}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an owner": ({"past": [{**MOVING, "to": "owner"}]}, {}, "follow moves one anchor"),
    "an adapter": (
        {"new": [MOVING]},
        {"policy": {"model": "demo://digits", "lora": {"rank": 2}}},
        "follow moves a copy of full weights",
    ),
    "ranks": (
        {"new": [MOVING]},
        {"policy": {"model": "demo://digits", "ranks": 2}},
        "policy has 2 ranks",
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
