"""Everything the page shows of a campaign, read from its store without loading a model.

The ledger says what happened, manifests say from what, ``metrics.jsonl`` what the steps measured, and the
files of results what became of single items. What is missing or damaged is left out of the page: a report
of half a campaign is of use, an error is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from align.config import CampaignConfig, RoundConfig
from align.evidence import Evidence
from align.gate.checks import Check
from align.gate.forgetting import ScoreMatrix
from align.gate.gate import Verdict
from align.memory.ledger import RoundRecord
from align.memory.manifest import MANIFEST, Manifest
from align.report.html.curves import Curve, Panel, Range, panels, ranges, read_steps, thinned, total
from align.report.html.heat import HeatRow, heat_rows, margins_of, retention_panels
from align.report.html.items import Changes, changes
from align.report.html.lineage import Node, lineage
from align.report.html.signals import Signals, signals_of
from align.report.tables import outcome_of
from rollouts.errors import KeelError
from rollouts.types import SnapshotId

BATCH_TOKENS = ("batch/new_tokens", "batch/past_tokens", "batch/general_tokens")
"""Completion tokens the learner saw, by the source of their prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a page holds, so that fifty rounds stay below two megabytes."""

    points: int
    """Of one curve."""
    checks: int
    """Rows of one verdict's table; those furthest inside their margin are left out first."""
    suites: int
    """Suites of one round whose items are shown."""
    items: int
    """Lost items of one suite, and won ones."""

    @classmethod
    def of(cls, num_rounds: int) -> Self:
        if num_rounds <= 12:
            return cls(points=160, checks=60, suites=8, items=10)
        return cls(points=60, checks=16, suites=3, items=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What was spent: wall-clock seconds, and completion tokens the learner saw."""

    seconds: float
    """Of all attempts, from their beginning to their verdict."""
    update_seconds: float
    """Of them, in the learner's updates."""
    new_tokens: int
    past_tokens: int
    general_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckView:
    """One check with the budget it draws on."""

    check: Check
    budget: float | None
    """Loss allowed over the whole campaign; None where it was not compared with the fixed anchor."""

    @property
    def used(self) -> float:
        """Loss against the fixed anchor."""
        return max(0.0, -self.check.difference)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundView:
    """One round as the page shows it."""

    index: int
    name: str
    state: str
    attempts: int
    algorithm: str
    rewards: tuple[str, ...]
    steps_done: int
    steps: int
    outcome: str | None
    """The verdict in words; None while there is none."""
    reasons: tuple[str, ...]
    checks: tuple[CheckView, ...]
    checks_left_out: int
    changes: tuple[Changes, ...]
    panels: tuple[Panel, ...]
    ranges: tuple[Range, ...]
    signals: Signals
    cost: Cost
    candidate: SnapshotId | None
    manifest: Manifest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignView:
    """A campaign as the page shows it."""

    name: str
    config_hash: str
    made: datetime
    production: SnapshotId | None
    matrix: ScoreMatrix
    heat: tuple[HeatRow, ...]
    metrics: tuple[tuple[str, str, float], ...]
    """Short name, meaning and value of every summary number that could be formed."""
    retention: tuple[Panel, ...]
    lineage: tuple[Node, ...]
    drift: tuple[Panel, ...]
    rounds: tuple[RoundView, ...]
    gate: tuple[tuple[str, str], ...]

    @property
    def running(self) -> bool:
        """Some round has no verdict yet."""
        return any(round.state in ("planned", "running", "gating") for round in self.rounds)


def collect(evidence: Evidence, now: datetime) -> CampaignView:
    """Read a campaign's store.

    Args:
        now: noted as the time at which the page was made.
    """
    config, ledger = evidence.config, evidence.ledger
    attempts, production = ledger.attempts(), ledger.alias("production")
    matrix = evidence.matrix()
    margins = margins_of(config)
    limits = Limits.of(len(config.rounds))
    rounds = tuple(
        _round(evidence, config, record, attempts, now, limits) for record in ledger.rounds()
    )
    return CampaignView(
        name=config.name,
        config_hash=config.hash(),
        made=now,
        production=production,
        matrix=matrix,
        heat=heat_rows(matrix, margins),
        metrics=_summary(matrix),
        retention=retention_panels(matrix),
        lineage=lineage(evidence.base, attempts, production, lambda s: _kind(evidence, s)),
        drift=_drift(evidence, rounds),
        rounds=rounds,
        gate=tuple((key, str(value)) for key, value in config.gate.model_dump().items()),
    )


def manifest_of(evidence: Evidence, snapshot: SnapshotId | None) -> Manifest | None:
    """What a snapshot says of itself; None where its folder is gone or damaged."""
    path = evidence.folder / "snapshots" / (snapshot or "-") / MANIFEST
    try:
        return Manifest.from_bytes(path.read_bytes(), where=str(path))
    except (OSError, KeelError):
        return None


def _round(
    evidence: Evidence,
    config: CampaignConfig,
    record: RoundRecord,
    attempts: Sequence[RoundRecord],
    now: datetime,
    limits: Limits,
) -> RoundView:
    spec = next((spec for spec in config.rounds if spec.name == record.name), None)
    own = [a for a in attempts if a.index == record.index and a.attempt > 0]
    steps = read_steps(evidence.folder / "rounds" / f"{record.index:02d}-{record.name}")
    committed = record.state in ("accepted", "rejected")
    verdict = Verdict.from_dict(record.report or {}) if committed else None
    checks = _checks(verdict) if verdict else []
    error = (record.report or {}).get("error") if record.state == "failed" else None
    return RoundView(
        index=record.index,
        name=record.name,
        state=record.state,
        attempts=len(own),
        algorithm=spec.algorithm.name if spec else "unknown",
        rewards=_rewards(spec),
        steps_done=max(steps, default=-1) + 1,
        steps=spec.steps if spec else len(steps),
        outcome=outcome_of(verdict) if verdict else None,
        reasons=verdict.reasons if verdict else (str(error),) if error else (),
        checks=tuple(checks[: limits.checks]),
        checks_left_out=max(0, len(checks) - limits.checks),
        changes=changes(evidence, verdict, limits.suites, limits.items) if verdict else (),
        panels=panels(steps, limits.points),
        ranges=ranges(steps),
        signals=signals_of(steps),
        cost=Cost(
            seconds=math.fsum(_seconds(a, now) for a in own),
            update_seconds=total(steps, ["time/update_s"]),
            new_tokens=int(total(steps, BATCH_TOKENS[:1])),
            past_tokens=int(total(steps, BATCH_TOKENS[1:2])),
            general_tokens=int(total(steps, BATCH_TOKENS[2:])),
        ),
        candidate=record.candidate,
        manifest=manifest_of(evidence, record.candidate),
    )


def _checks(verdict: Verdict) -> list[CheckView]:
    """Those that decided against the candidate first, then the target, then the closest calls."""
    budgets = {rule.name: rule.budget for rule in verdict.inputs.suites}

    def order(view: CheckView) -> tuple[bool, bool, bool, float]:
        check = view.check
        room = (check.difference + check.margin) / (check.margin or 1.0)
        return check.role == "shown", check.outcome == "passed", check.role != "target", room

    views = [
        CheckView(
            check=check,
            budget=budgets.get(check.suite)
            if check.role == "retention" and "start" in (check.against, *check.also)
            else None,
        )
        for check in verdict.checks
    ]
    return sorted(views, key=order)


def _rewards(spec: RoundConfig | None) -> tuple[str, ...]:
    rewards = spec.rewards if spec else ()
    return tuple(f"{r.name} × {r.weight:g}" if r.weight != 1.0 else r.name for r in rewards)


def _seconds(attempt: RoundRecord, now: datetime) -> float:
    """Wall-clock time of one attempt; of one that runs, until now."""
    if attempt.started is None:
        return 0.0
    end = datetime.fromisoformat(attempt.ended) if attempt.ended else now
    return max(0.0, (end - datetime.fromisoformat(attempt.started)).total_seconds())


def _summary(matrix: ScoreMatrix) -> tuple[tuple[str, str, float], ...]:
    """The numbers of continual learning that could be formed."""
    values = (
        ("AP", "average performance: mean over tasks at the end", matrix.average_performance()),
        ("LA", "learning accuracy: mean of each task after its round", matrix.learning_accuracy()),
        ("BWT", "backward transfer: below 0 is forgetting", matrix.backward_transfer()),
        ("FM", "forgetting: above 0 is loss from each task's best", matrix.forgetting()),
        ("FWT", "forward transfer: gain on tasks before their round", matrix.forward_transfer()),
    )
    return tuple((name, meaning, value) for name, meaning, value in values if value is not None)


def _drift(evidence: Evidence, rounds: Sequence[RoundView]) -> tuple[Panel, ...]:
    """Drift over the whole campaign: learner steps of all rounds one after the other."""
    curves: dict[str, list[tuple[float, float]]] = {}
    done = 0
    for round in rounds:
        steps = read_steps(evidence.folder / "rounds" / f"{round.index:02d}-{round.name}")
        for step, metrics in steps.items():
            old = [v for name, v in metrics.items() if name.startswith("drift/K_old/")]
            found = {
                "K_new, from the parent": metrics.get("drift/K_new"),
                "K_old, the largest": max(old, default=None),
                "K_gen, from the base": metrics.get("drift/K_gen"),
            }
            for name, value in found.items():
                if value is not None:
                    curves.setdefault(name, []).append((done + step + 1, value))
        done += round.steps_done
    if not curves:
        return ()
    made = [
        Curve(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
        for name, points in curves.items()
    ]
    return (
        Panel(
            title="Drift over the campaign",
            unit="nats per token",
            over="learner steps of all rounds",
            curves=tuple(thinned(one, 400) for one in made),
        ),
    )


def _kind(evidence: Evidence, snapshot: SnapshotId) -> str | None:
    found = manifest_of(evidence, snapshot)
    return found.provenance.kind if found else None
