"""Suites that stop early: their level on every kind of suite, and what whole campaigns measure.

A campaign's items are counted as the gate measures them: the candidate until every comparator is decided,
each comparator as far as its own comparison goes, and nothing twice. Everything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.config.gate import GateConfig
from align.gate.statistics.alpha import Decision, recycled_level, spent_by
from align.gate.statistics.betting import Wager, is_hopeless, wager
from align.gate.suites.looks import early_of, num_looks
from benchmarks.levels import ALPHAS, CASES, Case, most_by_chance

Right = NDArray[np.bool_]
RANGES: Mapping[str, float] = {
    "scores +.01, 2% collapse": 1.01,
    "the same, range stated": 2.0,
    "clusters, one of a quarter": 2.0,
}
"""Range of the values by kind of suite; 1 for the others."""


def early_levels(random: np.random.Generator, draws: int) -> Iterator[dict[str, Any]]:
    """Yield how often each kind of suite with a range passes, whenever it is looked at, where it loses the
    margin."""
    for case in CASES:
        if not case.scale.bounded:
            continue
        for n in case.sizes:
            passed = np.zeros(len(ALPHAS), dtype=int)
            for _ in range(draws):
                drawn = case.draw(random, n)
                passed += [_passes(case, drawn, alpha) for alpha in ALPHAS]
            for alpha, count in zip(ALPHAS, passed.tolist(), strict=True):
                most = most_by_chance(draws, alpha) / draws
                row = {"case": f"stops early: {case.name}", "n": n, "draws": draws, "alpha": alpha}
                yield {**row, "level": count / draws, "most": most}


def _passes(case: Case, drawn: tuple[Any, Any, Sequence[str]], alpha: float) -> bool:
    after, before, clusters = drawn
    early = early_of([str(i) for i in range(len(after))], clusters)
    differences, sizes = after - before, None
    if clusters:
        _, labels = np.unique(clusters, return_inverse=True)
        differences = np.bincount(labels, weights=differences)
        sizes = np.bincount(labels).tolist()
    state = wager(
        differences.tolist(),
        case.margin,
        alpha,
        reach=RANGES.get(case.name, 1.0),
        units=early.units,
        sizes=sizes,
        largest=early.largest,
    )
    return state.lacking == 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """Campaigns of suites that stop early, all alike."""

    items: int
    """Items of each suite."""
    margins: Mapping[str, float]
    """By comparator: parent, best, start."""
    gate: GateConfig
    suites: int = 6
    sound: int = 0
    """Rounds whose candidates are equal, before any change."""
    accuracy: float = 0.6
    changed: float = 0.12
    """Share of items that an equal candidate answers differently from its parent."""


def campaign(random: np.random.Generator, design: Design, change: float = 0.0) -> dict[str, float]:
    """Draw one campaign; return the rounds accepted, those of them with a change, and the items measured
    per snapshot and suite.

    Args:
        change: true difference of a candidate to its parent, on the first suite.
    """
    shape, rounds = (design.suites, design.items), design.gate.campaign_rounds
    answers = [random.random(shape) < design.accuracy]
    count = num_looks(design.items, design.gate.max_looks)
    ends = [design.items * (look + 1) // count for look in range(count)]
    measured = [np.full(design.suites, ends[0])]
    judged: list[NDArray[np.int_]] = []
    decisions: list[Decision] = []
    parent, best = 0, [0] * design.suites
    for number in range(1, rounds + 1):
        own = change if number > design.sound else 0.0
        answers.append(_next(random, answers[parent], design, own))
        measured.append(np.zeros(design.suites, dtype=int))
        decision, passed = recycled_level(design.gate, decisions), True
        for suite in range(design.suites):
            for who, snapshot in (("parent", parent), ("best", best[suite]), ("start", 0)):
                differences = answers[number][suite].astype(float) - answers[snapshot][suite]
                won, items = _decide(differences, design.margins[who], decision.level, ends)
                passed &= won
                for measured_of in (measured[number], measured[snapshot]):
                    measured_of[suite] = max(measured_of[suite], items)
        decisions.append(decision._replace(accepted=passed))
        if not passed:
            continue
        parent = number
        judged.append(measured[number].copy())
        for suite in range(design.suites):
            common = min(int(items[suite]) for items in judged)
            means = [answers[s][suite][:common].mean() for s in (best[suite], number)]
            best[suite] = number if means[1] > means[0] else best[suite]
    total = float(np.sum(measured))
    return {
        "rounds": sum(decision.accepted for decision in decisions),
        "changed": sum(decision.accepted for decision in decisions[design.sound :]),
        "items": total / design.suites / (rounds + 1),
    }


def _next(random: np.random.Generator, parent: Right, design: Design, change: float) -> Right:
    """Draw the answers of a candidate: a share turns either way, on the first suite with a bias."""
    changes = np.zeros((design.suites, 1))
    changes[0] = change
    right = parent.mean(axis=1, keepdims=True)
    turns = np.where(
        parent,
        (design.changed - changes) / 2 / right,
        (design.changed + changes) / 2 / (1 - right),
    )
    turned: Right = parent ^ (random.random(parent.shape) < turns)
    return turned


def _decide(
    differences: NDArray[np.float64], margin: float, alpha: float, ends: Sequence[int]
) -> tuple[bool, int]:
    """Return if a comparison passes, and the items after the look that decides it."""
    n = len(differences)

    def seen(items: int) -> Wager:
        return wager(differences[:items], margin, alpha, reach=1.0, units=n)

    state = seen(n)
    if state.lacking == 0.0:
        return True, next(end for end in ends if end >= state.units)
    low, high = 0, len(ends) - 1  # A hopeless bet stays hopeless, but for chance.
    while low < high:
        middle = (low + high) // 2
        over = is_hopeless(seen(ends[middle]), margin, n - ends[middle])
        low, high = (low, middle) if over else (middle + 1, high)
    return False, ends[high]


def same_suites(
    items: int, margin: float, budget: float, *, alpha: float, rounds: int, sound: int = 0
) -> Design:
    """Return campaigns with one margin and one budget, whose gate stops early by its defaults."""
    gate = GateConfig(alpha=alpha, campaign_rounds=rounds, stopping="sequential")
    margins = {"parent": margin, "best": budget, "start": budget}
    return Design(items=items, margins=margins, gate=spent_by(gate, endless=False), sound=sound)


def campaigns(
    random: np.random.Generator, design: Design, times: int, change: float = 0.0
) -> dict[str, float]:
    """Return the means of several campaigns, and the share that accepted any candidate with the change."""
    drawn = [campaign(random, design, change) for _ in range(times)]
    return {
        "rounds": float(np.mean([figures["rounds"] for figures in drawn])),
        "items": float(np.mean([figures["items"] for figures in drawn])),
        "any": float(np.mean([figures["changed"] > 0 for figures in drawn])),
    }
