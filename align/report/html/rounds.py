"""One round as the page shows it: what was asked of it, what the gate tested, what was tried to save it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from align.config.campaign import RoundConfig
from align.data.retrieval.record import IndexRecord, index_of_report
from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.summary import RATES, VerdictRow, folded_row, reason_of, row_of, severity
from align.gate.verdict import Verdict
from align.report.html.charts import Panel, Steps, curve, panels
from align.report.html.forest import Scale, scale_of
from align.report.html.items import SaidAt, SuiteChanges, changes, said_of, samples_of
from align.report.html.limits import Limits
from align.report.printable import cut
from align.report.records.compared import ComparedItem
from align.report.records.history import Metric, reasons_of, summaries, watch_of
from align.report.records.wall_time import WallTime, attempt_seconds, wall_time
from align.report.tables import outcome_of
from align.round.spending import Spent, spent
from align.round.watch.record import WatchRecord
from align.schedule.skips import skips
from align.store.ledger.ledger import RoundRecord
from align.store.ledger.reservations import Reservation
from align.store.repairs import (
    MergeOrigin,
    RepairStep,
    accepted_repair,
    merge_of,
    repairs_of,
)
from align.store.run_folder import RoundFolder
from align.store.snapshots.manifest import Manifest
from rollouts.errors import KeelError
from rollouts.types import SnapshotId

DECIDED = ("accepted", "rejected")
"""States of a round with a verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Work and time spent on a round."""

    seconds: float
    """Wall clock of all attempts, from their beginning to their verdict."""
    repair_seconds: float
    """Seconds of these that went into repairs."""
    spent: Spent
    """Work of the round's own learner steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckView:
    """One check with the budget it draws on."""

    check: Check
    words: VerdictRow
    budget: float | None
    """Loss allowed over the whole campaign; None where it was not compared with the baseline."""
    scale: Scale
    """Axis of the suite, which all its checks of the round share."""

    @property
    def used(self) -> float:
        """Loss against the baseline."""
        return max(0.0, -self.check.difference)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundView:
    """One round."""

    index: int
    name: str
    is_full: bool
    """False: the page has one line of it."""
    state: str
    attempts: int
    algorithm: str
    rewards: tuple[str, ...]
    feedback: str
    """Sentence on the rows that it read of the inbox; empty if it reads none."""
    steps_done: int
    steps: int
    outcome: str | None
    """The verdict in words; None while there is none."""
    reason: str
    """The first reason that kept the candidate out, as one sentence; empty if nothing did."""
    reasons: tuple[str, ...]
    reasons_left_out: int
    repairs: tuple[RepairStep, ...]
    """All candidates, if the first was refused and others were tried."""
    merge: MergeOrigin | None
    """Origin of the round's own candidate if it was merged."""
    documents: IndexRecord | None
    """Index that the candidate reads."""
    repaired: RepairStep | None
    """The one that was accepted."""
    checks: tuple[CheckView, ...]
    checks_left_out: int
    folded: VerdictRow | None
    """All comparisons of how many answers were cut or have a score, where there are several and all of
    them passed."""
    changes: tuple[SuiteChanges, ...]
    samples: tuple[ComparedItem, ...]
    said: tuple[SaidAt, ...]
    panels: tuple[Panel, ...]
    repair_panels: tuple[Panel, ...]
    """Charts of the learner steps that made the accepted repair."""
    ranges: tuple[Metric, ...]
    ranges_left_out: int
    signals: Signals
    cost: Cost
    time: WallTime
    candidate: SnapshotId | None
    manifest: Manifest | None


