"""KTO: Kahneman-Tversky optimisation, from single answers that are called good or bad.

    r  = log pi(y|x) / ref(y|x)
    z0 = max(0, mean over mismatched (x', y') of log pi(y'|x') / ref(y'|x'))
    L  = desirable_weight   * (1 - sigmoid(beta (r - z0)))    for desirable answers
         undesirable_weight * (1 - sigmoid(beta (z0 - r)))    for undesirable ones

The mean is over answers. Source: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and section 4.1.
``z0`` estimates the KL between policy and reference on prompts paired with the answers of other prompts; it
has no gradient. It is measured once, when the batch comes, and used in all its epochs; TRL measures it
again in every step.

Several anchors are one reference as in `align.algorithms.preference.dpo`. Here the normaliser of their
mixture does not cancel in ``r`` alone but, on average over the prompts, in ``r - z0``.

Assumes at least two prompts in a batch; with a single prompt nothing can be mismatched, and ``z0`` is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum, isclose
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.base import Algorithm, LossAndMetrics, Material, Need
from align.algorithms.preference.preference import held_by_anchors
from align.algorithms.rows import DATA, Batch, Row, Totals, row_of
from rollouts.types import ScoredGroup, TokenSpan

if TYPE_CHECKING:
    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs


class KTO(Algorithm):
    """Kahneman-Tversky optimisation."""

    name: Literal["kto"] = "kto"
    ratings: Literal["online", "file"] = "online"
    """``online``: completions above their group's mean reward are desirable, those below are not.
    ``file``: the round's examples say which is which."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull toward the reference: rewards are ``beta`` times a log-ratio in nats."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of desirable answers. Raise the weight of the rarer kind, so that weight times number is
    about equal for both."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of undesirable answers."""

    needs: ClassVar[frozenset[Need]] = frozenset({"start", "reference"})
    anchors_are_reference: ClassVar[bool] = True
    unused: ClassVar[Mapping[str, str]] = {"importance": "answers are rated whoever sampled them"}

    @property
    def material(self) -> Material:
        return "rollouts" if self.ratings == "online" else "ratings"

    def check(self, group_size: int, where: str) -> None:
        if self.ratings == "online" and group_size < 2:
            raise ValueError(
                f"{where}.sampling.group_size: kto rates completions against their group's mean, got "
                f"group_size {group_size}; use at least 2, or take ratings from a file"
            )

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        rated: list[Row] = []
        unrated: list[Row] = []
        ties = 0
        for scored in groups:
            ratings_G = ratings_of(scored)
            ties += ratings_G.count(0.0)
            for completion, rating in zip(scored.group.completions_G, ratings_G, strict=True):
                if rating:
                    rated.append(row_of(scored.group, completion, rating))
                elif completion.token_ids and held_by_anchors(self, scored):
                    unrated.append(row_of(scored.group, completion, None))
        counts = {
            "ratings/desirable": float(sum(row.advantage == 1.0 for row in rated)),
            "ratings/undesirable": float(sum(row.advantage == -1.0 for row in rated)),
            "ratings/ties": float(ties),
        }
        return Batch(rows=(*rated, *mismatched(rated), *unrated), metrics=counts if groups else {})

    def examples(self, rows: Sequence[Row]) -> Sequence[Row]:
        return (*rows, *mismatched(rows))

    def needs_of(self, row: Row) -> frozenset[Need]:
        """Return the needs of a row: mismatched rows need ``start`` for ``z0``; unrated rows need nothing.

        A rated row needs no start, since the policy's log-probabilities come with the forward pass.
        """
        if row.advantage is None:
            return frozenset()
        return self.needs if row.advantage == 0.0 else self.needs - {"start"}

    def complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        distances = []
        for row in rows:
            if row.advantage == 0.0:
                # log pi(y|x) / ref(y|x) of the whole answer when the batch came, in nats
                assert row.start_logprobs_T is not None and row.reference_logprobs_T is not None
                distances.append(fsum(row.start_logprobs_T) - fsum(row.reference_logprobs_T))
        baseline = max(0.0, fsum(distances) / max(len(distances), 1))
        return [replace(row, baseline=baseline) for row in rows if row.advantage != 0.0]

    def moves(self, advantage: float) -> bool:
        return advantage != 0.0

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        rated = [index for index, row in enumerate(micro.rows) if row.advantage]
        if not rated:
            return outputs.logprobs_N.sum() * 0.0, {}
        reference_N = micro.of_tokens("reference_logprobs_T")
        # `_M`: the rated rows of this pass.
        ratios_M = micro.sums_B(outputs.logprobs_N - reference_N)[rated]
        sides_M = micro.of_rows("advantage")[rated]
        baselines_M = micro.of_rows("baseline")[rated]
        gains_M = self.beta * sides_M * (ratios_M - baselines_M)
        weights_M = self.desirable_weight * (sides_M > 0) + self.undesirable_weight * (sides_M < 0)
        loss = (weights_M * (1 - gains_M.sigmoid())).sum() / totals.sequences
        measured = {
            "ratings/accuracy": (gains_M > 0).float(),
            "ratings/gain": gains_M,
            "ratings/baseline": baselines_M,
        }
        metrics = {
            name: value_M.detach().sum() / totals.sequences for name, value_M in measured.items()
        }
        return loss, {**metrics, "loss/policy": loss.detach()}


