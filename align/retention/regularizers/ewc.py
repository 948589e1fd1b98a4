"""Online elastic weight consolidation with a diagonal Fisher information.

    penalty     lambda / 2 * sum_i F_i * (theta_i - theta*_i)^2
    gradient    lambda * F_i * (theta_i - theta*_i)
    F           F <- gamma * F + F_k    after every accepted round k

Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3, keep one such term for every task. This is the
online form of Schwarz et al. 2018, arXiv 1805.06370, section 3: one running F that decays by gamma, and
one centre theta*, which is re-centred at the newest accepted weights. `fisher` in this folder estimates
F_k from samples of the accepted policy, and `ImportancePenalty` holds what the importances share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.methods import EWCConfig
from align.learner.ranks.sharding import gathered
from align.retention.regularizers.fisher import diagonal_fisher
from align.retention.regularizers.quadratic import ImportancePenalty


class EWC(ImportancePenalty[EWCConfig]):
    """Quadratic penalty whose importance is the Fisher information."""

    importance_name = "Fisher information"

    @property
    def scale(self) -> float:
        return self.config.strength / 2

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the running F, with that of the accepted round added."""
        view = self.view
        fisher = diagonal_fisher(view.policy, rows, view.spec.sampling.temperature, view.ranks)
        fisher = self.added_to_earlier(fisher, self.config.gamma)
        return gathered(fisher.items(), keep=view.ranks.rank == 0)
