"""CPPO: PPO whose rollouts weigh by how sure the policy is of them and by how well they score.

    L = mean_{i,j} [ alpha_i L_clip,ij + keep * beta_i (log pi(y_ij) - log pi_{t-1}(y_ij))^2 ] + value loss

The mean is over all tokens j of all rollouts i. ``alpha`` grows with the rollout's log-probability ``P``,
since the policy should learn from what it is likely to say, and ``beta`` with its score ``R``, since it
should keep what it says well. Both are 1 at the batch's mean, and go straight to their bounds at ``spread``
standard deviations from it:

    P and R high: learn and keep      P high, R low: learn, keep little      near the mean: 1 and 1
    P low, R high: keep, learn little      both low: do little of either

Source: CPPO, Zhang et al., ICLR 2024, section 3 (the heuristic weights; ``P`` is a mean over a rollout's
tokens here, so that its length does not matter). ``pi_{t-1}`` are the anchors of new prompts by their
weight, and the parent without any. Half the retention term is the estimator ``k2`` of the KL, so with equal
``beta`` it is an anchor on new prompts with the weight ``2 * keep``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import LossAndMetrics, Need
from align.algorithms.policy_gradient.actor_critic.ppo import PPO
from align.algorithms.rows import Row, Totals

if TYPE_CHECKING:
    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs


class CPPO(PPO):
    """Continual proximal policy optimisation, with weights of learning and keeping for each rollout."""

    name: Literal["cppo"] = "cppo"  # type: ignore[assignment]
    keep: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the knowledge-retention term, per squared nat."""
    spread: Annotated[float, Field(gt=0)] = 1.0
    """Number of standard deviations from the batch's mean at which a rollout's weights reach a bound."""
    bounds: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=1)]] = (0.5, 2.0)
    """Smallest and largest weight of a rollout."""

    needs = frozenset[Need]({"start", "values", "reference"})
    anchors_are_reference: ClassVar[bool] = True

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if self.bounds[0] == self.bounds[1] and self.changed("spread"):
            raise ValueError(
                f"spread is {self.spread:g} and bounds leave every weight at 1; remove spread, or widen "
                "bounds"
            )
        return self

    def needs_of(self, row: Row) -> frozenset[Need]:
        """Return the needs of a row; one that only KL terms hold is compared with no reference."""
        return self.needs if row.advantage is not None else self.needs - {"reference"}

    def complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Give the scored rows PPO's numbers, times their weight of learning, and a weight of keeping."""
        completed = super().complete(rows)
        scored = [row for row in completed if row.advantage is not None]
        likely = weights([fmean(row.start_logprobs_T or (0.0,)) for row in scored], self)
        good = weights([row.advantage or 0.0 for row in scored], self)
        weighted = [
            replace(
                row,
                advantages_T=tuple(alpha * value for value in row.advantages_T or ()),
                keep_weight=beta,
            )
            for row, alpha, beta in zip(scored, likely, good, strict=True)
        ]
        return [*weighted, *(row for row in completed if row.advantage is None)]

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        loss, metrics = super().objective(micro, outputs, totals)
        teaches_N = micro.teaches_N
        if not teaches_N.any():
            return loss, metrics
        reference_N = micro.of_tokens("reference_logprobs_T")[teaches_N]
        beta_N = micro.of_rows("keep_weight")[micro.rows_N][teaches_N]
        term_N = beta_N * (outputs.logprobs_N[teaches_N] - reference_N).square()
        if micro.weights_N is not None:
            term_N = term_N * micro.weights_N[teaches_N]
        retention = term_N.sum() / totals.tokens
        return loss + self.keep * retention, {
            **metrics,
            "loss/knowledge_retention": retention.detach(),
        }


def weights(values: Sequence[float], settings: CPPO) -> list[float]:
    """Return each rollout's weight: 1 at the mean, and a bound at ``spread`` deviations from it.

    >>> weights([-1.0, 0.0, 1.0], CPPO(spread=2.0, bounds=(0.5, 2.0)))  # The deviation is .8165.
    [0.6938..., 1.0, 1.6123...]
    """
    low, high = settings.bounds
    width = settings.spread * pstdev(values) if len(values) > 1 else 0.0
    if not width:
        return [1.0] * len(values)
    mean = fmean(values)
    scaled = [min(max((value - mean) / width, -1.0), 1.0) for value in values]
    return [1.0 + z * (high - 1.0 if z > 0 else 1.0 - low) for z in scaled]
