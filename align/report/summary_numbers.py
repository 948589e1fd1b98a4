"""Summary numbers of continual learning, by their usual names, with what each means and how it is shown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from align.gate.evidence import Evidence
from align.gate.forgetting import PathMetrics, composition_gap, relative_composition
from align.report.learning_cost import Learning, learning_of

Form = Literal["score", "change", "count", "ratio"]
FORMS: Mapping[Form, str] = {
    "score": "{:+.3f}", "change": "{:+.3f}", "count": "{:,.0f}", "ratio": "{:.2f}"
}  # fmt: skip
"""Format of numbers of each form."""


@dataclass(frozen=True, slots=True)
class SummaryNumber:
    """One of the numbers."""

    meaning: str
    form: Form


SUMMARY: Mapping[str, SummaryNumber] = {
    "AP": SummaryNumber("average performance: mean over tasks at the end", "score"),
    "AIA": SummaryNumber("the same, averaged over the rounds", "score"),
    "LA": SummaryNumber("learning accuracy: mean of each task after its round", "score"),
    "BWT": SummaryNumber("backward transfer: below 0 is forgetting", "change"),
    "FM": SummaryNumber("forgetting: above 0 is loss from each task's best", "change"),
    "FWT": SummaryNumber("forward transfer: gain on tasks before their round", "change"),
    "N80": SummaryNumber("rollouts until a round's reward is at 80% of its best", "count"),
    "N90": SummaryNumber("the same for 90%", "count"),
    "N80_ratio": SummaryNumber("N80 over that of the same round alone: above 1 is slower", "ratio"),
    "FWT_gain": SummaryNumber("each task after its round, minus learnt alone", "change"),
    "IM": SummaryNumber("intransigence: a joint run minus each task after its round", "change"),
    "CG": SummaryNumber("composition gap: tasks composed, minus the product of each", "change"),
    "C_joint": SummaryNumber("composed tasks, as a share of a joint run's", "ratio"),
}
"""Every summary number in the order in which they are shown."""
SHARES = {"N80": 0.8, "N90": 0.9}
"""Shares of a round's best reward that rollouts are counted to."""


def summary_of(evidence: Evidence, window: Container[int] | None = None) -> dict[str, float | None]:
    """Return the summary numbers of a whole campaign.

    Args:
        window: rounds that N80 and its kin are the means of; None: all.
    """
    return summary_numbers(evidence.path_scores(), learning_of(evidence, window))


def summary_numbers(matrix: PathMetrics, learning: Learning) -> dict[str, float | None]:
    """Return every summary number over the accepted rounds; None where it cannot be formed."""
    tasks, later = ([name for _, name in part] for part in (matrix.tasks, matrix.tasks[1:]))
    final = matrix.final
    composed = {pair: final[s] for s, pair in learning.parts.items() if s in final}
    composed = {pair: score for pair, score in composed.items() if final.keys() >= set(pair)}
    joint = {pair: learning.joint[s] for s, pair in learning.parts.items() if s in learning.joint}
    return {
        "AP": matrix.average_performance(),
        "AIA": matrix.average_incremental_accuracy(),
        "LA": matrix.learning_accuracy(),
        "BWT": matrix.backward_transfer(),
        "FM": matrix.forgetting(),
        "FWT": matrix.forward_transfer(),
        **{name: learning.rollouts(tasks, share) for name, share in SHARES.items()},
        "N80_ratio": learning.efficiency(later, SHARES["N80"]),
        "FWT_gain": matrix.forward_gain(learning.alone),
        "IM": matrix.intransigence(learning.joint),
        "CG": composition_gap(composed, final),
        "C_joint": relative_composition(composed, joint),
    }


def shown(name: str, value: float) -> str:
    """Write a number as its form asks."""
    return FORMS[SUMMARY[name].form].format(value)


def legend(names: Iterable[str]) -> str:
    """Say in one line what these numbers mean."""
    return "; ".join(f"{name}: {SUMMARY[name].meaning}" for name in names)
