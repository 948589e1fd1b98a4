"""What a round changed, on items that nobody picked: its own suite's, before and after."""

from __future__ import annotations

from hashlib import sha256

from align.gate.evidence import Evidence
from align.gate.verdict import Verdict
from align.report.html.items import Item, pair_of
from align.report.html.limits import Limits


def samples_of(evidence: Evidence, verdict: Verdict, limits: Limits) -> tuple[Item, ...]:
    """Items of the round's own suite under its parent and under its candidate.

    They are drawn by a hash of their ids: no page shows the flattering ones, and every page of a suite
    shows the same. None where results are gone or hold no answers.
    """
    targets = [
        rule.name for rule in verdict.inputs.suites if rule.target_of == verdict.inputs.target
    ]
    parent = verdict.inputs.parent.get(targets[0]) if targets else None
    wanted = parent is not None and limits.samples > 0
    pair = pair_of(evidence, verdict, targets[0], parent) if parent and wanted else None
    if pair is None:
        return ()
    drawn = sorted(pair.changes, key=lambda change: sha256(change[1].encode()).digest())
    items = pair.items(drawn[: limits.samples], limits.text)
    return tuple(item for item in items if item.answer_after is not None)
