"""RFT: rejection-sampling fine-tuning, which imitates the best of the policy's own samples.

    L = -1/N sum_{y kept} sum_t log pi(y_t | x, y_<t)

``keep: 1`` without a threshold is RAFT's best of a group (Dong et al. 2023, arXiv 2304.06767); a
threshold at the score of a correct answer, and ``keep`` at the group size, is rejection sampling with
distinct answers (Yuan et al. 2023, arXiv 2308.01825). Both sample once for a whole round; here every
step samples with the policy it has just improved.

RFT is a policy gradient that ignores the rejected samples: robust to the reward's scale, but it does not
learn what to avoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.imitation.imitation import Imitation
from align.algorithms.rows import Batch, row_of
from rollouts.types import Completion, ScoredGroup


class RFT(Imitation):
    """Rejection-sampling fine-tuning."""

    name: Literal["rft"] = "rft"
    keep: Annotated[int, Field(ge=1)] = 1
    """Largest number of completions of one prompt that are imitated; equal completions count once."""
    threshold: float | None = None
    """Smallest score that is imitated; None imitates the best, however poor they are."""

    needs_rewards: ClassVar[bool] = True

    def informative(self, scored: ScoredGroup) -> bool:
        return bool(self.best(scored))

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        rows = tuple(
            row_of(scored.group, completion, 1.0)
            for scored in groups
            for completion in self.best(scored)
        )
        sampled = sum(bool(c.token_ids) for g in groups for c in g.group.completions_G)
        counts = {"rft/kept": float(len(rows)), "rft/dropped": float(sampled - len(rows))}
        return Batch(rows=rows, metrics=counts)

    def best(self, scored: ScoredGroup) -> list[Completion]:
        """Choose the completions of one group that are imitated, best first; ties keep their order."""
        eligible: dict[tuple[int, ...], tuple[float, Completion]] = {}
        for completion, score in zip(scored.group.completions_G, scored.scores_G, strict=True):
            if score.value is None or not completion.token_ids:
                continue
            if self.threshold is None or score.value >= self.threshold:
                eligible.setdefault(completion.token_ids, (score.value, completion))
        ranked = sorted(eligible.values(), key=lambda pair: -pair[0])
        return [completion for _, completion in ranked[: self.keep]]
