"""Losses and gains in a verdict: the two sides that a repair has to weigh."""

from __future__ import annotations

from align.gate.suites.suites import SuiteRule
from align.gate.verdict import Verdict


def lost(verdict: Verdict) -> tuple[str, ...]:
    """List the suites that had to be retained and were not shown to be."""
    failed = (c for c in verdict.checks if c.role == "retention" and c.outcome != "passed")
    return tuple(dict.fromkeys(check.suite for check in failed))


def lost_rounds(verdict: Verdict) -> set[str]:
    """Return the earlier rounds whose suites were lost."""
    return {rule.target_of for rule in _lost_rules(verdict) if rule.target_of is not None}


def lost_capability(verdict: Verdict) -> bool:
    """Tell if something was lost that no round trains."""
    return any(rule.target_of is None for rule in _lost_rules(verdict))


def gained(verdict: Verdict) -> bool:
    """Tell if the round's target was shown to be better."""
    return any(c.role == "target" and c.outcome == "passed" for c in verdict.checks)


def gain(verdict: Verdict) -> float:
    """Return the difference at the target, in units of its metric."""
    return next((c.difference for c in verdict.checks if c.role == "target"), 0.0)


def _lost_rules(verdict: Verdict) -> list[SuiteRule]:
    suites = lost(verdict)
    return [rule for rule in verdict.inputs.suites if rule.name in suites]
