"""DPO: direct preference optimisation, against one reference or several anchors at once.

    h = log pi(chosen) / ref(chosen) - log pi(rejected) / ref(rejected)
    L = -log sigmoid(beta h)      sigmoid: Rafailov et al. 2023, arXiv 2305.18290, eq. 7
        (h - 1 / (2 beta))^2      ipo: Azar et al. 2023, arXiv 2310.12036, eq. 17
        max(0, 1 - beta h)        hinge: Liu et al. 2023, arXiv 2309.06657, after SLiC, arXiv 2305.10425

The mean is over pairs. Where labels are flipped with probability ``e``, ``conservative`` smoothing takes
``(1-e) L(h) + e L(-h)`` (cDPO: Mitchell 2023, "A note on DPO with noisy preferences"), and ``robust``
``((1-e) L(h) - e L(-h)) / (1-2e)``, whose expectation over the flips is the clean loss (rDPO:
Chowdhury et al. 2024, arXiv 2403.00409).

A loss of the margin alone may lower the chosen answer too, as long as it lowers the rejected one more, and
moves probability to answers in neither (Razin et al. 2024, arXiv 2410.08847). ``sft`` adds

    - log pi(chosen) / |chosen|      Pang et al. 2024, arXiv 2404.19733, eq. 1

Several anchors are one reference. With weights ``w_k`` that sum to one,

    sum_k w_k KL(pi || ref_k) = KL(pi || mix) - log Z(x)
    log mix(y|x) = sum_k w_k log ref_k(y|x) - log Z(x),    Z(x) = sum_y prod_k ref_k(y|x)^w_k

so the policy that trades reward against all anchors is DPO's with the reference ``mix``. ``Z`` depends on
the prompt alone: it cancels in ``h``, and the weighted mean of the anchors' log-probabilities is exact.
If log-ratios are averaged over the tokens of answers of unequal length, it is an approximation.

Assumes that both answers of a pair belong to one prompt and that the reference can produce either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import LossAndMetrics, Need
from align.algorithms.preference.preference import PairInputs, Preference
from align.algorithms.rows import Totals

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["sigmoid", "ipo", "hinge"]
Smoothing = Literal["conservative", "robust"]


def sigmoid(margins_U: Tensor, beta: float) -> Tensor:
    """Compute ``-log sigmoid(beta h)``; shape ``U``."""
    # log(exp(0) + exp(-x)) does not overflow for any x.
    return (-beta * margins_U).logaddexp(margins_U.new_zeros(()))


def ipo(margins_U: Tensor, beta: float) -> Tensor:
    """Compute ``(h - 1 / (2 beta))^2``; shape ``U``. The margin has a target, and so stays bounded."""
    return (margins_U - 1 / (2 * beta)).square()


def hinge(margins_U: Tensor, beta: float) -> Tensor:
    """Compute ``max(0, 1 - beta h)``; shape ``U``. A pair beyond the margin has no gradient."""
    return (1 - beta * margins_U).relu()


LOSSES: dict[Loss, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
}


def conservative(right_U: Tensor, flipped_U: Tensor, rate: float) -> Tensor:
    """Compute the expected loss under labels that are wrong at this rate; shape ``U``."""
    return (1 - rate) * right_U + rate * flipped_U


def robust(right_U: Tensor, flipped_U: Tensor, rate: float) -> Tensor:
    """Compute a loss whose expectation under labels wrong at this rate is the clean loss; shape ``U``."""
    return ((1 - rate) * right_U - rate * flipped_U) / (1 - 2 * rate)


SMOOTHINGS: dict[Smoothing, Callable[[Tensor, Tensor, float], Tensor]] = {
    "conservative": conservative,
    "robust": robust,
}


class DPO(Preference):
    """Direct preference optimisation."""

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull toward the reference: rewards are ``beta`` times a log-ratio in nats."""
    loss: Loss = "sigmoid"
    """Function of the margin between the two log-ratios that is minimised."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose sides are swapped."""
    smoothing: Smoothing = "conservative"
    """Correction for swapped pairs: ``conservative`` is cDPO, ``robust`` is rDPO."""
    length_normalised: bool | None = None
    """Take log-ratios as means over an answer's tokens instead of sums. None: only for ``ipo``, as its
    authors do."""

    sft: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's negative log-likelihood, a mean over its tokens, beside the loss:
    it keeps the chosen answer from becoming less likely together with the rejected one."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    anchors_are_reference: ClassVar[bool] = True

    @model_validator(mode="after")
    def _smooths(self) -> Self:
        if not self.label_smoothing and self.changed("smoothing"):
            raise ValueError(
                f"smoothing {self.smoothing} corrects for swapped labels and label_smoothing is 0; set "
                "label_smoothing to the share that is swapped, or leave smoothing out"
            )
        return self

    @property
    def averages_tokens(self) -> bool:
        """True if log-ratios are means over an answer's tokens."""
        return self.loss == "ipo" if self.length_normalised is None else self.length_normalised

    def margin_loss(self, margins_U: Tensor) -> Tensor:
        """Compute the loss of margins between two log-ratios; shape ``U``."""
        return LOSSES[self.loss](margins_U, self.beta)

    def pair_loss(self, inputs: PairInputs, totals: Totals) -> LossAndMetrics:
        chosen_U = inputs.chosen_logprobs_U - inputs.chosen_reference_U
        rejected_U = inputs.rejected_logprobs_U - inputs.rejected_reference_U
        margins_U = chosen_U - rejected_U
        if self.averages_tokens:
            margins_U = chosen_U / inputs.chosen_tokens_U - rejected_U / inputs.rejected_tokens_U
        loss_U = SMOOTHINGS[self.smoothing](
            self.margin_loss(margins_U), self.margin_loss(-margins_U), self.label_smoothing
        )
        measured = {
            "pairs/accuracy": (chosen_U > rejected_U).float(),
            "pairs/margin": self.beta * (chosen_U - rejected_U),
            "pairs/chosen_reward": self.beta * chosen_U,
            "pairs/rejected_reward": self.beta * rejected_U,
        }
        metrics = {
            name: value_U.detach().sum() / totals.units for name, value_U in measured.items()
        }
        if self.sft:
            loss_U = loss_U - self.sft * inputs.chosen_logprobs_U / inputs.chosen_tokens_U
        return loss_U.sum() / totals.units, metrics
