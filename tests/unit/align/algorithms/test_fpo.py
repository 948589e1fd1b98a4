"""FPO by hand, as DPO without its factor, and what its factor does to settled pairs."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.preference.dpo import DPO
from align.algorithms.preference.fpo import FPO
from align.algorithms.rows import Totals
from tests.unit.align.algorithms.test_dpo import BETA, inputs

PAIRS = ((-5.0, -7.0, -6.0, -6.0, 2, 4), (-4.0, -2.0, -2.0, -1.0, 2, 1))
"""Margins 2 and -1, as worked out in `test_dpo`."""
TOTALS = Totals(tokens=9, sequences=4, units=2)


def test_a_step_by_hand() -> None:
    """With beta .5 and margins 2 and -1 the probabilities are sigmoid(1) and sigmoid(-.5)."""
    right, wrong = 1 / (1 + exp(-1)), 1 / (1 + exp(0.5))
    loss, metrics = FPO(beta=BETA, gamma=2.0).pair_loss(inputs(*PAIRS), TOTALS)
    expected = -((1 - right) ** 2) * log(right) - (1 - wrong) ** 2 * log(wrong)
    assert loss.item() == pytest.approx(expected / 2)
    assert metrics["pairs/accuracy"].item() == 0.5


@pytest.mark.parametrize("smoothing", [{}, {"label_smoothing": 0.2}])
def test_without_its_exponent_it_is_dpo(smoothing: dict[str, Any]) -> None:
    ours, _ = FPO(beta=BETA, gamma=0.0, **smoothing).pair_loss(inputs(*PAIRS), TOTALS)
    theirs, _ = DPO(beta=BETA, **smoothing).pair_loss(inputs(*PAIRS), TOTALS)
    assert ours.item() == theirs.item()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_margins_beyond_float32_have_a_finite_gradient(gamma: float) -> None:
    """A settled pair has none, and a lost one has DPO's: its factor is 1."""
    margins_U = torch.tensor([1e4, -1e4], requires_grad=True)
    loss_U = FPO(beta=1.0, gamma=gamma).margin_loss(margins_U)
    loss_U.sum().backward()
    assert loss_U.tolist() == [0.0, 1e4]
    assert margins_U.grad is not None
    assert margins_U.grad.tolist() == [0.0, -1.0]


def test_a_settled_pair_weighs_a_hundredth_at_two() -> None:
    margin_U = torch.tensor([log(9.0)], dtype=torch.float64)  # p = .9
    focal, plain = (
        algorithm.margin_loss(margin_U).item()
        for algorithm in (FPO(beta=1.0, gamma=2.0), DPO(beta=1.0))
    )
    assert focal == pytest.approx(0.01 * plain)


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"loss": "ipo"}, {"loss": "hinge"}])
def test_what_has_no_focal_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        algorithm_from({"name": "fpo", **wrong})
