"""Records of every round: its states and times, what its steps measured, and how two rounds differ.

Read from the ledger, the campaign file and ``metrics.jsonl`` alone; nothing is loaded or run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from align.config.campaign import CampaignConfig
from align.data.retrieval.record import IndexRecord, index_of_report
from align.gate.evidence import Evidence
from align.gate.forgetting import transitions
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.looks import in_common
from align.report.records.window import Window
from align.round.spending import Spent, spent
from align.round.watch.record import WatchRecord
from align.schedule.due import Skip
from align.schedule.skips import skips
from align.store.ledger.amendments import drops_of
from align.store.ledger.digests import Digests, digests_of
from align.store.ledger.ledger import RoundRecord
from align.store.repairs import MergeOrigin, RepairStep, merge_of, repairs_of
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundEntry:
    """A round as its latest attempt stands."""

    index: int | None
    """Place in the ledger; None if the round was skipped before it had one."""
    name: str
    attempt: int
    """Number of the latest attempt; 0 before the first."""
    state: str
    verdict: str | None
    """Outcome that the evidence gives, even if the gate only observes; None before a decision."""
    parent: SnapshotId | None
    candidate: SnapshotId | None
    started: str | None
    """ISO 8601, UTC; so is ``ended``."""
    ended: str | None
    seconds: float | None
    skipped: str | None = None
    """Sentence on who passed the round over or dropped it, when and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric over the steps of a round that have it."""

    name: str
    steps: int
    first: float
    last: float
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemChanges:
    """Items of a suite on which two snapshots differ; a difference of means hides what cancels."""

    suite: str
    n: int
    lost: int
    won: int
    lost_share: float
    won_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDetail:
    """All that a round left behind, shortened."""

    entry: RoundEntry
    steps: int
    """Learner steps on record."""
    tokens: Mapping[str, int]
    """Tokens that were learnt from or held, by source of the prompts: new, past and general."""
    metrics: tuple[Metric, ...]
    reasons: tuple[str, ...]
    """Sentences on what kept the candidate out."""
    spent: Spent | None = None
    """Work on what is new and on retention; None before the first step."""
    changed: tuple[ItemChanges, ...] = ()
    """Items that the candidate lost and won against its parent, suite by suite."""
    repairs: tuple[RepairStep, ...] = ()
    """All candidates, if the first was refused and others were tried."""
    merge: MergeOrigin | None = None
    """Origin of the round's own candidate if it was merged; None if it is what was trained."""
    watch: WatchRecord = field(default_factory=WatchRecord)
    """Signs that the reward was gamed."""
    documents: IndexRecord | None = None
    """Index that the candidate reads; None if it reads none, or before a verdict."""

    def named(self, prefix: str) -> tuple[Metric, ...]:
        """Return the metrics of one family, such as ``reward/`` or ``drift/``."""
        return tuple(metric for metric in self.metrics if metric.name.startswith(prefix))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A setting that two rounds have different; None where one has no such setting."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreChange:
    """Means of two candidates on one suite."""

    suite: str
    first: float | None
    second: float | None
    difference: float | None
    """``second`` minus ``first``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDiff:
    """Differences of two rounds in their settings and their scores."""

    first: str
    second: str
    config: tuple[Change, ...]
    scores: tuple[ScoreChange, ...]


def entries(evidence: Evidence, window: Window | None = None) -> list[RoundEntry]:
    """List the rounds of the ledger in order, dropped ones included.

    Rounds that a person skipped before they were planned come last.

    Args:
        window: rounds to list; None: all.
    """
    digests = digests_of(evidence.ledger.database)
    skipped = {skip.round: skip.sentence for skip in skips(evidence.ledger)}
    drops = {drop.index: drop.sentence for drop in drops_of(evidence.ledger.database)}
    records = _latest(evidence.ledger.attempts())
    recorded = [
        replace(
            _entry(record, digests),
            skipped=drops.get(record.index) or skipped.pop(record.name, None),
        )
        for record in records
        if window is None or record.index in window
    ]
    if window is not None and not window.ends:
        return recorded
    if window is not None:
        skipped = {n: s for n, s in skipped.items() if n not in {r.name for r in records}}
    never = [
        RoundEntry(
            index=None, name=name, attempt=0, state="skipped", verdict=None, parent=None,
            candidate=None, started=None, ended=None, seconds=None, skipped=sentence,
        )
        for name, sentence in skipped.items()
    ]  # fmt: skip
    return [*recorded, *never]


def record_of(evidence: Evidence, name: str) -> RoundRecord:
    """Return the latest attempt at a round.

    Raises:
        UserError: there is no such round; names the nearest one.
    """
    records = {record.name: record for record in _latest(evidence.ledger.attempts())}
    records |= {record.name: record for record in evidence.ledger.rounds()}
    if name not in records:
        raise UserError(
            f"there is no round {name!r}", where="ROUND", remedy=nearest(name, list(records))
        )
    return records[name]


def detail(evidence: Evidence, name: str) -> RoundDetail:
    """Read what a round left behind."""
    record = record_of(evidence, name)
    steps = evidence.store.paths.round(record.index, record.name).steps()
    metrics = summaries(steps.values())
    sources = ("new", "past", "general")
    totals = {m.name: round(m.mean * m.steps) for m in metrics if m.name.endswith("_tokens")}
    return RoundDetail(
        entry=_entry(record, digests_of(evidence.ledger.database)),
        steps=len(steps),
        tokens={s: totals[key] for s in sources if (key := f"batch/{s}_tokens") in totals},
        metrics=metrics,
        reasons=reasons_of(record, skips(evidence.ledger)),
        spent=spent(steps.values()) if steps else None,
        changed=tuple(_changed(evidence, record)),
        repairs=repairs_of(record.report),
        merge=merge_of(record.report),
        watch=watch_of(evidence, record),
        documents=index_of_report(record.report),
    )


def reasons_of(record: RoundRecord, skipped: Iterable[Skip]) -> tuple[str, ...]:
    """Say what kept the candidate out, or who skipped the round and why.

    Args:
        skipped: all skips of the campaign.
    """
    sentences = [skip.sentence for skip in skipped if skip.round == record.name]
    return (*(record.report or {}).get("reasons", ()), *sentences)


def _changed(evidence: Evidence, record: RoundRecord) -> Iterator[ItemChanges]:
    """Compare parent and candidate on every suite that both were measured on, but for sealed ones."""
    if record.parent is None or record.candidate is None:
        return
    before = {e.suite_hash: e for e in evidence.ledger.evaluations(record.parent)}
    for after in evidence.ledger.evaluations(record.candidate):
        if after.suite_hash not in before or after.suite in sealed_names(evidence.config):
            continue
        paths = map(evidence.checked, (before[after.suite_hash], after))
        changes = transitions(*in_common(*(ItemResults.load(path) for path in paths)))
        yield ItemChanges(
            suite=after.suite,
            n=changes.n,
            lost=changes.lost,
            won=changes.won,
            lost_share=changes.lost_share,
            won_share=changes.won_share,
        )


def watch_of(evidence: Evidence, record: RoundRecord) -> WatchRecord:
    """Read what was noticed of a round's latest attempt, or of its first candidate if others were tried."""
    folder = evidence.store.paths.attempt(record.index, record.name, record.attempt)
    return WatchRecord.load(folder.path)


