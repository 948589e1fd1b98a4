"""Trust region: the length of a step by hand, and the KL that steps of real learners cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.rows import Batch
from align.config.retention.methods import TrustRegionConfig
from align.retention.trust_region import LARGEST, TrustRegion, factor_of
from tests.unit.align.retention.trainings import NEW, begin, learner_of, weights_of


def test_the_factor_is_the_root_of_the_ratio_within_its_bounds() -> None:
    assert factor_of(4e-4, 1e-4, share=1.0) == pytest.approx(0.5)
    assert factor_of(1e-4, 4e-4, share=0.25) == pytest.approx(0.5)
    assert factor_of(1e-12, 1.0, share=1.0) == LARGEST
    assert factor_of(float("nan"), 1e-4, share=1.0) == 1.0


@given(st.floats(1e-3, 1e3), st.floats(0.2, 5.0))
def test_a_quadratic_kl_ends_at_the_one_that_is_wanted(curvature: float, length: float) -> None:
    wanted = curvature * length**2 / 4
    factor = factor_of(curvature * length**2, wanted, share=1.0)
    assert curvature * (factor * length) ** 2 == pytest.approx(wanted)


@pytest.mark.parametrize(("policy", "rate"), [("full", 1e-5), ("lora", 1e-4)])
def test_steps_of_any_rate_move_what_the_policy_says_as_far(
    models: dict[str, Path], tmp_path: Path, policy: str, rate: float
) -> None:
    """Rates a factor of four apart: without the method, the KL of a step differs by about its square."""
    reached = {}
    for lr in (rate, 4 * rate):
        training = begin(
            learner_of(models, tmp_path, policy), TrustRegionConfig(kl=1e-5, rows=64), lr=lr
        )
        start = weights_of(training)
        metrics = training.update(Batch(rows=NEW))
        method = training.penalties[-1]
        assert isinstance(method, TrustRegion)
        after_N = method._logprobs()
        for name, parameter in training.learner.policy.named_parameters().items():
            parameter.data.copy_(start[name])
        difference_N = method._logprobs() - after_N
        reached[lr] = float((torch.expm1(-difference_N) + difference_N).mean())
        assert metrics["trust_region/factor"] != 1.0
    assert list(reached.values()) == pytest.approx([1e-5, 1e-5], rel=0.25)
