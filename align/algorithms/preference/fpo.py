"""FPO: focal preference optimisation, in which pairs that the policy already orders right weigh little.

    p = sigmoid(beta h),  h as in DPO
    L = -(1 - p)^gamma log p

With ``gamma`` 0 it is DPO. At 2 a pair with ``p = .9`` has a hundredth of DPO's loss, so the policy stops
moving for pairs that are settled, and what earlier rounds taught it drifts less. Source: LifeAlign, Li et
al. 2025, arXiv 2509.17183, with the focal loss of Lin et al. 2017, arXiv 1708.02002.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from align.algorithms.preference.dpo import DPO, sigmoid

if TYPE_CHECKING:
    from torch import Tensor


class FPO(DPO):
    """Focal preference optimisation."""

    name: Literal["fpo"] = "fpo"  # type: ignore[assignment]
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the factor ``1 - p`` on a pair's loss; 0 is DPO."""
    loss: Literal["sigmoid"] = "sigmoid"
    """Function of the margin: the focal factor needs the probability that only ``sigmoid`` gives."""

    def margin_loss(self, margins_U: Tensor) -> Tensor:
        # The factor is taken from its logarithm: a power of a probability that has become 0 has no
        # finite gradient below an exponent of 1.
        log_wrong_U = -sigmoid(-margins_U, self.beta)
        return (self.gamma * log_wrong_U).exp() * sigmoid(margins_U, self.beta)
