"""N-LoRA: a round's update is sparse, so that the updates of several rounds rarely move the same weight.

    penalty     lambda * sum over layers of sum |s B_t A_t|

Yang et al. 2024, arXiv 2410.10179: an L1 penalty on the update of the present round, which is merged into
the weights afterwards. Where no two updates are nonzero at one weight they are orthogonal, too. Nothing of
earlier rounds is needed. The update has its scale s here, so that it is the change of the weights. The
released code multiplies the factors in the other order, which gives r x r numbers for square layers: its
lambda means nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from align.config.retention.adapters import NLoRAConfig
from align.learner.model.adapter import factor_names
from align.retention.base import RetentionMethod

if TYPE_CHECKING:
    from torch import Tensor


class NLoRA(RetentionMethod[NLoRAConfig]):
    """L1 penalty on what the present adapter adds to the weights."""

    acts_on_weights = True

    _factors: tuple[tuple[str, str, float], ...]
    """Names of A and B of every adapted layer, and their scale."""

    def before_round(self) -> None:
        """Find the adapted layers."""
        self._factors = tuple(factor_names(self.view.policy.model))

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for a, b, scale in self._factors:
            yield self.config.strength * scale * (weights[b] @ weights[a]).abs().sum()
