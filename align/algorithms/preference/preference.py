"""Base of preference algorithms, whose losses are over pairs of a chosen and a rejected answer.

Pairs come from this round's own scored groups or from a file. The two rows of a pair share a ``unit``,
so one forward pass always holds both; the chosen row has the advantage +1, the rejected one -1.

Legend: ``_U`` the pairs of a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import Algorithm, LossAndMetrics, Material, Need
from align.algorithms.preference.pairs import Choose, Pair, pair_up
from align.algorithms.rows import Batch, Row, Totals, row_of
from rollouts.types import ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class PairInputs:
    """Pairs of one forward pass. Log-probabilities are sums over an answer's tokens, in nats."""

    chosen_logprobs_U: Tensor
    """Log-probabilities of the policy that learns, with gradient."""
    rejected_logprobs_U: Tensor
    chosen_reference_U: Tensor
    """Log-probabilities of the reference, without gradient; NaN if the algorithm does not need one."""
    rejected_reference_U: Tensor
    chosen_tokens_U: Tensor
    """Numbers of sampled tokens of the answers, as floats."""
    rejected_tokens_U: Tensor


class Preference(Algorithm):
    """Base of algorithms whose loss is a mean over pairs.

    No importance weight is applied: which answer of a pair is the better one does not depend on who
    sampled them, so pairs of somewhat older weights teach as well.
    """

    pairs: Literal["online", "file"] = "online"
    """``online``: completions of one prompt, compared by their rewards. ``file``: the round's examples."""
    choose: Choose = "best_worst"
    """Comparisons within an online group: the best with the worst (``best_worst``), or ``all``."""
    max_pairs: Annotated[int, Field(ge=1)] = 4
    """Largest number of pairs of one prompt, the widest score differences first (``choose: all``)."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Smallest score difference that makes an online pair; equal scores never do."""

    ranks_answers: ClassVar[bool] = True
    unused: ClassVar[Mapping[str, str]] = {
        "importance": "pairs are learned from whoever sampled them"
    }

    @model_validator(mode="after")
    def _pairing(self) -> Self:
        changed = self.changed("choose", "max_pairs", "margin")
        if self.pairs == "file" and changed is not None:
            raise ValueError(
                f"{changed} says how samples are paired, and pairs: file brings its own; remove {changed}, "
                "or set pairs to online"
            )
        if self.choose != "all" and self.changed("max_pairs"):
            raise ValueError(
                f"max_pairs {self.max_pairs} bounds choose: all, and {self.choose} makes one pair of a "
                "prompt; remove max_pairs, or set choose to all"
            )
        return self

    @property
    def material(self) -> Material:
        return "rollouts" if self.pairs == "online" else "pairs"

    def check(self, group_size: int, where: str) -> None:
        if self.pairs == "online" and group_size < 2:
            raise ValueError(
                f"{where}.sampling.group_size: {self.name} compares completions of one prompt, got "
                f"group_size {group_size}; use at least 2, or take pairs from a file"
            )

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        rows: list[Row] = []
        num_pairs = ties = 0
        for scored in groups:
            group = scored.group
            pairing = pair_up(
                scored, choose=self.choose, margin=self.margin, max_pairs=self.max_pairs
            )
            for pair in pairing.pairs:
                rows.extend(
                    replace(row_of(group, group.completions_G[index], advantage), unit=num_pairs)
                    for index, advantage in zip(pair, (1.0, -1.0), strict=True)
                )
                num_pairs += 1
            if held_by_anchors(self, scored):
                paired = {index for pair in pairing.pairs for index in pair}
                rows.extend(
                    row_of(group, completion, None)
                    for index, completion in enumerate(group.completions_G)
                    if completion.token_ids and index not in paired
                )
            ties += pairing.ties
        counts = {"pairs/made": float(num_pairs), "pairs/ties": float(ties)}
        return Batch(rows=tuple(rows), metrics=counts if groups else {})

    def needs_of(self, row: Row) -> frozenset[Need]:
        """Return the needs of a row of a pair; a row that only KL terms hold has none."""
        return self.needs if row.advantage is not None else frozenset()

    def pair_loss(self, inputs: PairInputs, totals: Totals) -> LossAndMetrics:
        """Compute loss and metrics, both summable over the micro-batches of a step."""
        raise NotImplementedError

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        pairs = pairs_in(micro.rows)
        if not pairs:
            return outputs.logprobs_N.sum() * 0.0, {}
        chosen, rejected = [list(side) for side in zip(*pairs, strict=True)]
        policy_B = micro.sums_B(outputs.logprobs_N)
        reference_B = micro.sums_B(micro.of_tokens("reference_logprobs_T"))
        tokens_B = policy_B.new_tensor([float(row.num_sampled) for row in micro.rows])
        loss, metrics = self.pair_loss(
            PairInputs(
                chosen_logprobs_U=policy_B[chosen],
                rejected_logprobs_U=policy_B[rejected],
                chosen_reference_U=reference_B[chosen],
                rejected_reference_U=reference_B[rejected],
                chosen_tokens_U=tokens_B[chosen],
                rejected_tokens_U=tokens_B[rejected],
            ),
            totals,
        )
        return loss, {**metrics, "loss/policy": loss.detach()}


def pairs_in(rows: Sequence[Row]) -> list[Pair]:
    """Find the indices of the chosen and the rejected row of every pair; other rows are left out."""
    sides: dict[int, dict[bool, int]] = {}
    for index, row in enumerate(rows):
        if row.advantage is not None:
            assert row.unit is not None, "a row without a partner reached a preference loss"
            sides.setdefault(row.unit, {})[row.advantage > 0] = index
    return [(side[True], side[False]) for side in sides.values()]


def held_by_anchors(algorithm: Algorithm, scored: ScoredGroup) -> bool:
    """Tell if KL terms hold a group's completions, even those that the loss does not use."""
    return scored.group.prompt.source != "new" or not algorithm.anchors_are_reference
