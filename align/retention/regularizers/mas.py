"""Memory aware synapses: importance from how much a weight changes what the model says.

    Omega_i     1/M * sum_m | d  mean_n |logits_mn|^2 / d theta_i |    over samples m of the accepted policy
    Omega       Omega <- gamma * Omega + Omega_k                        after every accepted round k
    penalty     lambda * sum_i Omega_i * (theta_i - theta*_i)^2

Aljundi et al. 2018, arXiv 1711.09601, equations 3 to 5. The output is the vector of logits at a token, and
a sample's number is the mean of its squared length over the completion's tokens. It needs no labels and
no reward, and unlike the Fisher information it does not vanish where the policy is certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.config.retention.methods import MASConfig
from align.learner.ranks.sharding import gathered, local
from align.retention.regularizers.quadratic import ImportancePenalty
from align.retention.samples import laid_out, sample_gradients


class MAS(ImportancePenalty[MASConfig]):
    """Quadratic penalty whose importance is the sensitivity of the logits."""

    @property
    def scale(self) -> float:
        return self.config.strength

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the running importance, with that of the accepted round added."""
        view = self.view
        importance = laid_out(view.policy)
        temperature = view.spec.sampling.temperature
        for gradients in sample_gradients(
            view.policy, rows, temperature, view.ranks, squared_length
        ):
            for name, gradient in gradients.items():
                local(importance[name]).add_(gradient.abs(), alpha=1 / len(rows))
        self.added_to_earlier(importance, self.config.gamma)
        return gathered(importance.items(), keep=view.ranks.rank == 0)


def squared_length(outputs: Outputs) -> Tensor:
    """Return the squared length of the logits at temperature 1, mean over a sample's tokens."""
    hidden_ND = outputs.hidden_ND
    low = outputs.dtype != torch.float32
    with torch.autocast(hidden_ND.device.type, outputs.dtype, enabled=low, cache_enabled=False):
        logits_NV = outputs.head(hidden_ND)
    return logits_NV.float().square().sum(-1).mean()