def round_view(
    evidence: Evidence,
    record: RoundRecord,
    attempts: Sequence[RoundRecord],
    reservations: Mapping[str, Reservation],
    now: datetime,
    limits: Limits,
) -> RoundView:
    """Collect everything about one round.

    Args:
        record: its latest attempt.
        attempts: of all rounds.
        reservations: what rounds read of the inbox, by round.
    """
    spec = next((spec for spec in evidence.config.rounds if spec.name == record.name), None)
    begun = [a for a in attempts if a.index == record.index and a.attempt > 0]
    folder = evidence.store.paths.round(record.index, record.name)
    steps = folder.steps()
    verdict = Verdict.to_show(record.report or {}) if record.state in DECIDED else None
    folded = folded_row(verdict) if verdict else None
    checks = check_views(verdict, folded) if verdict else []
    reasons = verdict.reasons if verdict else _unjudged(evidence, record)
    repairs = repairs_of(record.report) if verdict else ()
    ranges = sorted(summaries(steps.values()), key=lambda m: m.name.startswith("drift/K_old/"))
    return RoundView(
        index=record.index,
        name=record.name,
        is_full=limits.checks > 0,
        state=record.state,
        attempts=len(begun),
        algorithm=spec.algorithm.name if spec else "unknown",
        rewards=_rewards(spec),
        feedback=reservations[record.name].sentence if record.name in reservations else "",
        steps_done=max(steps, default=-1) + 1,
        steps=spec.steps if spec else len(steps),
        outcome=outcome_of(verdict) if verdict else None,
        reason=reason_of(verdict) if verdict else "",
        reasons=reasons[: limits.reasons],
        reasons_left_out=max(0, len(reasons) - limits.reasons),
        repairs=repairs,
        merge=merge_of(record.report) if verdict else None,
        documents=index_of_report(record.report) if verdict else None,
        repaired=accepted_repair(repairs),
        checks=tuple(checks[: limits.checks]),
        checks_left_out=max(0, len(checks) - limits.checks),
        folded=folded,
        changes=changes(evidence, verdict, limits) if verdict else (),
        samples=samples_of(evidence, verdict, limits) if verdict else (),
        said=said_of(folder, limits),
        panels=panels(steps, limits),
        repair_panels=_repair_panels(folder, repairs, limits),
        ranges=tuple(ranges[: limits.metrics]),
        ranges_left_out=max(0, len(ranges) - limits.metrics),
        signals=signals_of(steps, watch_of(evidence, record), limits.reasons),
        cost=_cost(begun, repairs, steps, now),
        time=wall_time(evidence, begun, now),
        candidate=record.candidate,
        manifest=manifest_of(evidence, record.candidate),
    )


def check_views(verdict: Verdict, folded: VerdictRow | None) -> list[CheckView]:
    """Return what was compared in the order of a verdict's table: what kept the candidate out first.

    Args:
        folded: row that stands for all comparisons of rates that passed, which are left out.
    """
    budgets = {rule.name: rule.budget for rule in verdict.inputs.suites}
    rules = {rule.name: rule for rule in verdict.inputs.suites}
    scales = {
        key: scale_of([check for check in verdict.checks if _axis(check) == key])
        for key in dict.fromkeys(map(_axis, verdict.checks))
    }
    return [
        CheckView(
            check=check,
            words=row_of(check, rules[check.suite]),
            budget=budgets.get(check.suite)
            if check.role == "retention"
            and check.what == "value"
            and "start" in (check.against, *check.also)
            else None,
            scale=scales[_axis(check)],
        )
        for check in sorted(verdict.checks, key=severity)
        if folded is None or check.what not in RATES or check.outcome != "passed"
    ]


def _axis(check: Check) -> tuple[str, bool]:
    """Return what checks share an axis by: the suite, and whether means or shares are compared."""
    return check.suite, check.what == "value"


def manifest_of(evidence: Evidence, snapshot: SnapshotId | None) -> Manifest | None:
    """Read a snapshot's manifest; None if its folder is gone or damaged."""
    try:
        return evidence.store.snapshots.manifest(snapshot or "-")
    except (OSError, KeelError):
        return None


def _unjudged(evidence: Evidence, record: RoundRecord) -> tuple[str, ...]:
    """Say what ended a round that has no verdict."""
    error = (record.report or {}).get("error") if record.state in ("failed", "skipped") else None
    reasons = reasons_of(record, skips(evidence.ledger))
    return (cut(error, 2000) or "", *reasons) if error else reasons


def _repair_panels(
    folder: RoundFolder, repairs: Sequence[RepairStep], limits: Limits
) -> tuple[Panel, ...]:
    step = accepted_repair(repairs)
    if step is None:
        return ()
    return panels(folder.steps(step.rung), limits)[: limits.repair_charts]


def _rewards(spec: RoundConfig | None) -> tuple[str, ...]:
    """Name the rewards of a round, with their weights unless they are 1."""
    rewards = spec.rewards if spec else ()
    return tuple(f"{r.name} × {r.weight:g}" if r.weight != 1.0 else r.name for r in rewards)


