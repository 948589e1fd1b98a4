"""Base of imitation algorithms such as SFT, whose loss makes the tokens of a row likely.

    L = 1/N sum_t l_t        l_t = -log pi(y_t | x, y_<t), or the loss of a subclass

with ``N`` all completion tokens that teach in the mini-batch: a long answer counts for more than a
short one, and prompts do not count. Likelihoods are taken at temperature 1 whatever the sampling's
temperature, since demonstrations were not drawn at it.

No importance weight is applied. These losses want the given tokens likely, or two distributions alike
after the given prefix; who sampled the prefix does not bias them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from align.algorithms.base import Algorithm, LossAndMetrics
from align.algorithms.rows import Batch, Totals, row_of
from rollouts.types import ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs


class Imitation(Algorithm):
    """Base of algorithms whose loss is a mean over the tokens of the rows that teach."""

    needs_rewards: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, str]] = {"importance": "tokens are learned whoever sampled them"}

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        """Make rows of samples drawn beside a file's examples; only KL terms act on them."""
        return sampled_rows(groups, None)

    def losses(self, outputs: Outputs) -> Tensor:
        """Compute the loss of every token, in nats, with gradient; shape ``N``."""
        return -outputs.tempered(1.0).logprobs_N

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        teaches_N = micro.teaches_N
        if not teaches_N.any():
            return outputs.logprobs_N.sum() * 0.0, {}
        taught = outputs if teaches_N.all() else outputs.at(teaches_N.nonzero()[:, 0])
        loss = self.losses(taught).sum() / totals.tokens
        return loss, {"loss/policy": loss.detach()}


def sampled_rows(groups: Sequence[ScoredGroup], advantage: float | None) -> Batch:
    """Make a row of every completion that has tokens, all with the same advantage."""
    return Batch(
        rows=tuple(
            row_of(scored.group, completion, advantage)
            for scored in groups
            for completion in scored.group.completions_G
            if completion.token_ids
        )
    )
