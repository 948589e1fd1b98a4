"""COPR: a fit of the optimal policy's distribution over the ranked answers to a prompt.

    P(y | Y_x)  = pi(y | x) / sum_{y' in Y_x} pi(y' | x)                          the policy's own shares
    P*(y | Y_x) = ref(y | x) exp(A(y) / beta) / sum_{y'} ref(y' | x) exp(A(y') / beta)
    A(y_j) = r (2 j - J - 1) / (J - 1)          j is the rank among J answers, 1 the worst
    L = mean_x 1/J sum_j [log P(y_j | Y_x) - log P*(y_j | Y_x)]^2

The policy that is optimal under a reward has the shares ``P*``, and the normaliser over all answers cancels
in them. The advantage is linear in the rank, so it has no more range than ``r`` and a margin that is
reached is not widened further, as DPO's is. Source: COPR, Zhang et al. 2024, arXiv 2402.14228 (and arXiv
2310.15694). There ``r`` is drawn from Beta(J - 1, 2) for each prompt; here it is the mean of that,
``(J - 1) / (J + 1)``, so that a round can be repeated. Its constraint on earlier rounds is the retention
method ``copr``, which goes with other algorithms that learn from pairs, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import LossAndMetrics, Need
from align.algorithms.preference.preference import Preference, held_by_anchors
from align.algorithms.rows import Batch, Row, Totals, row_of
from rollouts.types import ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs


class COPR(Preference):
    """Continual optimal policy regularisation."""

    name: Literal["copr"] = "copr"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the target: advantages are divided by it, in nats."""
    reward: Annotated[float, Field(gt=0)] | None = None
    """Advantage of the best of a prompt's answers, and of the worst with the other sign. None:
    ``(J - 1) / (J + 1)`` for ``J`` answers."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    anchors_are_reference: ClassVar[bool] = True

    @model_validator(mode="after")
    def _ranks_all(self) -> Self:
        if setting := self.changed("choose", "max_pairs", "margin"):
            raise ValueError(
                f"{setting} chooses pairs among a prompt's answers, and copr ranks all of them; remove "
                f"{setting}"
            )
        return self

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        """Make a unit of each group's distinct answers; their advantages are the ranks, from -1 to 1."""
        rows: list[Row] = []
        num_sets = ties = 0
        for scored in groups:
            group = scored.group
            advantages = ranked(scored)
            ties += not advantages
            for index, completion in enumerate(group.completions_G):
                if index in advantages:
                    row = row_of(group, completion, advantages[index])
                    rows.append(replace(row, unit=num_sets))
                elif completion.token_ids and held_by_anchors(self, scored):
                    rows.append(row_of(group, completion, None))
            num_sets += bool(advantages)
        counts = {"candidates/sets": float(num_sets), "candidates/ties": float(ties)}
        return Batch(rows=tuple(rows), metrics=counts if groups else {})

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        sets = sets_in(micro.rows)
        if not sets:
            return outputs.logprobs_N.sum() * 0.0, {}
        policy_B = micro.sums_B(outputs.logprobs_N)
        reference_B = micro.sums_B(micro.of_tokens("reference_logprobs_T"))
        losses, best = [], []
        for indices in sets:
            own_J = policy_B[indices].log_softmax(-1)
            target_J = self.targets(reference_B[indices], [micro.rows[i] for i in indices])
            losses.append((own_J - target_J).square().mean())
            best.append(own_J[target_J.argmax()].exp())
        loss = sum(losses[1:], losses[0]) / totals.units
        share = sum(best[1:], best[0]).detach() / totals.units
        return loss, {"loss/policy": loss.detach(), "candidates/best_share": share}

    def targets(self, reference_J: Tensor, rows: Sequence[Row]) -> Tensor:
        """Compute ``log P*`` of one prompt's answers; shape ``J``.

        Args:
            reference_J: log-probabilities of the answers under the reference.
            rows: the answers, whose advantages are ranks from -1 to 1.
        """
        size = len(rows)
        reward = (size - 1) / (size + 1) if self.reward is None else self.reward
        ranks_J = reference_J.new_tensor([row.advantage or 0.0 for row in rows])
        return (reference_J + reward * ranks_J / self.beta).log_softmax(-1)


def sets_in(rows: Sequence[Row]) -> list[list[int]]:
    """Find the indices of the ranked answers to each prompt, unit by unit; other rows are left out."""
    units: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if row.advantage is not None:
            assert row.unit is not None, "a row without a unit reached a loss over sets"
            units.setdefault(row.unit, []).append(index)
    return list(units.values())


def ranked(scored: ScoredGroup) -> dict[int, float]:
    """Return the rank of each scored answer by its index, from -1 to 1; none if all are equally good.

    Equal scores share the mean of their ranks, and of equal answers the first counts.
    """
    values: dict[int, float] = {}
    distinct: set[tuple[int, ...]] = set()
    for index, (completion, score) in enumerate(
        zip(scored.group.completions_G, scored.scores_G, strict=True)
    ):
        usable = score.status == "scored" and score.value is not None
        if usable and completion.token_ids and completion.token_ids not in distinct:
            assert score.value is not None
            distinct.add(completion.token_ids)
            values[index] = score.value
    if len(set(values.values())) < 2:
        return {}
    below = {v: sum(other < v for other in values.values()) for v in values.values()}
    above = {v: sum(other > v for other in values.values()) for v in values.values()}
    return {i: (below[v] - above[v]) / (len(values) - 1) for i, v in values.items()}
