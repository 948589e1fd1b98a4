"""What every retention method ensures: exact resume, on full weights and adapters, after a first round."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.retention.methods import EWCConfig, RetentionConfig
from align.config.retention.registry import RETENTION
from align.learner.training import Objective
from tests.unit.align.retention.trainings import (
    MIXED,
    accepted,
    after_a_step,
    begin,
    kinds_of,
    learner_of,
    weights_of,
)

SETTINGS: dict[str, RetentionConfig] = {
    name: EWCConfig(strength=50.0) if name == "ewc" else config()  # type: ignore[call-arg]
    for name, config in RETENTION.items()
    if name != "kl_anchors"
}
"""Settings of each method; `begin` sets the KL anchors."""


@pytest.mark.parametrize(
    ("name", "policy"), [(name, kind) for name in SETTINGS for kind in kinds_of(SETTINGS[name])]
)
def test_a_second_round_goes_on_from_a_checkpoint_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, policy: str, name: str
) -> None:
    """Weights, metrics and what the method keeps after acceptance, as if nothing had been stopped."""
    first = after_a_step(learner_of(models, tmp_path, policy), SETTINGS[name])
    artifacts = accepted(first, tmp_path / "first", name)
    identity = {"config": "abc"}
    straight = begin(first.learner, SETTINGS[name], artifacts=artifacts)
    for _ in range(2):
        straight.update(MIXED)
    straight.checkpoint(tmp_path / "kept", 2, identity=identity)
    expected = [{**straight.update(MIXED), "time/update_s": 0.0} for _ in range(2)]
    resumed = begin(learner_of(models, tmp_path, policy), SETTINGS[name], artifacts=artifacts)
    checkpoint = resumed.restore(tmp_path / "kept", identity=identity)
    assert checkpoint is not None and checkpoint.step == 2
    assert [{**resumed.update(MIXED), "time/update_s": 0.0} for _ in range(2)] == expected
    ours, theirs = weights_of(resumed), weights_of(straight)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    kept, again = (
        accepted(training, tmp_path / label, name).get(name)
        for label, training in (("straight", straight), ("resumed", resumed))
    )
    assert (kept is None) == (again is None) == (not SETTINGS[name].keeps_artifact)
    if kept is not None and again is not None:
        assert kept.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("source", ["new", "past"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_whose_loss_is_not_finite_moves_nothing(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    source: str,
) -> None:
    """The loss is that of the round's own rows or of replayed ones; the step is counted as skipped."""
    training = begin(learner_of(models, tmp_path, kinds_of(SETTINGS[name])[0]), SETTINGS[name])
    training.update(MIXED)
    before, tensors = weights_of(training), training.state().weights
    state = {key: tensor.clone() for key, tensor in tensors.items()}
    measure = Objective.measure

    def overflowing(objective: Objective, micro: Any, *rest: Any) -> Any:
        measured = measure(objective, micro, *rest)
        hit = any(row.source == source for row in micro.rows)
        return replace(measured, loss=measured.loss * nan) if hit else measured

    monkeypatch.setattr(Objective, "measure", overflowing)
    metrics = training.update(MIXED)
    assert metrics["steps_skipped"] == 1.0
    assert all(torch.equal(before[key], now) for key, now in weights_of(training).items())
    assert all(torch.equal(state[key], now) for key, now in training.state().weights.items())
