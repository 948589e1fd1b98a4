"""The gate's comparisons suite by suite, all rounds of a suite on one scale.

A row is one comparison: a dot, its interval, zero, and the bound that the interval has to stay above. Rows
of one suite can be compared by eye, since a unit is as long in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from align.config.gate import Family
from align.gate.checks import Check, Outcome
from align.gate.suites.kinds import score_scale
from align.gate.summary import VerdictRow, row_of
from align.gate.verdict import Verdict
from align.report.html.limits import Limits

EDGE = 6.0
"""Percent of the width that stays free on either side."""
REACH = 12.0
"""Margins that an axis reaches to either side; a difference beyond it lies at the end, with an arrow.
Otherwise one collapsed candidate would leave no room to see what the others did within their margins."""
TICKS = 6
"""Most intervals between ticks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Axis of one suite: differences in the metric's unit to percent of the drawing's width."""

    low: float
    high: float
    factor: float
    """Shown numbers per unit: 100 for points."""

    def at(self, value: float) -> float:
        """Return the place of a difference, in percent from the left; one beyond the axis lies at its end.

        >>> Scale(low=-0.1, high=0.1, factor=100).at(0.0)
        50.0
        """
        span = (self.high - self.low) or 1.0
        share = min(max((value - self.low) / span, 0.0), 1.0)
        return round(EDGE + (100.0 - 2 * EDGE) * share, 2)

    def beyond(self, value: float) -> int:
        """Return -1 or 1 if a difference is below or above the axis, else 0."""
        return (value > self.high) - (value < self.low)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Places in percent with the differences there, at round numbers, 0 among them."""
        step = _step((self.high - self.low) * self.factor / TICKS)
        first = math.ceil(self.low * self.factor / step - 1e-9)
        last = math.floor(self.high * self.factor / step + 1e-9)
        return tuple(
            (self.at(i * step / self.factor), _label(i * step)) for i in range(first, last + 1)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ForestRow:
    """One comparison of one round."""

    round: str
    number: int
    """Number of the round, from 1."""
    check: Check
    words: VerdictRow

    @property
    def outcome(self) -> Outcome:
        """The gate's, for the mark and its colour."""
        return self.check.outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """All comparisons of one suite's mean."""

    suite: str
    family: Family
    unit: str
    scale: Scale
    rows: tuple[ForestRow, ...]
    left_out: int
    """Older comparisons that passed, which there was no room for."""


def forests_of(
    verdicts: Iterable[tuple[int, str, Verdict]], limits: Limits
) -> tuple[tuple[Forest, ...], int]:
    """Return the drawings of a campaign, and the number of suites there was no room for.

    Suites that kept a candidate out come first, then in the order of their first comparison.

    Args:
        verdicts: index and name of every decided round, in order.
    """
    rows: dict[str, list[ForestRow]] = {}
    units: dict[str, str] = {}
    for index, name, verdict in verdicts:
        rules = {rule.name: rule for rule in verdict.inputs.suites}
        for check in verdict.checks:
            if check.what == "value":
                words = row_of(check, rules[check.suite])
                row = ForestRow(round=name, number=index + 1, check=check, words=words)
                rows.setdefault(check.suite, []).append(row)
        units |= {name: score_scale(rule).unit for name, rule in rules.items()}
    suites = sorted(rows, key=lambda suite: not any(map(_failed, rows[suite])))
    forests = []
    for suite in suites[: limits.forests]:
        shown = rows[suite]
        if len(shown) > limits.forest_rows:
            order = sorted(range(len(shown)), key=lambda i: (not _failed(shown[i]), -i))
            shown = [shown[i] for i in sorted(order[: limits.forest_rows])]
        scale = scale_of([row.check for row in shown])
        forests.append(
            Forest(
                suite=suite,
                family=shown[0].check.family,
                unit="points" if scale.factor == 100.0 else units[suite] or "score",
                scale=scale,
                rows=tuple(shown),
                left_out=len(rows[suite]) - len(shown),
            )
        )
    return tuple(forests), len(suites) - len(forests)


def scale_of(checks: Sequence[Check]) -> Scale:
    """Return the axis on which comparisons of one suite fit, with zero and all bounds."""
    ends = [0.0]
    for check in checks:
        ends += [*check.interval, check.difference]
        if check.test != "exact":
            ends.append(-check.allowed)
    finite = [end for end in ends if math.isfinite(end)]
    points = any(check.test in ("tango", "exact") for check in checks)
    most = REACH * max((check.allowed for check in checks), default=0.0)
    low, high = min(finite), max(finite)
    if most > 0:
        low, high = max(low, -most), min(high, most)
    return Scale(low=low, high=high, factor=100.0 if points else 1.0)


def _failed(row: ForestRow) -> bool:
    return row.check.role != "shown" and row.check.outcome != "passed"


def _step(rough: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least ``rough``.

    >>> [_step(x) for x in (0.03, 0.9, 3.0, 12.0, 60.0)]
    [0.05, 1.0, 5.0, 20.0, 100.0]
    """
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(round(m * power, 12) for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _label(value: float) -> str:
    """Write a tick with its sign.

    >>> [_label(v) for v in (-20.0, 0.0, 5.0, 0.05)]
    ['−20', '0', '+5', '+0.05']
    """
    text = f"{abs(value):.10g}"
    return text if not value else f"{'−' if value < 0 else '+'}{text}"
