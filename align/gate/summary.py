"""A verdict as one table: what kept the candidate out, what it gained, what it lost although it passed.

All numbers of a row are signed alike. A difference is candidate minus comparator, so a gain is above 0 and
a loss below; the bound is the difference that the interval has to stay above. Comparisons of how many
answers were cut or have a score are one row while all of them pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from align.gate.checks import IN_POINTS, Check, What
from align.gate.suites.kinds import score_scale
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import Verdict

Group = Literal["kept it out", "gained", "lost, but allowed", "held", "decides nothing"]
ORDER: tuple[Group, ...] = (
    "kept it out", "gained", "lost, but allowed", "held", "decides nothing",
)  # fmt: skip
"""Groups of rows, the first first."""
RATES: frozenset[What] = frozenset({"truncation", "failure"})
"""Shares of answers: they say nothing about what was learned, and whether to trust what does."""
SUBJECTS: Mapping[What, str] = {
    "value": "",
    "truncation": "answers that end by themselves",
    "failure": "answers with a score",
    "zero_tolerance": "items that must not fail",
}
HEAD = (
    "part", "suite", "against", "change", "interval", "must be above", "lost / won / items", "outcome",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictRow:
    """One comparison, or several that say the same, in words."""

    group: Group
    suite: str
    against: str
    change: str
    """Candidate minus comparator, signed, with its unit."""
    interval: str
    bound: str
    """Difference that the interval must stay above, signed as the change is."""
    items: str
    says: str
    """The outcome in words."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row in the order of `HEAD`."""
        return (
            self.group,
            self.suite,
            self.against,
            self.change,
            self.interval,
            self.bound,
            self.items,
            self.says,
        )


def verdict_rows(verdict: Verdict) -> list[VerdictRow]:
    """Return the table of a verdict, what kept the candidate out first."""
    units = {rule.name: score_scale(rule).unit for rule in verdict.inputs.suites}
    folded = folded_row(verdict)
    rows = [
        _row(check, _unit(check, units.get(check.suite, "")))
        for check in sorted(verdict.checks, key=_severity)
        if folded is None or check not in _passed_rates(verdict)
    ]
    rows.sort(key=lambda row: ORDER.index(row.group))
    if folded is not None:
        index = next((i for i, r in enumerate(rows) if r.group == "decides nothing"), len(rows))
        rows.insert(index, folded)
    return rows


def folded_row(verdict: Verdict) -> VerdictRow | None:
    """Return the comparisons of rates that passed as one row; None if there are fewer than two."""
    passed = _passed_rates(verdict)
    return _folded(passed) if len(passed) > 1 else None


def _passed_rates(verdict: Verdict) -> list[Check]:
    return [c for c in verdict.checks if c.what in RATES and c.outcome == "passed"]


def row_of(check: Check, rule: SuiteRule) -> VerdictRow:
    """Return one comparison of a suite in words."""
    return _row(check, _unit(check, score_scale(rule).unit))


def severity(check: Check) -> tuple[int, bool, int, bool, float]:
    """Return a key that sorts checks as the table of a verdict has them."""
    return ORDER.index(_group(check)), *_severity(check)


