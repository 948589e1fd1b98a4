"""The rules by which two snapshots were ever compared; a verdict names its own and is drawn by it again.

1   paired t tests for scores and clusters; rates of cut and unscored answers against the parent
2   tests whose level holds for skewed losses, few items and clusters; rates also against the start
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from align.gate.measurement.results import ItemResults
from align.gate.statistics.comparison import Comparison, compare
from align.gate.statistics.paired_t import compare_by_t
from align.gate.statistics.sequential import compare_by_bets
from align.gate.suites.scale import ScoreScale
from align.gate.suites.suite import SuiteRule


class Compare(Protocol):
    """One rule's comparison of two snapshots on one suite; see
    `align.gate.statistics.comparison.compare`.
    """

    def __call__(
        self,
        candidate: ItemResults,
        comparator: ItemResults,
        scale: ScoreScale,
        margin: float,
        alpha: float,
    ) -> Comparison: ...


RULES: Mapping[int, Compare] = {1: compare_by_t, 2: compare}
FIRST_RULE = 1
"""Rule of verdicts that do not name one."""
CURRENT_RULE = 2


def compare_of(suite: SuiteRule, number: int, *, with_interval: bool = True) -> Compare:
    """Return the comparison that decides on a suite: a bet if the suite may stop early, else the rule's."""
    if suite.early is None:
        return RULES[number]
    return partial(compare_by_bets, early=suite.early, with_interval=with_interval)
