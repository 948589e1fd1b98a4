"""Sealed suites: never shown and never deciding, opened after every so many accepted rounds.

A gate that is asked again and again is fitted to, by people and by rules alike. A suite that nobody sees
tells later whether what was accepted holds up. At an opening the snapshot in production is compared with
the campaign's start (``budget``) and with the snapshot of the opening before (``margin``). Where it has
lost, an opening proposes to go back, to the newest accepted snapshot before it that did not; a person
decides. A loss counts as one where it is significant: what is merely not shown to be within the margin asks
for more items. An opening follows from stored results and from the settings its round was judged by, so it
is drawn anew whenever somebody looks and comes out the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from align.config.campaign import SuiteConfig
from align.gate.checks import Against, Check, check
from align.gate.measurement.evaluate import ItemResults
from align.gate.statistics.alpha import alpha_at
from align.gate.statistics.rules import CURRENT_RULE
from align.gate.suites.kinds import KINDS
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import Verdict
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.gate.evidence import Evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """Result of a sealed suite when it was opened."""

    suite: str
    round: str
    """The accepted round whose snapshot was looked at."""
    snapshot: SnapshotId
    checks: tuple[Check, ...]
    """Against the start, and against the opening before where there was one."""
    back_to: str | None = None
    """The newest earlier accepted round that had not lost; None: nothing was lost, or all had."""

    @property
    def outcome(self) -> Literal["held", "lost", "too_few_items"]:
        """``held``: shown to be no worse than allowed against both."""
        if all(check.outcome == "passed" for check in self.checks):
            return "held"
        return "lost" if any(map(_is_lost, self.checks)) else "too_few_items"

    @property
    def sentence(self) -> str:
        """The outcome, what it rests on, and where it proposes to go."""
        lost = [check for check in self.checks if _is_lost(check)]
        reasons = "; ".join(
            check.sentence for check in lost or self.checks if check.outcome != "passed"
        )
        head = f"sealed suite {self.suite!r}, opened after round {self.round!r}: "
        if self.outcome == "held":
            return f"{head}held"
        if self.outcome == "too_few_items":
            return f"{head}too few items to tell ({reasons})"
        where = (
            f"proposed: keel rollback CAMPAIGN --to {self.back_to} --reason 'sealed suite {self.suite}'"
            if self.back_to
            else "no accepted round before it had held, so there is none to go back to"
        )
        return f"{head}LOST ({reasons}). {where}"


def openings(evidence: Evidence) -> list[Opening]:
    """List every opening so far, suite by suite; one whose results are missing is not there yet."""
    return [
        opening
        for spec in evidence.config.suites
        if spec.role == "sealed" and spec.every
        for opening in _openings_of(spec, spec.every, evidence)
    ]


def is_due(evidence: Evidence, suite: str) -> bool:
    """Tell if a sealed suite is to be opened by now, and was not."""
    (spec,) = (spec for spec in evidence.config.suites if spec.name == suite)
    if spec.every is None:
        return False
    accepted = len(_path(spec, evidence)) - 1
    return len(_openings_of(spec, spec.every, evidence)) < accepted // spec.every


def any_due(evidence: Evidence) -> bool:
    """Tell if some sealed suite is to be opened by now, and was not."""
    sealed = (spec.name for spec in evidence.config.suites if spec.role == "sealed")
    return any(is_due(evidence, name) for name in sealed)


def _openings_of(spec: SuiteConfig, every: int, evidence: Evidence) -> list[Opening]:
    results = _results(spec, evidence)
    path = _path(spec, evidence)
    inputs = {
        record.name: Verdict.from_dict(record.report or {}).inputs
        for record in evidence.committed()
        if "inputs" in (record.report or {})
    }
    budget = evidence.config.gate.budget_of(spec)

    def compare(end: int, snapshot: SnapshotId, against: Against, other: SnapshotId) -> Check:
        name = path[end][0]
        then = inputs[name].gate if name in inputs else evidence.gate
        return check(
            _rule(spec, budget, results[snapshot]),
            results[snapshot],
            results[other],
            role="retention",
            against=against,
            margin=budget if against == "start" else spec.margin,
            # Openings share an alpha of their own: as many as the rounds declared then can cause.
            alpha=alpha_at(
                then.alpha, math.ceil(then.campaign_rounds / every), end // every, then.spending
            ),
            decided_by=inputs[name].decided_by if name in inputs else CURRENT_RULE,
        )

    opened: list[Opening] = []
    for end in range(every, len(path), every):
        if not {snapshot for _, snapshot in path[: end + 1]} <= results.keys():
            break
        name, snapshot = path[end]
        checks = [compare(end, snapshot, "start", evidence.base)]
        if end > every:
            checks.append(compare(end, snapshot, "last opening", path[end - every][1]))
        opening = Opening(suite=spec.name, round=name, snapshot=snapshot, checks=tuple(checks))
        if opening.outcome == "lost":
            passing = (
                earlier
                for earlier, candidate in reversed(path[1:end])
                if compare(end, candidate, "start", evidence.base).outcome == "passed"
            )
            opening = replace(opening, back_to=next(passing, None))
        opened.append(opening)
    return opened


def _path(spec: SuiteConfig, evidence: Evidence) -> list[tuple[str, SnapshotId]]:
    """Return the base and the accepted rounds, without those collected before the suite was measured."""
    records = [e for e in evidence.ledger.evaluations() if e.suite == spec.name]
    measured = {e.snapshot for e in records if e.suite_hash == records[-1].suite_hash}
    unknown = evidence.ledger.collected() - measured
    path = [("base", evidence.base), *evidence.accepted("policy").items()]
    return [(name, snapshot) for name, snapshot in path if snapshot not in unknown]


def _rule(spec: SuiteConfig, budget: float, measured: ItemResults) -> SuiteRule:
    kind = KINDS[spec.source]
    return SuiteRule(
        name=spec.name,
        kind=kind.kind,
        role="sealed",
        margin=spec.margin,
        budget=budget,
        target_of=None,
        hash=measured.suite_hash,
        value_range=kind.stated_range(spec, spec.metrics),
    )


def _is_lost(check: Check) -> bool:
    """Tell if the snapshot is worse, significantly, and not shown to be within the margin."""
    return check.outcome == "regressed" and check.interval[1] < 0.0


def _results(spec: SuiteConfig, evidence: Evidence) -> dict[SnapshotId, ItemResults]:
    """Return stored results by snapshot: all of the version of the suite that was measured last, and whole.

    A suite that decided before it was sealed may have stopped early; verdicts say of how many items.
    """
    records = [e for e in evidence.ledger.evaluations() if e.suite == spec.name]
    sizes = {
        rule.hash: rule.early.items
        for record in evidence.committed()
        if "inputs" in (record.report or {})
        for rule in Verdict.from_dict(record.report or {}).inputs.suites
        if rule.early is not None
    }
    return {
        e.snapshot: ItemResults.load(evidence.checked(e))
        for e in records
        if e.suite_hash == records[-1].suite_hash and e.n >= sizes.get(e.suite_hash, 0)
    }
