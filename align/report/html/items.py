"""Items that a candidate lost and won, and samples of it, with the answers that were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.verdict import Verdict
from align.report.episodes import episode_lines
from align.report.html.limits import Limits
from align.report.printable import cut
from align.report.records.compared import ComparedItem, ComparedResults, pair_between
from align.round.rollout_table import Record, load_records
from align.store.run_folder import RoundFolder
from rollouts.errors import KeelError
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteChanges:
    """Items of one suite that changed, the largest changes first."""

    suite: str
    against: str
    lost: tuple[ComparedItem, ...]
    won: tuple[ComparedItem, ...]
    num_lost: int
    num_won: int


def changes(evidence: Evidence, verdict: Verdict, limits: Limits) -> tuple[SuiteChanges, ...]:
    """List what changed on the suites that matter most to a verdict: those that failed come first, then the
    target, then the largest losses."""
    worst: dict[str, Check] = {}
    for check in sorted(
        verdict.checks,
        key=lambda c: (c.role == "shown", c.outcome == "passed", c.role != "target", c.difference),
    ):
        worst.setdefault(check.suite, check)
    changed: list[SuiteChanges] = []
    for check in worst.values() if limits.suites else ():
        pair = pair_of(evidence, verdict, check.suite, check.snapshot)
        lost = [change for change in pair.changes if change[0] < 0] if pair else []
        won = [change for change in reversed(pair.changes) if change[0] > 0] if pair else []
        if pair and (lost or won):
            shown_lost, shown_won = lost[: limits.items], won[: limits.items]
            items = pair.items([*shown_lost, *shown_won], limits.text)
            changed.append(
                SuiteChanges(
                    suite=check.suite,
                    against=", ".join((check.against, *check.also)),
                    lost=items[: len(shown_lost)],
                    won=items[len(shown_lost) :],
                    num_lost=len(lost),
                    num_won=len(won),
                )
            )
        if len(changed) == limits.suites:
            break
    return tuple(changed)


def pair_of(
    evidence: Evidence, verdict: Verdict, suite: str, comparator: SnapshotId
) -> ComparedResults | None:
    """Return the results that a check compared; None if some are gone, or the comparator is a rule."""
    hashes = {rule.name: rule.hash for rule in verdict.inputs.suites}
    candidate = verdict.inputs.candidate.get(suite)
    if candidate is None:
        return None
    return pair_between(evidence, hashes.get(suite), candidate, comparator)


def samples_of(evidence: Evidence, verdict: Verdict, limits: Limits) -> tuple[ComparedItem, ...]:
    """Show items of the round's own suite under its parent and under its candidate.

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


NAME = 120
"""Bytes of a part's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One completion and what it was worth."""

    prompt: str | None
    completion: str | None
    value: float
    parts: tuple[tuple[str, float], ...]
    """Raw rewards by part; empty where the only part is the whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaidAt:
    """Completions of one learner step, the best first, evenly down to the worst."""

    step: int
    """Counted from 1."""
    said: tuple[Said, ...]


def said_of(folder: RoundFolder, limits: Limits) -> tuple[SaidAt, ...]:
    """Read completions of the round's last attempt with tables; damaged tables are left out."""
    attempts = reversed(folder.attempts()) if limits.samples else ()
    tables = next(filter(None, (attempt.tables() for attempt in attempts)), {})
    steps = []
    for step in dict.fromkeys((min(tables), max(tables))) if tables else ():
        try:
            records = [r for r in load_records(tables[step]) if r["source"] == "new"]
        except (KeelError, KeyError):
            continue
        scored = sorted((r for r in records if r["value"] is not None), key=lambda r: -r["value"])
        if scored:
            shown = spread(scored, limits.samples)
            steps.append(SaidAt(step=step + 1, said=tuple(_said(r, limits.text) for r in shown)))
    return tuple(steps)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """Choose the first, the last, and others evenly between; of one only the middle.

    >>> spread([{"n": n} for n in range(5)], 3)
    [{'n': 0}, {'n': 2}, {'n': 4}]
    """
    last = len(records) - 1
    if count == 1:
        return [records[last // 2]]
    indices = dict.fromkeys(round(last * i / (count - 1)) for i in range(count))
    return [records[index] for index in indices]


def _answer(record: Record) -> str | None:
    """Return an answer as a page shows it; an episode turn by turn."""
    stored = record.get("episode")
    return "\n".join(episode_lines(stored)) if stored else record["completion"]


def _said(record: Record, text: int) -> Said:
    names = [name for name in record if name.startswith("reward/")]
    parts = [
        (cut(name.partition("/")[2], NAME) or "", record[name])
        for name in names
        if record[name] is not None
    ]
    return Said(
        prompt=cut(record["prompt"], text),
        completion=cut(_answer(record), text),
        value=record["value"],
        parts=tuple(parts) if len(names) > 1 else (),
    )
