"""Importance weights by hand, by property, and where numbers overflow."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.importance import ImportanceConfig, importance_weights

ROWS_N = torch.tensor([0, 0, 2, 2])
"""Row 1 has no tokens here."""


def weights(log_ratios: list[float], **config: Any) -> list[float]:
    return importance_weights(torch.tensor(log_ratios), ROWS_N, ImportanceConfig(**config)).tolist()


@pytest.mark.parametrize(
    ("level", "limit", "expected"),
    [
        ("token", "truncate", [3.0, 0.25, 2.0, 0.5]),
        ("token", "mask", [0.0, 0.0, 2.0, 0.5]),
        ("sequence", "truncate", [1.0, 1.0, 1.0, 1.0]),
        ("sequence", "mask", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_by_hand(level: str, limit: str, expected: list[float]) -> None:
    """Ratios 4, 1/4, 2 and 1/2 under a cap of 3; the sequences' are 1."""
    found = weights([log(4), -log(4), log(2), -log(2)], level=level, limit=limit, cap=3.0)
    assert found == pytest.approx(expected)


def test_a_sequence_is_limited_as_a_whole() -> None:
    """Single tokens stay below the cap of 3, their products 4 and 1/4 do not."""
    ratios = [log(2), log(2), -log(2), -log(2)]
    truncated = weights(ratios, level="sequence", limit="truncate", cap=3.0)
    assert truncated == pytest.approx([3.0, 3.0, 0.25, 0.25])
    assert weights(ratios, level="sequence", limit="mask", cap=3.0) == [0.0] * 4


@given(
    st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    st.sampled_from(["token", "sequence"]),
    st.floats(1.1, 10),
)
def test_no_weight_is_beyond_its_limits(ratios: list[float], level: str, cap: float) -> None:
    assert max(weights(ratios, level=level, limit="truncate", cap=cap)) <= cap * (1 + 1e-6)
    for weight in weights(ratios, level=level, limit="mask", cap=cap):
        assert weight == 0.0 or (1 - 1e-6) / cap <= weight <= cap * (1 + 1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("limit", ["truncate", "mask"])
def test_equal_weights_leave_samples_as_they_are(level: str, limit: str) -> None:
    assert weights([0.0] * 4, level=level, limit=limit) == [1.0] * 4


def test_a_ratio_that_overflows_is_limited_like_any_other() -> None:
    """exp(500) is infinite, and infinite times masked would be no number."""
    far = [500.0, -500.0, 0.0, 0.0]
    assert weights(far, limit="mask") == [0.0, 0.0, 1.0, 1.0]
    assert weights(far, limit="truncate") == pytest.approx([2.0, 0.0, 1.0, 1.0])


def test_weights_carry_no_gradient() -> None:
    log_ratio_N = torch.zeros(4, requires_grad=True)
    found = importance_weights(log_ratio_N, ROWS_N, ImportanceConfig())
    assert not found.requires_grad


def test_weighted_means_are_those_of_the_learner_where_no_weight_is_cut() -> None:
    """Sampled from (.9, .1), wanted from (.5, .5), as if in these exact proportions."""
    sampler, wanted = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    log_ratio_N = (wanted / sampler).log()
    rows_N = torch.tensor([0, 1])
    whole = importance_weights(log_ratio_N, rows_N, ImportanceConfig(cap=5.1))
    assert float((sampler * whole * torch.tensor([1.0, 0.0])).sum()) == pytest.approx(0.5)
    assert float((sampler * whole).sum()) == pytest.approx(1.0)
    capped = importance_weights(log_ratio_N, rows_N, ImportanceConfig(cap=2.0))
    assert float((sampler * capped).sum()) == pytest.approx(0.5 + 0.1 * 2.0)
    assert capped.tolist() == pytest.approx([exp(float(log_ratio_N[0])), 2.0])
