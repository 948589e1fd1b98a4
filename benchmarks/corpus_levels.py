"""Claim: a suite with a corpus metric lets a loss as large as the margin through no more often than alpha.

Counts of F1, BLEU and edit success are drawn of items of even and of very uneven sizes. The candidate loses
exactly the margin: by nothing but chance where the margin is 0, by rare answers that are lost whole, by
damage to long texts alone, or to the rarest aspect of edits alone. Ends with 1 where a level is exceeded by
more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.gate.statistics.bootstrap import paired_bootstrap
from benchmarks.common import parser, prepare, save, show, verdict
from rewards.library.corpus.formulas import F1, Array, BleuFormula, EditScore, Formula

ALPHA = 0.05
SIZES = (30, 120, 400)
POPULATION = 200_000
"""Items that a true loss is computed on."""
DRAWS = 999


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of items, and of loss."""

    name: str
    formula: Formula
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]]
    """Draws counts of candidate and parent, of so many items."""
    equal: bool = False
    """True if nothing is lost but by chance, so that the margin is 0."""


def spans(random: np.random.Generator, n: int, uneven: bool) -> Array:
    """Draw counts of F1, of three spans an item or of a heavy-tailed number."""
    size = np.minimum(1 + random.pareto(1.3, n).astype(int), 60) if uneven else np.full(n, 3)
    right = random.binomial(size, random.beta(2, 0.6, n))
    return np.stack([right, random.poisson(0.25 * size), size - right], axis=1).astype(float)


def lost_spans(before: Array, lost: np.ndarray) -> Array:
    """Return counts of which some items name as much as there is, all of it wrong."""
    there = before[:, 0] + before[:, 2]
    return np.where(lost[:, None], np.stack([0 * there, there, there], axis=1), before)


def long_lost(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Draw a candidate that lost a tenth of the items with eight spans or more."""
    before = spans(random, n, uneven=True)
    is_long = before[:, 0] + before[:, 2] >= 8
    return lost_spans(before, is_long & (random.random(n) < 0.1)), before


def rare_lost(random: np.random.Generator, n: int, uneven: bool) -> tuple[Array, Array]:
    """Draw a candidate that lost one item in thirty."""
    before = spans(random, n, uneven)
    return lost_spans(before, random.random(n) < 1 / 30), before


def same_spans(random: np.random.Generator, n: int, uneven: bool) -> tuple[Array, Array]:
    """Draw two answers to the same items, as good as each other."""
    before, again = spans(random, n, uneven), spans(random, n, uneven)
    there = before[:, 0] + before[:, 2]
    right = random.binomial(there.astype(int), 0.7)
    first = np.stack([random.binomial(there.astype(int), 0.7), again[:, 1], there], axis=1)
    first[:, 2] -= first[:, 0]
    return first.astype(float), np.stack([right, before[:, 1], there - right], axis=1)


def translations(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Draw counts of BLEU of which the candidate lost one answer in twenty."""
    length = np.maximum(4, np.round(random.lognormal(2.6, 0.7, n))).astype(int)
    ngrams = np.maximum(length[:, None] - np.arange(4), 0)
    matched = random.binomial(ngrams, random.beta(4, 2, n)[:, None] ** (1 + np.arange(4)))
    before = np.concatenate([length[:, None], length[:, None], matched, ngrams], axis=1)
    after = before.copy()
    after[random.random(n) < 0.05, 2:6] = 0
    return after.astype(float), before.astype(float)


def edits(random: np.random.Generator, n: int, lost: float) -> tuple[Array, Array]:
    """Draw questions about edits of which a share of the rarest aspect's is lost."""
    aspect = random.choice(4, n, p=[0.4, 0.3, 0.25, 0.05])
    both = np.zeros((2, n, 8))
    both[:, np.arange(n), 4 + aspect] = 1.0
    for side in both[: 1 if lost else 2]:
        side[np.arange(n), aspect] = random.random(n) < 0.8
    if lost:
        both[1] = both[0]
        both[0][(aspect == 3) & (random.random(n) < lost), :4] = 0.0
    return both[0], both[1]


CASES = (
    Case(name="F1, equal", formula=F1(), draw=lambda r, n: same_spans(r, n, False), equal=True),
    Case(
        name="F1, equal, uneven", formula=F1(), draw=lambda r, n: same_spans(r, n, True), equal=True
    ),
    Case(name="F1, rare answers lost", formula=F1(), draw=lambda r, n: rare_lost(r, n, False)),
    Case(name="F1, the same, uneven", formula=F1(), draw=lambda r, n: rare_lost(r, n, True)),
    Case(name="F1, long texts lost", formula=F1(), draw=long_lost),
    Case(name="BLEU, rare answers lost", formula=BleuFormula(), draw=translations),
    Case(name="edits, equal", formula=EditScore(), draw=lambda r, n: edits(r, n, 0.0), equal=True),
    Case(name="edits, rarest lost", formula=EditScore(), draw=lambda r, n: edits(r, n, 0.2)),
)


def levels(times: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield how often a candidate passes that lost the margin, by case and number of items."""
    for case in CASES:
        random = np.random.default_rng(seed)
        after, before = case.draw(random, POPULATION)
        margin = 0.0 if case.equal else case.formula.value(before) - case.formula.value(after)
        for n in SIZES:
            passed = sum(
                paired_bootstrap(*case.draw(random, n), case.formula, margin, ALPHA, DRAWS).p
                <= ALPHA
                for _ in range(times)
            )
            yield {"case": case.name, "items": n, "margin": margin, "passed": passed / times}


def main() -> int:
    """Draw all cases and print how often a candidate passed that lost the margin."""
    prepare()
    options = parser(__doc__)
    options.add_argument("--times", type=int, default=1000, help="candidates of each case")
    options.add_argument("--seed", type=int, default=1)
    arguments = options.parse_args()
    times = 20 if arguments.quick else arguments.times
    most = ALPHA + 3.7 * math.sqrt(ALPHA * (1 - ALPHA) / times)
    rows = list(levels(times, arguments.seed))
    show(
        "Corpus metrics: candidates passed that lost the margin",
        ["", "items", "margin", "passed", ""],
        [
            [
                str(row["case"]),
                str(row["items"]),
                f"{row['margin']:.4f}",
                f"{100 * row['passed']:.1f}%",
                verdict(row["passed"] <= most),
            ]
            for row in rows
        ],
        f"At most {100 * most:.1f}% by chance, where the level is {100 * ALPHA:.0f}%.",
    )
    save(arguments.json, "corpus_levels", arguments, rows)
    return int(any(row["passed"] > most for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
