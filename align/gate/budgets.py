"""Said before a round runs: that no candidate could pass, because production itself would not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.config.campaign import RoundConfig
from align.gate.checks import Check, check
from align.gate.evidence import Evidence
from align.gate.suites.looks import in_common
from align.gate.suites.suite import Suite
from rollouts.errors import UserError
from rollouts.types import SnapshotId


def check_budgets(
    evidence: Evidence, round: RoundConfig, suites: Sequence[Suite], note: Callable[[str], None]
) -> None:
    """Refuse a round while the loss of production has used up a budget; tell of one that is nearly used.

    A candidate equal to production would be rejected, after all of the round's work. An observing gate
    only tells, and so do the first items of a suite that may stop early while the loss may be chance.

    Raises:
        UserError: a budget is spent, or a margin is no share although all values are 0 or 1.
    """
    if round.algorithm.makes != "policy":
        return
    production = evidence.ledger.alias("production") or evidence.base
    enforced = evidence.config.gate.mode == "enforce"
    early = {s.name: s.early.items for s in suites if s.early is not None}
    for shortfall in budget_checks(evidence, round.name, production, suites):
        if shortfall.outcome == "passed":
            continue
        lost = max(0.0, -shortfall.difference)
        used = f"{shortfall.amount(lost)} of {shortfall.amount(shortfall.margin)}"
        is_spent = -shortfall.difference >= shortfall.margin
        is_certain = shortfall.n >= early.get(shortfall.suite, 0) or shortfall.interval[1] < 0.0
        if enforced and is_spent and is_certain:
            raise UserError(
                f"the budget of suite {shortfall.suite!r} is spent: production has lost {used} against "
                f"the anchor {shortfall.snapshot[:16]}",
                where=f"round {round.name!r}",
                cause="earlier rounds lost a little each, or an observing gate let them through",
                remedy="a person may accept this loss with keel gate baseline CAMPAIGN SNAPSHOT --reason "
                "TEXT; else go back to an earlier snapshot, or let the gate only observe",
            )
        why = "" if lost else ", since its items are too few to show it"
        note(
            f"{round.name}: {shortfall.suite} has used {used} of its budget; a candidate equal to "
            f"production would not pass{why}"
        )


def budget_checks(
    evidence: Evidence, target: str, production: SnapshotId, suites: Sequence[Suite]
) -> list[Check]:
    """Check production against the baseline, on every suite that guards the round."""
    alpha, role = evidence.level_at(evidence.looks() + 1), evidence.role_in(target)
    guards = [suite for suite in suites if role(suite.rule) == "retention"]
    now = evidence.load(production, guards)
    checks = []
    for suite in guards:
        _require_share(suite, all(value in (0.0, 1.0) for value in now[suite.name].values))
        anchor = evidence.baseline(suite.name)
        if anchor != production:
            start = evidence.load(anchor, [suite])[suite.name]
            start, latest = in_common(start, now[suite.name])
            checks.append(
                check(
                    suite.rule,
                    latest,
                    start,
                    role="retention",
                    against="start",
                    margin=suite.budget,
                    alpha=alpha,
                )
            )
    return checks


def _require_share(suite: Suite, pass_fail: bool) -> None:
    """Refuse a margin that is too wide for the values, for a metric whose range is not stated."""
    if suite.scale.of_metric and pass_fail and not 0 < suite.margin <= suite.budget < 1:
        raise UserError(
            f"suite {suite.name!r} has a margin of {suite.margin:g} and a budget of {suite.budget:g}, "
            "and all its values are 0 or 1",
            where=suite.name,
            remedy="give shares between 0 and 1, such as 0.02 for two points, the budget not below the "
            "margin; or state the range of its metric",
        )