def diff(evidence: Evidence, first: str, second: str) -> RoundDiff:
    """Compare settings and scores of two rounds."""
    rounds = [record_of(evidence, name) for name in (first, second)]
    specs = {s.name: s.model_dump(mode="json") for s in evidence.config.rounds}
    settings = [dict(_leaves(specs.get(name, {}))) for name in (first, second)]
    keys = dict.fromkeys([*settings[0], *settings[1]])
    sealed = sealed_names(evidence.config)
    records = [e for e in evidence.ledger.evaluations() if e.suite not in sealed]
    means = {(e.snapshot, e.suite): e.mean for e in records}
    candidates = [record.candidate or "" for record in rounds]
    scores = {
        suite: [means.get((candidate, suite)) for candidate in candidates]
        for suite in dict.fromkeys(suite for _, suite in means)
    }
    return RoundDiff(
        first=first,
        second=second,
        config=tuple(
            Change(key=key, first=settings[0].get(key), second=settings[1].get(key))
            for key in keys
            if key != "name" and settings[0].get(key) != settings[1].get(key)
        ),
        scores=tuple(
            ScoreChange(
                suite=suite,
                first=before,
                second=after,
                difference=None if before is None or after is None else after - before,
            )
            for suite, (before, after) in scores.items()
            if before is not None or after is not None
        ),
    )


def sealed_names(config: CampaignConfig) -> frozenset[str]:
    """Name the suites that nobody looks at."""
    return frozenset(suite.name for suite in config.suites if suite.role == "sealed")


def summaries(steps: Iterable[Mapping[str, float]]) -> tuple[Metric, ...]:
    """Summarise every metric over the steps that have it, by name."""
    series: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            series.setdefault(name, []).append(value)
    return tuple(
        Metric(
            name=name,
            steps=len(values),
            first=values[0],
            last=values[-1],
            mean=math.fsum(values) / len(values),
            lowest=min(values),
            highest=max(values),
        )
        for name, values in sorted(series.items())
    )


def _entry(record: RoundRecord, digests: Digests) -> RoundEntry:
    digest = digests.get((record.index, record.attempt))
    seconds = None
    if record.started and record.ended:
        took = datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)
        seconds = took.total_seconds()
    return RoundEntry(
        index=record.index,
        name=record.name,
        attempt=record.attempt,
        state=record.state,
        verdict=None if digest is None else digest.outcome,
        parent=record.parent,
        candidate=record.candidate,
        started=record.started,
        ended=record.ended,
        seconds=seconds,
    )


def _latest(attempts: Iterable[RoundRecord]) -> list[RoundRecord]:
    """Return the latest attempt of every round, dropped ones included."""
    latest = {record.index: record for record in attempts}
    return [latest[index] for index in sorted(latest)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    nested = list(items)
    if not nested and path:
        yield path, value
    for key, child in nested:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))
