"""Every kind of suite, drawn where the candidate is worse by exactly the margin: how often it is accepted.

The gate's own rule decides (`align.gate.statistics.rules`), from results as they are stored. A kind is a
way to draw
them and the sizes at which it is tried; whether too few items are refused or the test rejects does not
matter, only that no more than alpha are accepted. Samples with the same differences are decided once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.gate.measurement.evaluate import ItemResults
from align.gate.statistics.rules import CURRENT_RULE, RULES
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.kinds.likelihood import LikelihoodSuite
from align.gate.suites.kinds.pairs import PairSuite
from align.gate.suites.scale import ScoreScale

ALPHAS = (0.05, 0.005)
CHANCE = 1e-4
"""Chance of an alarm for one row whose level is exactly alpha."""
FEW = 20
"""Distinct differences up to which samples are expected to repeat."""
MORE = 5
"""Times as many samples are drawn where they repeat."""

Values = NDArray[np.float64]
Draw = tuple[Values, Values, Sequence[str]]
"""Values after and before, and the cluster of every item; no clusters: every item counts by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of suite."""

    name: str
    margin: float
    """True loss of the candidate, and the margin it is held to."""
    sizes: tuple[int, ...]
    """Items; of clusters, their number."""
    draw: Callable[[np.random.Generator, int], Draw]
    scale: ScoreScale = AnswerSuite.scale


def rare_changes(random: np.random.Generator, n: int, halves: int = 0) -> Draw:
    """Pass/fail where 2.5% are lost and .5% won; ``halves`` more items give or lose half a point."""
    turn = random.random(n)
    before = np.where(
        turn < 0.025, 1.0, np.where(turn < 0.03, 0.0, (np.arange(n) % 2).astype(float))
    )
    after = np.where(turn < 0.025, 0.0, np.where(turn < 0.03, 1.0, before))
    before[:halves] = 0.5
    # By itself such an item loses the margin as well: 1 with a chance of .48, else 0.
    after[:halves] = random.random(halves) < 0.48
    return after, before, ()


def collapse(random: np.random.Generator, n: int, share: float = 0.02, depth: float = 1.0) -> Draw:
    """All scores rise by .01 but a few, which lose everything."""
    before = np.full(n, depth)
    return np.where(random.random(n) < share, 0.0, depth + 0.01), before, ()


def graded(random: np.random.Generator, n: int) -> Draw:
    """Scores in [0, 1] that change by a tenth or so, with a tail on the losing side; loss .05."""
    before = random.uniform(0.5, 1.0, n)
    return before - random.beta(0.2, 3.8, n) * 0.5 - 0.025, before, ()


def windows(random: np.random.Generator, n: int, noise: float = 0.01) -> Draw:
    """Logprobs of text windows of which 1 in 20 loses a nat."""
    before = random.normal(-2.5, 0.4, n)
    damaged = random.random(n) < 1 / 20
    return before - damaged + random.normal(0.0, noise, n), before, ()


def heavy_windows(random: np.random.Generator, n: int) -> Draw:
    """Logprobs of text windows whose losses are lognormal, with a mean of .165."""
    before = random.normal(-2.5, 0.4, n)
    return before - 0.1 * random.lognormal(0.0, 1.0, n), before, ()


def large_cluster(random: np.random.Generator, groups: int, share: float = 0.25) -> Draw:
    """Scores of clusters of ten and one large one; members are half alike, mean difference -.05."""
    large = round(share / (1 - share) * 10 * (groups - 1))
    labels = np.concatenate([np.repeat(np.arange(1, groups), 10), np.zeros(large, dtype=int)])
    shared = random.normal(0.0, 0.1, groups)[labels]
    before = np.full(len(labels), 0.5)
    own = random.normal(0.0, 0.1, len(labels))
    return before - 0.05 + shared + own, before, [str(label) for label in labels]


def topics(random: np.random.Generator, groups: int, size: int = 10) -> Draw:
    """Pass/fail items by topic; one topic in 20 is lost as a whole."""
    labels = np.repeat(np.arange(groups), size)
    lost = (random.random(groups) < 1 / 20)[labels]
    before = np.ones(len(labels))
    return before - lost, before, [str(label) for label in labels]


def documents(random: np.random.Generator, groups: int) -> Draw:
    """Windows by document, four each; one document in 20 loses a nat."""
    after, before, _ = windows(random, 4 * groups)
    labels = np.repeat(np.arange(groups), 4)
    lost = (random.random(groups) < 1 / 20)[labels]
    after = before - lost + random.normal(0.0, 0.01, len(labels))
    return after, before, [str(label) for label in labels]


def pairs_of_prompts(random: np.random.Generator, groups: int) -> Draw:
    """Pairs, four of each prompt, decided alike: 15% of prompts turn to wrong, 5% to right."""
    labels = np.repeat(np.arange(groups), 4)
    turn = random.random(groups)[labels]
    before = np.where(turn < 0.15, 1.0, np.where(turn < 0.2, 0.0, (labels % 3 > 0).astype(float)))
    after = np.where(turn < 0.15, 0.0, np.where(turn < 0.2, 1.0, before))
    return after, before, [str(label) for label in labels]


CASES: tuple[Case, ...] = (
    Case(name="pass/fail, 3% change", margin=0.02, sizes=(300, 1500), draw=rare_changes),
    Case(
        name="the same with one half point", margin=0.02, sizes=(300, 1500),
        draw=partial(rare_changes, halves=1),
    ),
    Case(
        name="the same with 20 half points", margin=0.02, sizes=(300, 1500),
        draw=partial(rare_changes, halves=20),
    ),
    Case(
        name="scores +.01, 2% collapse", margin=0.02 - 0.0098, sizes=(200, 500, 1500), draw=collapse,
    ),
    Case(
        name="the same, range stated", margin=0.02 - 0.0098, sizes=(200, 500, 1500), draw=collapse,
        scale=ScoreScale(range=(0.0, 2.0), of_metric=True),
    ),
    Case(name="scores, losses skewed", margin=0.05, sizes=(30, 100, 300), draw=graded),
    Case(
        name="windows, 1 in 20 damaged", margin=0.05, sizes=(8, 30, 100, 200), draw=windows,
        scale=LikelihoodSuite.scale,
    ),
    Case(
        name="windows, lognormal losses", margin=0.1 * float(np.exp(0.5)), sizes=(60, 110, 200),
        draw=heavy_windows, scale=LikelihoodSuite.scale,
    ),
    Case(name="clusters, one of a quarter", margin=0.05, sizes=(30, 110), draw=large_cluster),
    Case(name="one topic in 20 collapses", margin=0.05, sizes=(20, 30, 110, 200), draw=topics),
    Case(
        name="one document in 20 damaged", margin=0.05, sizes=(30, 110), draw=documents,
        scale=LikelihoodSuite.scale,
    ),
    Case(
        name="pairs of a prompt alike", margin=0.1, sizes=(30, 60, 200), draw=pairs_of_prompts,
        scale=PairSuite.scale,
    ),
)  # fmt: skip


def case_levels(
    random: np.random.Generator,
    draws: int,
    cases: Sequence[Case] = CASES,
    decided_by: int = CURRENT_RULE,
) -> Iterator[dict[str, Any]]:
    """Yield how often each case passes at each alpha and size, and the most that chance explains.

    Args:
        draws: samples of a case; `MORE` times as many where they have few distinct values.
        decided_by: number of the rule that decides.
    """
    for case in cases:
        for n in case.sizes:
            after, before, _ = case.draw(random, n)
            times = draws * (MORE if len(np.unique(after - before)) <= FEW else 1)
            known: dict[bytes, tuple[bool, ...]] = {}
            passed = np.zeros(len(ALPHAS), dtype=int)
            for _ in range(times):
                drawn = case.draw(random, n)
                key = _key(drawn)
                if key not in known:
                    known[key] = tuple(accepts(case, drawn, alpha, decided_by) for alpha in ALPHAS)
                passed += known[key]
            for alpha, count in zip(ALPHAS, passed.tolist(), strict=True):
                yield {
                    "case": case.name,
                    "n": n,
                    "draws": times,
                    "alpha": alpha,
                    "level": count / times,
                    "most": most_by_chance(times, alpha) / times,
                }


def accepts(case: Case, drawn: Draw, alpha: float, decided_by: int = CURRENT_RULE) -> bool:
    """Tell if the gate takes the candidate for no worse than the margin."""
    after, before, clusters = drawn
    compare = RULES[decided_by]
    if decided_by == CURRENT_RULE:
        compare = partial(compare, with_interval=False)
    result = compare(
        _results("candidate", after, clusters),
        _results("parent", before, clusters),
        case.scale,
        case.margin,
        alpha,
    )
    return result.enough and result.p <= alpha


def _key(drawn: Draw) -> bytes:
    """Return what a decision follows from, in sorted order: differences, clusters, ends of the values."""
    after, before, clusters = drawn
    differences = after - before
    if clusters:
        _, labels = np.unique(clusters, return_inverse=True)
        sums = np.bincount(labels, weights=differences)
        order = np.lexsort((differences, sums[labels]))
        differences = np.concatenate([differences[order], np.sort(sums)])
    else:
        differences = np.sort(differences)
    ends = [max(after.max(), before.max()), min(after.min(), before.min())]
    return np.append(differences, ends).tobytes()


def most_by_chance(draws: int, rate: float) -> int:
    """Return the count that a binomial of this rate exceeds with a chance of at most `CHANCE`.

    >>> most_by_chance(2000, 0.005)
    24
    """
    below, count, chance = 0.0, 0, (1.0 - rate) ** draws
    while below + chance < 1.0 - CHANCE:
        below += chance
        count += 1
        chance *= (draws - count + 1) / count * rate / (1.0 - rate)
    return count


def exceeded(levels: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows in which alpha is exceeded by more than chance."""
    return [row for row in levels if row["level"] > row["most"]]


def _results(snapshot: str, values: Values, clusters: Sequence[str]) -> ItemResults:
    n = len(values)
    return ItemResults(
        suite="suite",
        suite_hash="h",
        snapshot=snapshot,
        item_ids=tuple(map(str, range(n))),
        values=tuple(values.tolist()),
        statuses=("scored",) * n,
        finishes=("stop",) * n,
        clusters=tuple(clusters),
    )
