"""The rows of a judgement's table, the same wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.judge.judgement import Judgement, title_of

COLUMNS = (
    "suite",
    "items",
    "incumbent",
    "candidate",
    "difference",
    "interval",
    "margin",
    "outcome",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgementRow:
    """One check, or the mean of a suite that decides nothing."""

    cells: tuple[str, ...]
    """One per column of `COLUMNS`."""
    outcome: str
    decides: bool


def rows_of(judgement: Judgement) -> Iterator[JudgementRow]:
    """Yield one row per suite, and one more for each other check of it that did not pass."""
    for check in judgement.verdict.checks:
        is_mean, decides = check.what == "value", check.role != "shown"
        if not is_mean and check.outcome == "passed":
            continue
        candidate = judgement.candidate_results[check.suite]
        incumbent = judgement.incumbent_results[check.suite]
        demand = f"gain {check.amount(check.margin)}" if check.role == "target" else ""
        low, high = map(check.amount, check.interval)
        yield JudgementRow(
            cells=(
                check.suite if is_mean else f"{check.suite}: {title_of(check)}",
                f"{check.n:,}",
                f"{incumbent.mean:.4g}" if is_mean else "",
                f"{candidate.mean:.4g}" if is_mean else "",
                f"{'+' if check.difference > 0 else ''}{check.amount(check.difference)}",
                f"{low} to {high}",
                demand or check.amount(check.margin),
                check.outcome.replace("_", " ") if decides else "shown only",
            ),
            outcome=check.outcome,
            decides=decides,
        )


def passed_line(judgement: Judgement) -> str | None:
    """Say how many checks passed that have no row of their own; None: there are none."""
    others = [c for c in judgement.verdict.checks if c.what != "value" and c.outcome == "passed"]
    if not others:
        return None
    titles = ", ".join(dict.fromkeys(title_of(check) for check in others))
    return f"{len(others)} other check{'s' if len(others) > 1 else ''} passed: {titles}"
