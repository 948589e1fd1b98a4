"""Reward models: one number per answer, learnt from pairs of which one was preferred.

    L = 1/U sum_u [ -log sigmoid(r_c - r_r - m_u) + centring * (r_c + r_r)^2 ]

``r_c`` and ``r_r`` are the rewards of the chosen and the rejected answer of pair ``u``, ``m_u`` its
margin: by how much the chosen one should win, 0 unless the data say so.

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
    """Trains a reward model in place of the policy, which stays as it is."""

    name: Literal["reward_model"] = "reward_model"
    centring: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the squared sum of a pair's rewards, which keeps their middle at 0. 0 turns it off."""

    makes: ClassVar[Literal["policy", "reward_model"]] = "reward_model"
    needs_rewards: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, str]] = {
        "importance": "it samples nothing",
        "sampling.max_staleness": "it samples nothing",
        "sampling.in_flight": "it samples nothing",
        "replay": "its pairs are all it learns from, and the policy does not move",
        "anchors": "the policy does not move",
        "retention": "the policy does not move",
        "meter_every": "the policy does not drift",
        "repair": "the ladder repairs policies",
        "gold": "it samples nothing that could be scored",
        "checkpoint_every": "it writes no checkpoints: one that was stopped starts over",
    }

    @property
    def material(self) -> Material:
        return "pairs"

    def loss(
        self, chosen_U: Tensor, rejected_U: Tensor, margins_U: Tensor, num_pairs: int
    ) -> LossAndMetrics:
        """The formula, summable over the micro-batches of a step.

        Args:
            chosen_U, rejected_U: rewards with gradient.
            num_pairs: pairs of the whole step.
        """
        gap_U = chosen_U - rejected_U
        # -log sigmoid(x) = log(exp(0) + exp(-x)), which no x can overflow.
        surprise_U = (margins_U - gap_U).logaddexp(gap_U.new_zeros(()))
        loss_U = surprise_U + self.centring * (chosen_U + rejected_U) ** 2
        with_U = {
            "loss/reward_model": loss_U,
            "pairs/accuracy": (gap_U > 0).float(),
            "pairs/margin": gap_U,
            "reward/mean": (chosen_U + rejected_U) / 2,
        }
        metrics = {name: values.detach().sum() / num_pairs for name, values in with_U.items()}
        return loss_U.sum() / num_pairs, metrics