def _cost(
    attempts: Sequence[RoundRecord], repairs: Sequence[RepairStep], steps: Steps, now: datetime
) -> Cost:
    return Cost(
        seconds=math.fsum(attempt_seconds(attempt, now) for attempt in attempts),
        repair_seconds=math.fsum(step.seconds or 0.0 for step in repairs),
        spent=spent(steps.values()),
    )


GROWTH = 1.5
"""A mean length, or its inverse, that changed by this factor."""
COLLAPSE = 0.5
"""Share of its first entropy that a policy has left."""
SHARE = 0.2
"""Share of completions that were cut, or of rewards that failed, that is worth a remark."""
STALE = 0.5
"""Share of groups with equal rewards, which teach nothing, that is worth a remark."""
PARTS_APART = 0.1
"""Fall of one part of the reward, as a share of its first value, while the whole rose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """The meters at the end of a round, None where there were none, and what to look at."""

    k_new: float | None
    """Distance from the parent on new prompts, in nats per token; so are the next two."""
    k_old: float | None
    """Largest distance from the owners on earlier rounds' prompts."""
    k_gen: float | None
    entropy: tuple[float, float] | None
    """Entropy at the first step and at the last; the next two are such pairs too."""
    tokens: tuple[float, float] | None
    cut: tuple[float, float] | None
    remarks: tuple[str, ...]
    noticed: tuple[str, ...] = ()
    """Remarks of the round's own watch, with the step of each."""


def signals_of(steps: Steps, watch: WatchRecord | None = None, most: int = 40) -> Signals:
    """Collect the signals of one round, with at most so many remarks."""
    old = {
        name for metrics in steps.values() for name in metrics if name.startswith("drift/K_old/")
    }
    last_old = [ends[1] for name in sorted(old) if (ends := _ends(steps, name))]
    tokens = _ends(steps, "completions/tokens_mean")
    remarks = tuple(_remarks(steps))
    return Signals(
        k_new=_last(steps, "drift/K_new"),
        k_old=max(last_old, default=None),
        k_gen=_last(steps, "drift/K_gen"),
        entropy=_ends(steps, "entropy"),
        tokens=tokens if tokens and any(tokens) else None,
        cut=_ends(steps, "completions/length_cut_share") if tokens and any(tokens) else None,
        remarks=(
            *remarks[:most],
            *([f"and {len(remarks) - most} more"] if len(remarks) > most else ()),
        ),
        noticed=tuple(watch.lines()) if watch else (),
    )


def _remarks(steps: Steps) -> Iterator[str]:
    tokens, entropy = _ends(steps, "completions/tokens_mean"), _ends(steps, "entropy")
    if tokens and tokens[0] > 0 and tokens[1] / tokens[0] >= GROWTH:
        yield f"completions grew from {tokens[0]:.0f} to {tokens[1]:.0f} tokens"
    if tokens and 0 < tokens[1] <= tokens[0] / GROWTH:
        yield f"completions shrank from {tokens[0]:.0f} to {tokens[1]:.0f} tokens"
    if entropy and entropy[0] > 0 and entropy[1] <= COLLAPSE * entropy[0]:
        yield f"entropy fell from {entropy[0]:.2f} to {entropy[1]:.2f} nats"
    for name, limit, words in (
        ("completions/length_cut_share", SHARE, "of completions were cut at the last step"),
        ("reward/failed_share", SHARE, "of rewards failed at the last step"),
        ("groups/zero_variance_share", STALE, "of groups had equal rewards at the last step"),
    ):
        share = _last(steps, name)
        if share is not None and share >= limit:
            yield f"{100 * share:.0f}% {words}"
    whole = _ends(steps, "reward/mean")
    names = {n for metrics in steps.values() for n in metrics if n.startswith("reward/")}
    for name in sorted(names - {"reward/mean", "reward/failed_share", "reward/abstained_share"}):
        part = _ends(steps, name)
        if (
            whole
            and part
            and whole[1] > whole[0]
            and part[0] - part[1] > PARTS_APART * abs(part[0])
        ):
            yield f"{name} fell from {part[0]:.3g} to {part[1]:.3g} while the whole reward rose"


def _ends(steps: Steps, name: str) -> tuple[float, float] | None:
    values = curve(steps, name).y
    return (values[0], values[-1]) if values else None


def _last(steps: Steps, name: str) -> float | None:
    ends = _ends(steps, name)
    return ends[1] if ends else None
