"""Claim: the gate lets a loss as large as the margin through no more often than its alpha says, and twenty
rounds that each lose a point cannot add up.

First the level of one check: suites of every kind (`benchmarks.levels`), and pass/fail items beside Wald's
test, drawn where the candidate loses exactly the margin. Then whole campaigns: every candidate answers the
items as its parent does, except for a share that turns from right to wrong or back, and what is accepted is
the next parent; of several suites one loses, and all must pass. Beside the gate stand the rules in common
use. Everything is drawn, no model is involved. Ends with 1 where a level is exceeded by more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.gate.statistics.significance import (
    items_needed,
    normal_quantile,
    power,
    tango_noninferiority,
)
from benchmarks.common import parser, prepare, save, show, verdict
from benchmarks.early import campaigns as early_campaigns
from benchmarks.early import early_levels, same_suites
from benchmarks.levels import case_levels, exceeded, most_by_chance

ALPHA = 0.05
SIZES = (30, 50, 100, 200, 500, 1000, 2000)
SUITES = ((0.30, 0.10), (0.12, 0.05), (0.05, 0.03))
"""Share of items that change, and margin."""
CHANGED = 10
"""Items that change, in expectation, from which on counts are fine enough to meet a level to a point."""
OFF = 0.01

ROUNDS, ITEMS, ACCURACY, DISCORDANCE = 20, 2000, 0.6, 0.12
MARGIN, BUDGET = 0.02, 0.03
"""Largest loss against the parent, and against the start; by default also against the best so far."""
LOST, KEPT = 3.5, 14.0
"""Rounds accepted at most where each loses a point, and at least where none loses anything."""

SUITES_TOGETHER, FEWER_ROUNDS, EQUALS = 6, 10, 0.85
"""Suites and declared rounds of the last rows, and the share of equal candidates that shall be accepted."""

GATE = "the gate: same, and best so far, by the budget"
SEVERAL = f"the gate, {SUITES_TOGETHER} suites, as many items"
PLANNED = f"the gate, {SUITES_TOGETHER} suites, {FEWER_ROUNDS} rounds, items planned for all"

EARLY_ITEMS = 13_200
"""Items of each suite that may stop early, of which a part is measured."""
DOUBLE, DOUBLE_ITEMS = 0.04, 8_400
"""Budget of twice the margin, and the items of each suite with it."""

Right = NDArray[np.bool_]
"""Which items are right, by campaign and item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A way to decide from (lost, won) counts against the snapshots that it looks at."""

    accepts: Mapping[str, Callable[[int, int, int], bool]]
    """By comparator: parent, start or best."""
    items: int = ITEMS
    promised: bool = False
    """Held to `LOST` and `KEPT`."""
    suites: int = 1
    """All must pass; of several the first one loses."""
    rounds: int = ROUNDS


def not_worse(margin: float, alpha: float) -> Callable[[int, int, int], bool]:
    """Shown to lose less than ``margin``."""
    return cache(lambda lost, won, n: tango_noninferiority(lost, won, n, margin).p <= alpha)


def no_significant_drop(lost: int, won: int, n: int) -> bool:
    """The usual rule: a loss counts once it is significant."""
    return tango_noninferiority(won, lost, n, 0.0).p > ALPHA


def mean_holds(lost: int, won: int, n: int) -> bool:
    """The mean may fall by the margin."""
    return (won - lost) / n >= -MARGIN


def rules() -> dict[str, Rule]:
    """What is compared; `GATE` is the gate as it decides on a campaign."""
    spread = ALPHA / ROUNDS
    planned = items_needed(DISCORDANCE, MARGIN, spread, power=0.95)
    parent, start = not_worse(MARGIN, ALPHA), not_worse(BUDGET, ALPHA)
    strict, anchored = not_worse(MARGIN, spread), not_worse(BUDGET, spread)
    fewer = ALPHA / FEWER_ROUNDS
    return {
        "no significant drop": Rule(accepts={"parent": no_significant_drop}),
        "mean within the margin": Rule(accepts={"parent": mean_holds}),
        "not worse than parent": Rule(accepts={"parent": parent}),
        "and start, by the margin": Rule(
            accepts={"parent": parent, "start": parent}, promised=True
        ),
        "and start, by the budget": Rule(accepts={"parent": parent, "start": start}),
        "same, alpha over the rounds, items planned": Rule(
            accepts={"parent": strict, "start": anchored}, items=planned, promised=True
        ),
        "same, and best so far, by the margin": Rule(
            accepts={"parent": strict, "start": anchored, "best": strict}, items=planned
        ),
        GATE: Rule(
            accepts={"parent": strict, "start": anchored, "best": anchored},
            items=planned,
            promised=True,
        ),
        SEVERAL: Rule(
            accepts={"parent": strict, "start": anchored, "best": anchored},
            items=planned,
            suites=SUITES_TOGETHER,
        ),
        PLANNED: Rule(
            accepts={
                "parent": not_worse(MARGIN, fewer),
                "start": not_worse(BUDGET, fewer),
                "best": not_worse(BUDGET, fewer),
            },
            items=items_for_all(SUITES_TOGETHER, fewer, EQUALS),
            suites=SUITES_TOGETHER,
            rounds=FEWER_ROUNDS,
        ),
    }


def items_for_all(suites: int, alpha: float, chance: float) -> int:
    """Return the items per suite with which an equal candidate of the last round passes all checks.

    Its answers differ from its parent's, and more from those of the start and the best, of which every
    round has turned a share: after t rounds ``2 p (1 - p) (1 - k^t)`` of the items have turned.
    """
    kept = 1.0 - DISCORDANCE / (2 * ACCURACY * (1 - ACCURACY))
    drifted = 2 * ACCURACY * (1 - ACCURACY) * (1.0 - kept**FEWER_ROUNDS)
    wanted, low, high = chance ** (1 / suites), 1, 1 << 20
    while low < high:
        middle = (low + high) // 2
        passes = power(middle, DISCORDANCE, MARGIN, alpha) * power(
            middle, drifted, BUDGET, alpha
        ) ** len(("start", "best"))
        low, high = (low, middle) if passes >= wanted else (middle + 1, high)
    return high


def main() -> int:
    """Draw, decide and print; 1 if a level is exceeded."""
    prepare()
    options = parser("Error rates of the gate, by simulation.")
    options.add_argument("--tables", type=int, default=40_000, help="suites drawn for a level")
    options.add_argument("--campaigns", type=int, default=100)
    options.add_argument("--early", type=int, default=60, help="campaigns that stop early")
    options.add_argument("--draws", type=int, default=1_000, help="suites drawn of every kind")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    if args.quick:
        args.tables, args.campaigns, args.draws, args.early = 2_000, 5, 20, 1
    random = np.random.default_rng(args.seed)
    kinds = list(case_levels(np.random.default_rng(args.seed), args.draws))
    kinds += early_levels(np.random.default_rng(args.seed), args.draws * 2 // 5)
    early = [early_row(random, *row, args.early) for row in EARLY]
    levels = [level(random, *suite, n, args.tables) for suite in SUITES for n in SIZES]
    campaigns = [
        {
            "rule": name,
            "items": rule.items,
            "rounds": rule.rounds,
            "promised": rule.promised,
            **{
                f"{points:+d}": accepted(random, rule, points / 100, args.campaigns)
                for points in (-1, 0)
            },
        }
        for name, rule in rules().items()
    ]
    report_kinds(kinds)
    report(levels, campaigns)
    report_early(early)
    promises(levels, campaigns)
    save(
        args.json,
        "gate",
        args,
        {"kinds": kinds, "levels": levels, "campaigns": campaigns, "early": early},
    )
    missed = [row for row in early if row["any"] > row["most"]]
    return int(bool(exceeded(kinds) or missed) or not all(map(_meets, levels)))


def level(
    random: np.random.Generator, psi: float, margin: float, n: int, tables: int
) -> dict[str, Any]:
    """How often a loss of exactly the margin is accepted, by Tango's test and by Wald's."""
    shares = ((psi + margin) / 2, (psi - margin) / 2, 1 - psi)
    drawn = random.multinomial(n, shares, size=tables)[:, :2]
    distinct, times = np.unique(drawn, axis=0, return_counts=True)
    passes = not_worse(margin, ALPHA)
    tango = [passes(int(lost), int(won), n) for lost, won in distinct]
    lost, won = distinct.T / n
    error = np.sqrt(np.maximum(lost + won - (won - lost) ** 2, 0.0) / n)
    wald = won - lost + margin > normal_quantile(1 - ALPHA) * error
    return {
        "psi": psi,
        "margin": margin,
        "n": n,
        "tango": float(times[np.array(tango)].sum() / tables),
        "wald": float(times[wald].sum() / tables),
    }


def accepted(
    random: np.random.Generator, rule: Rule, change: float, campaigns: int
) -> dict[str, float]:
    """Mean number of rounds accepted, and what the accepted rounds came to, in points.

    Args:
        change: true difference of every candidate to its parent, on these very items of the first suite.
    """
    shape = (campaigns, rule.suites, rule.items)
    changes = np.zeros((rule.suites, 1))
    changes[0] = change
    start = parent = best = random.random(shape) < ACCURACY
    count = np.zeros(campaigns)
    for _ in range(rule.rounds):
        right = parent.mean(axis=2, keepdims=True)
        turns = np.where(
            parent, (DISCORDANCE - changes) / 2 / right, (DISCORDANCE + changes) / 2 / (1 - right)
        )
        candidate = parent ^ (random.random(shape) < turns)
        comparators = {"parent": parent, "start": start, "best": best}
        passed = np.logical_and.reduce(
            [
                decide(accepts, comparators[name][:, suite], candidate[:, suite])
                for name, accepts in rule.accepts.items()
                for suite in range(rule.suites)
            ]
        )
        count += passed
        parent = np.where(passed[:, None, None], candidate, parent)
        better = passed[:, None] & (candidate.mean(axis=2) > best.mean(axis=2))
        best = np.where(better[:, :, None], candidate, best)
    return {"rounds": float(count.mean()), "points": 100 * change * float(count.mean())}


def decide(accepts: Callable[[int, int, int], bool], before: Right, after: Right) -> Right:
    """One decision per campaign."""
    lost, won = (before & ~after).sum(axis=1), (after & ~before).sum(axis=1)
    n = before.shape[1]
    return np.array([accepts(int(b), int(c), n) for b, c in zip(lost, won, strict=True)])


EARLY = (
    ("equal", BUDGET, EARLY_ITEMS, 0.0, 0),
    ("equal, budget of twice the margin", DOUBLE, DOUBLE_ITEMS, 0.0, 0),
    ("each -1 point on one suite", BUDGET, EARLY_ITEMS, -0.01, 0),
    ("each -2 points, the margin, on one suite", BUDGET, EARLY_ITEMS, -MARGIN, 0),
    ("the last 5 of them so, after 5 equal ones", BUDGET, EARLY_ITEMS, -MARGIN, 5),
    ("the last one so, after 9 equal ones", BUDGET, EARLY_ITEMS, -MARGIN, 9),
)
"""Candidates of campaigns whose suites stop early, the budget, items of a suite, the true change, and the
rounds of equal candidates before it.
"""


def early_row(
    random: np.random.Generator,
    name: str,
    budget: float,
    items: int,
    change: float,
    sound: int,
    times: int,
) -> dict[str, Any]:
    """Draw campaigns of `SUITES_TOGETHER` suites that stop early; say what was accepted and measured."""
    design = same_suites(items, MARGIN, budget, alpha=ALPHA, rounds=FEWER_ROUNDS, sound=sound)
    drawn = early_campaigns(random, design, times, change)
    # Over all rounds together alpha is the chance to accept any candidate that loses the margin.
    most = most_by_chance(times, ALPHA) / times if change <= -MARGIN else 1.0
    return {"candidates": name, "of": items, "campaigns": times, "most": most, **drawn}


def report_early(rows: list[dict[str, Any]]) -> None:
    """One table for campaigns whose suites stop early."""
    fixed = items_for_all(SUITES_TOGETHER, ALPHA / FEWER_ROUNDS, EQUALS)
    show(
        f"{SUITES_TOGETHER} suites that stop early, {FEWER_ROUNDS} rounds",
        ["candidates", "items of a suite", "measured of each snapshot", "of the fixed test's",
         "accepted", "campaigns with any of the changed", ""],
        [
            [
                row["candidates"],
                f"{row['of']:,}",
                f"{row['items']:,.0f}",
                f"{100 * row['items'] / fixed:.0f}%",
                f"{row['rounds']:.1f} of {FEWER_ROUNDS}",
                f"{100 * row['any']:.0f}%",
                verdict(row["any"] <= row["most"]) if row["most"] < 1.0 else "",
            ]
            for row in rows
        ],
        f"Mean over all snapshots and suites, the start and items measured later included; the fixed test "
        f"measures {fixed:,} of each.",
    )  # fmt: skip


def report_kinds(kinds: list[dict[str, Any]]) -> None:
    """One line for each kind of suite, size and alpha."""
    rows = [
        [
            found["case"],
            f"{found['n']:,}",
            f"{found['alpha']:g}",
            f"{found['level']:.4f}",
            f"{found['most']:.4f}",
            verdict(found["level"] <= found["most"]),
        ]
        for found in kinds
    ]
    show(
        "False acceptance at the margin, by kind of suite",
        ["suite", "items or clusters", "alpha", "accepted", "at most by chance", ""],
        rows,
        "Too few items to tell is no acceptance.",
    )


def report(levels: list[dict[str, Any]], campaigns: list[dict[str, Any]]) -> None:
    """One table for the level of a check, one for campaigns."""
    rows = []
    for psi, margin in SUITES:
        held = [found for found in levels if (found["psi"], found["margin"]) == (psi, margin)]
        suite = f"{100 * psi:.0f}% change, margin {100 * margin:.0f}"
        for test in ("wald", "tango"):
            met = verdict(all(map(_meets, held))) if test == "tango" else ""
            cells = [f"{100 * found[test]:.1f}" for found in held]
            rows.append([f"{suite}: {test.capitalize()}", *cells, met])
    show(
        f"False acceptance at the margin, %, nominal {100 * ALPHA:.0f}",
        ["", *(f"n={n}" for n in SIZES), "Tango within a point"],
        rows,
        f"Never more than a point above; a point below only where under {CHANGED} items change.",
    )
    rows = []
    for found in campaigns:
        losing, same = found["-1"], found["+0"]
        met = losing["rounds"] <= LOST and same["rounds"] >= KEPT
        rows.append(
            [found["rule"], f"{found['items']:,}", f"{losing['rounds']:.1f}",
             f"{losing['points']:+.1f}", f"{same['rounds']:.1f} of {found['rounds']}",
             verdict(met) if found["promised"] else ""]
        )  # fmt: skip
    show(
        f"Of {ROUNDS} rounds accepted; {100 * DISCORDANCE:.0f}% of items change",
        ["rule", "items", "each -1 point", "points in all", "no change", f"≤ {LOST}, ≥ {KEPT:.0f}"],
        rows,
        f"Margin {100 * MARGIN:.0f}, budget {100 * BUDGET:.0f} points.",
    )


def promises(levels: list[dict[str, Any]], campaigns: list[dict[str, Any]]) -> None:
    """The three numbers that the gate is held to."""
    gate = next(found for found in campaigns if found["rule"] == GATE)
    worst = max(levels, key=lambda found: found["tango"] - ALPHA)
    losing, same = gate["-1"]["rounds"], gate["+0"]["rounds"]
    show(
        "What is promised",
        ["", "measured", "bound", ""],
        [
            [
                f"false acceptance at the margin, n = {SIZES[0]} to {SIZES[-1]}, at most",
                f"{100 * worst['tango']:.1f}%",
                f"{100 * (ALPHA + OFF):.0f}%",
                verdict(all(map(_meets, levels))),
            ],
            [
                "20 rounds of -1 point, accepted",
                f"{losing:.1f}",
                f"≤ {LOST}",
                verdict(losing <= LOST),
            ],
            [
                "20 rounds of no change, accepted",
                f"{same:.1f}",
                f"≥ {KEPT:.0f}",
                verdict(same >= KEPT),
            ],
        ],
        "Of the gate with as many items as keel gate plan asks for.",
    )


def _meets(found: Mapping[str, float]) -> bool:
    above = found["tango"] - ALPHA
    enough = found["n"] * found["psi"] >= CHANGED
    return above <= OFF and (not enough or math.fabs(above) <= OFF)


if __name__ == "__main__":
    raise SystemExit(main())