def ratings_of(scored: ScoredGroup) -> list[float | None]:
    """Rate completions: +1 above the group's mean score, -1 below, 0 at it; None without score or token.

    A group with fewer than two scores has nothing to compare, so all of it is None.
    """
    values_G = [
        score.value if score.status == "scored" and completion.token_ids else None
        for completion, score in zip(scored.group.completions_G, scored.scores_G, strict=True)
    ]
    usable = [value for value in values_G if value is not None]
    if len(usable) < 2:
        return [None] * len(values_G)
    mean = fsum(usable) / len(usable)
    return [None if value is None else _side(value, mean) for value in values_G]


def _side(value: float, mean: float) -> float:
    """Return 1, -1 or 0 for a value above, below or at the mean."""
    # The mean of equal numbers can differ from them in its last bit.
    if isclose(value, mean, rel_tol=1e-9, abs_tol=1e-12):
        return 0.0
    return 1.0 if value > mean else -1.0


def mismatched(rows: Sequence[Row]) -> list[Row]:
    """Pair every prompt with an answer to another one; these rows are measured but never taught.

    Rows are sorted by prompt, and answers are shifted by the largest number of rows of one prompt: each
    answer is then used once, and never for its own prompt. Prompts that all differ pass their answers to
    the next one, as in TRL. If one prompt has more than half of the rows, the rows that still meet their
    own answers are left out. An answer is cut if its row would be longer than the longest of ``rows``,
    which is known to fit the context.

    >>> def row(prompt, answer):
    ...     return Row(prompt_ids=prompt, completion_ids=answer, advantage=1.0, source="new")
    >>> [(r.prompt_ids, r.completion_ids) for r in mismatched([row((1,), (5,)), row((2,), (6,))])]
    [((1,), (6,)), ((2,), (5,))]
    """
    by_prompt: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_ids, []).append(row)
    sorted_rows = [row for same in by_prompt.values() for row in same]
    step = max((len(same) for same in by_prompt.values()), default=0)
    longest = max((row.num_tokens for row in rows), default=0)
    pairs = [
        (row, other)
        for index, row in enumerate(sorted_rows)
        if (other := sorted_rows[index - step]).prompt_ids != row.prompt_ids
    ]
    return [
        replace(
            row,
            completion_ids=answer.completion_ids,
            observed=answer.observed,
            sampler_logprobs_T=(),
            advantage=0.0,
            policy=DATA,
            unit=None,
        )
        for row, other in pairs
        for answer in [_shortened(other, longest - len(row.prompt_ids))]
    ]


def _shortened(row: Row, length: int) -> Row:
    """Return the row with at most ``length`` completion tokens."""
    observed = tuple(
        TokenSpan(span.start, min(span.end, length)) for span in row.observed if span.start < length
    )
    return replace(row, completion_ids=row.completion_ids[:length], observed=observed)
