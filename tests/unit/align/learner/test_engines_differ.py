"""Engines that compute other numbers than the learner: every token they sample is weighted."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.campaign import OptimizerConfig, PolicyConfig, RoundSettings
from align.config.policy import EngineConfig
from align.learner.learner import Learner
from align.learner.references import References
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model


@pytest.mark.parametrize("differ", [False, True])
def test_samples_of_the_same_weights_are_weighted_where_engines_differ(tmp_path, differ):
    """The engine says each token is 0.1 nats likelier than the learner: the weight is exp(-0.1)."""
    model = save_model(tmp_path / "m")
    engines = EngineConfig(dtype="bfloat16" if differ else "auto", probe_tolerance=0.3)
    learner = Learner(
        model,
        PolicyConfig(model=str(model)),
        folder_of=lambda _: model,
        scratch=tmp_path,
        tolerance=engines.probe_tolerance,
        engines=engines,
    )
    training = learner.begin(
        RoundSettings(optimizer=OptimizerConfig(lr=1e-9)),
        References(base="b", parent="b"),
        num_steps=1,
        seed=0,
        penalties=RetentionMethods(),
    )
    learner.weights("v")
    plain = row(completion=(4, 5, 6))
    (logprobs,) = learner.completion_logprobs([plain])
    sampled = replace(
        plain, policy="v", sampler_logprobs_T=tuple(value + 0.1 for value in logprobs)
    )
    torch.manual_seed(0)
    metrics = training.update(Batch(rows=[sampled, replace(sampled, advantage=-1.0)]))
    # Relative to logprobs beyond one nat.
    assert metrics["parity/max_abs_diff"] == pytest.approx(
        max(0.1 / max(1.0, abs(value + 0.1)) for value in logprobs), abs=1e-3
    )
    shift = 1 - exp(-0.1) if differ else None
    assert metrics.get("importance/mean_abs_shift") == (
        pytest.approx(shift, abs=1e-3) if differ else None
    )