def reason_of(verdict: Verdict) -> str:
    """Return the first reason a candidate was kept out, as one sentence; empty if it was not."""
    if verdict.inputs.objections:
        return verdict.inputs.objections[0]
    failed = [c for c in verdict.checks if c.role != "shown" and c.outcome != "passed"]
    if not failed:
        return ""
    units = {rule.name: score_scale(rule).unit for rule in verdict.inputs.suites}
    worst, *others = sorted(failed, key=_severity)
    suites = {check.suite for check in others} - {worst.suite}
    more = f" (and {counted(len(suites), 'other suite')})" if suites else ""
    return _reason(worst, _unit(worst, units.get(worst.suite, ""))) + more


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines of aligned columns; the last column may be of any length."""
    table = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[-1] = 0
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _severity(check: Check) -> tuple[bool, int, bool, float]:
    """Order the most telling first: shown last, the gravest outcome, the target, the least room."""
    grave = ("void", "regressed", "not_improved", "too_few_items", "passed")
    room = (check.difference + check.allowed) / (abs(check.margin) or 1.0)
    return check.role == "shown", grave.index(check.outcome), check.role != "target", room


def _row(check: Check, unit: str) -> VerdictRow:
    names = {"start": "the start", "best": "the best so far", "parent": "its parent"}
    against = ", ".join(names.get(name, name) for name in (check.against, *check.also))
    suite = check.suite
    if check.what != "value":
        suite += f": {SUBJECTS[check.what]}"
    exact = check.test == "exact"
    failed = f", {check.failed} failed" if check.failed else ""
    clusters = f" in {check.clusters} clusters" if check.clusters else ""
    says = [check.words] if check.role != "shown" else []
    if check.needed is not None and check.outcome != "passed":
        says.append(f"about {check.needed:,} items would show it")
    return VerdictRow(
        group=_group(check),
        suite=suite,
        against=check.snapshot if check.snapshot in ("chance", "length") else against,
        change=f"{_signed(check, check.difference)}{unit}",
        interval=f"{_signed(check, check.interval[0])} to {_signed(check, check.interval[1])}",
        bound="no item lost" if exact else f"{_signed(check, -check.allowed)}{unit}",
        items=f"{check.lost} / {check.won} / {check.n:,}{clusters}{failed}",
        says="; ".join(filter(None, says)),
    )


def _group(check: Check) -> Group:
    if check.role == "shown":
        return "decides nothing"
    if check.outcome != "passed":
        return "kept it out"
    if check.role == "target" or check.interval[0] > 0:
        return "gained"
    return "lost, but allowed" if check.difference < 0 else "held"


def _folded(checks: Sequence[Check]) -> VerdictRow:
    """Return all rates that passed as one row, with the numbers of the closest."""
    closest = min(checks, key=_severity)
    row = _row(closest, _unit(closest, ""))
    suites = len({check.suite for check in checks})
    lowest = min(check.difference for check in checks)
    return VerdictRow(
        group="held" if lowest >= 0 else "lost, but allowed",
        suite=f"answers not cut, or with a score ({counted(suites, 'suite')})",
        against=row.against,
        change=row.change,
        interval=row.interval,
        bound=row.bound,
        items=row.items,
        says=f"all {counted(len(checks), 'comparison')} passed; closest: {closest.suite}",
    )


def _reason(check: Check, unit: str) -> str:
    names = {"start": "the start", "best": "the best so far", "parent": "its parent"}
    whom = check.snapshot if check.snapshot in ("chance", "length") else names[check.against]
    subject = f"{check.suite}" + (f" ({SUBJECTS[check.what]})" if check.what != "value" else "")
    moved = f"{check.amount(abs(check.difference))}{unit}"
    verb = "gained" if check.difference >= 0 else "lost"
    limit = f"{check.amount(check.margin)}{unit}"
    needed = "" if check.needed is None else f"; about {check.needed:,} items would show it"
    if check.outcome == "void":
        return f"{subject}: {check.words}"
    if check.what == "zero_tolerance":
        return f"{subject}: {check.lost} of {check.n} that passed under {whom} fail now"
    if check.role == "target":
        return (
            f"{subject} {verb} {moved} against {whom}, and more than {limit} had to be gained: "
            f"{check.words}{needed}"
        )
    words = f": {check.words}" if check.is_inside or check.outcome != "regressed" else ""
    return (
        f"{subject} {verb} {moved} against {whom}, and at most {limit} may be lost{words}{needed}"
    )


def _unit(check: Check, value_unit: str) -> str:
    if check.test in IN_POINTS:
        return " points"
    return f" {value_unit}" if value_unit else ""


def _signed(check: Check, value: float) -> str:
    """Return a difference with its sign, as `Check.amount` rounds it."""
    text = check.amount(abs(value))
    if not float(text):
        return text
    return f"{'+' if value > 0 else '-'}{text}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, which has an s unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
