"""Training of a reward model, which gives each answer a number, on pairs of preferred and other answers.

    L = 1/U sum_u [ -log sigmoid(r_c - r_r - m_u) + centring * (r_c + r_r)^2 ]

``r_c`` and ``r_r`` are the rewards of the chosen and the rejected answer of pair ``u``; ``m_u`` is its
margin, the difference by which the chosen one should win, 0 unless the data have one.

Source: Bradley & Terry 1952 as in Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin as in
Touvron et al. 2023, arXiv 2307.09288, eq. 2; the centring term as in Eisenstein et al. 2023, arXiv
2312.09244. Together this is the loss of TRL's `RewardTrainer`.

Assumes that each pair compares two answers to the same prompt. A pair fixes only the difference of its
rewards; without centring their level is free to drift. The letter ``U`` counts pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.base import Algorithm, LossAndMetrics, Material

if TYPE_CHECKING:
    from torch import Tensor


class RewardModel(Algorithm):
    """Training of a reward model; the policy stays unchanged."""

    name: Literal["reward_model"] = "reward_model"
    centring: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the squared sum of a pair's rewards, which keeps rewards centred at 0; 0 turns it off."""

    makes: ClassVar[Literal["policy", "reward_model"]] = "reward_model"
    needs_rewards: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, str]] = {
        "importance": "the round samples nothing",
        "sampling.max_staleness": "the round samples nothing",
        "sampling.in_flight": "the round samples nothing",
        "replay": "the round learns from its pairs alone, and the policy does not move",
        "anchors": "the policy does not move",
        "retention": "the policy does not move",
        "meter_every": "the policy does not drift",
        "repair": "the ladder repairs policies",
        "merge": "the round makes a reward model, and mergers merge policies",
        "gold": "the round samples nothing that could be scored",
        "checkpoint_every": "the round writes no checkpoints; after a stop it starts over",
    }

    @property
    def material(self) -> Material:
        return "pairs"

    def loss(
        self, chosen_U: Tensor, rejected_U: Tensor, margins_U: Tensor, num_pairs: int
    ) -> LossAndMetrics:
        """Compute loss and metrics, both summable over the micro-batches of a step.

        Args:
            chosen_U: rewards of the chosen answers, with gradient.
            rejected_U: rewards of the rejected answers, with gradient.
            margins_U: differences by which the chosen answers should win.
            num_pairs: pairs of the whole step.
        """
        gap_U = chosen_U - rejected_U
        # -log sigmoid(x) = log(exp(0) + exp(-x)) does not overflow for any x.
        surprise_U = (margins_U - gap_U).logaddexp(gap_U.new_zeros(()))
        loss_U = surprise_U + self.centring * (chosen_U + rejected_U) ** 2
        measured = {
            "loss/reward_model": loss_U,
            "pairs/accuracy": (gap_U > 0).float(),
            "pairs/margin": gap_U,
            "reward/mean": (chosen_U + rejected_U) / 2,
        }
        metrics = {name: values_U.detach().sum() / num_pairs for name, values_U in measured.items()}
        return loss_U.sum() / num_pairs, metrics
