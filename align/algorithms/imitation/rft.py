"""RFT: rejection-sampling fine-tuning. Sample, keep the best, imitate them.

    L = -1/N sum_{y kept} sum_t log pi(y_t | x, y_<t)

``keep: 1`` without a threshold is RAFT's best of a group (Dong et al. 2023, arXiv 2304.06767); a
threshold at the score of a correct answer, and ``keep`` at the group size, is rejection sampling with
distinct answers (Yuan et al. 2023, arXiv 2308.01825). Both sample once for a whole round; here every
step samples with the policy it has just improved.

It is a policy gradient without a baseline for the rejected: robust to the reward's scale, blind to
what is bad.
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
    """Most completions of one prompt that are imitated; of equal ones a single one."""
    threshold: float | None = None
    """Smallest score that is imitated; None: the best are, however poor."""

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
        """The completions of one group that are imitated, best first; of equal scores the earlier."""
        found: dict[tuple[int, ...], tuple[float, Completion]] = {}
        for completion, score in zip(scored.group.completions_G, scored.scores_G, strict=True):
            if score.value is None or not completion.token_ids:
                continue
            if self.threshold is None or score.value >= self.threshold:
                found.setdefault(completion.token_ids, (score.value, completion))
        ranked = sorted(found.values(), key=lambda pair: -pair[0])
        return [completion for _, completion in ranked[: self.keep]]
