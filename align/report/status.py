"""Values with a fixed schema for what ``keel status`` shows, for programs.

The keys are part of the interface: they are added to and never renamed. Scores are means over a suite's
items, None where a snapshot was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.config.campaign import CampaignConfig
from align.data.retrieval.record import IndexRecord, index_of_report
from align.gate.evidence import Evidence
from align.gate.forgetting import ON_FEWER_WORDS
from align.gate.measurement.results import measured_figures
from align.gate.measurement.routing import measured_routing
from align.gate.measurement.scores import Score, ScoreRow, ScoreRows, score_rows
from align.gate.suites.kinds import KINDS, kind_of_round
from align.gate.suites.suite import Suite
from align.report.records.history import RoundEntry, entries, reasons_of, sealed_names
from align.report.records.window import ALL, SHOWN_ON_PAGE, Window, window_of
from align.report.summary_numbers import summary_of
from align.schedule.skips import skips
from align.store.ledger.amendments import Amendment, amendments_of
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotScores:
    """One row of the matrix."""

    round: str
    """``base``, or name of the round that made the snapshot."""
    snapshot: SnapshotId
    accepted: bool
    scores: Mapping[str, float | None]
    """Mean score by suite; of more than 400 rounds without suites that it was not measured on."""
    figures: Mapping[str, Mapping[str, float]]
    """Further figures by suite and name, such as an accuracy, where a suite has any."""
    items: Mapping[str, int | None]
    """Number of items behind each mean; below that of other rows where a suite stopped early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStatus:
    """One round and its result."""

    entry: RoundEntry
    reasons: tuple[str, ...]
    """Reasons that kept the candidate out."""
    scores: Mapping[str, float | None]
    """Mean scores of the candidate by suite; empty before it was measured."""
    documents: IndexRecord | None = None
    """Index that the candidate reads; None if it reads none, or before a verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnFewer:
    """Means over fewer items than others of their column, since a suite stopped early."""

    why: str
    cells: tuple[tuple[str, str], ...]
    """Round and suite of every such mean."""
    summary: bool
    """True if the summary numbers compare them with others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignStatus:
    """Current state of a campaign."""

    campaign: str
    seed: int
    store: str
    production: SnapshotId
    decisions: int
    """Decisions taken so far, repairs counted."""
    summary: Mapping[str, float | None]
    """Summary numbers of continual learning over accepted rounds, those of
    `align.report.summary_numbers.SUMMARY`."""
    on_fewer: OnFewer | None
    """Means over fewer items than others of their column; None if there are none."""
    matrix: tuple[SnapshotScores, ...]
    rounds: tuple[RoundStatus, ...]
    amendments: tuple[Amendment, ...]
    window: Window
    """Rounds that ``matrix``, ``rounds`` and ``on_fewer`` are about, and N80 and its kin of the summary."""


def status_of(evidence: Evidence, window: Window | None = None) -> CampaignStatus:
    """Read the state of a campaign from its store.

    Args:
        window: rounds to show; None: all.
    """
    window = window or window_of(evidence, ALL)
    shown, skipped = score_rows(evidence, window), skips(evidence.ledger)
    records = {record.index: record for record in evidence.ledger.rounds()}
    on_fewer = _on_fewer(shown)
    return CampaignStatus(
        campaign=evidence.config.name,
        seed=evidence.config.seed,
        store=evidence.config.store if evidence.config.is_remote else str(evidence.folder),
        production=evidence.ledger.alias("production") or evidence.base,
        decisions=evidence.looks(),
        summary=summary_of(evidence, window),
        on_fewer=on_fewer,
        matrix=tuple(_rows(evidence, shown)),
        rounds=tuple(
            RoundStatus(
                entry=entry,
                reasons=reasons_of(records[entry.index], skipped) if entry.index in records else (),
                scores=scores_of(evidence, entry.candidate),
                documents=index_of_report(records[entry.index].report)
                if entry.index in records
                else None,
            )
            for entry in entries(evidence, window)
        ),
        amendments=tuple(amendments_of(evidence.ledger)),
        window=window,
    )


def scores_of(evidence: Evidence, snapshot: SnapshotId | None) -> dict[str, float | None]:
    """Return the latest mean of a snapshot on every suite that it was measured on, without sealed ones."""
    if snapshot is None:
        return {}
    sealed = sealed_names(evidence.config)
    records = evidence.ledger.evaluations(snapshot)
    return {record.suite: record.mean for record in records if record.suite not in sealed}


def plain(status: CampaignStatus) -> dict[str, Any]:
    """Return the status in JSON values: a round's entry merged with its scores, ``on_fewer`` only where
    there are such means.
    """
    from dataclasses import asdict

    values = asdict(status)
    if status.on_fewer is None:
        del values["on_fewer"]
    values["rounds"] = [
        {**round_values.pop("entry"), **round_values} for round_values in values["rounds"]
    ]
    return values


def _on_fewer(shown: ScoreRows) -> OnFewer | None:
    """List the means over fewer items than others of their column; None if there are none."""
    most: dict[str, int] = {}
    suites = set(shown.suites)
    for _, suite, n, _ in (score for row in shown.rows for score in row.scores.values()):
        most[suite] = max(n, most.get(suite, 0))
    fewer = [
        (row, suite)
        for row in shown.rows
        for suite, score in row.scores.items()
        if suite in suites and score[2] < most[suite]
    ]
    if not fewer:
        return None
    tasks = {row.name for row in shown.rows[1:] if row.accepted} - shown.retired
    return OnFewer(
        why=ON_FEWER_WORDS,
        cells=tuple((row.name, suite) for row, suite in fewer),
        summary=any(row.accepted and suite in tasks for row, suite in fewer),
    )


def _rows(evidence: Evidence, shown: ScoreRows) -> list[SnapshotScores]:
    kinds = kinds_of(evidence.config)
    suites = {suite: kinds[suite] for suite in shown.suites if suite in kinds}
    is_long = len(shown.rows) > SHOWN_ON_PAGE

    def cells(row: ScoreRow) -> dict[str, Score | None]:
        columns = [n for n in row.scores if n in suites] if is_long else shown.suites
        return {suite: row.scores.get(suite) for suite in columns}

    return [
        SnapshotScores(
            round=row.name,
            snapshot=row.snapshot,
            accepted=row.accepted,
            scores={n: None if score is None else score[3] for n, score in cells(row).items()},
            figures=figures_of(evidence, row.snapshot, suites),
            items={n: None if score is None else score[2] for n, score in cells(row).items()},
        )
        for row in shown.rows
    ]


def kinds_of(config: CampaignConfig) -> dict[str, type[Suite]]:
    """Return the kind of every suite, those of rounds included."""
    kinds = {spec.name: KINDS[spec.source] for spec in config.suites}
    return kinds | {spec.name: kind_of_round(spec) for spec in config.rounds}


def figures_of(
    evidence: Evidence, snapshot: SnapshotId, kinds: Mapping[str, type[Suite]]
) -> dict[str, dict[str, float]]:
    """Return the figures beside a snapshot's means, by suite and name, without those of sealed suites.

    Args:
        kinds: of the suites to show.
    """
    config, sealed = evidence.config, sealed_names(evidence.config)
    files = {
        record.suite: evidence.folder / record.path
        for record in evidence.ledger.evaluations(snapshot)
        if record.suite in kinds and kinds[record.suite].has_figures and record.suite not in sealed
    }
    figures = {suite: measured_figures(path) for suite, path in files.items()}
    if config.policy.bank is not None:
        for record in evidence.ledger.evaluations(snapshot):
            if record.suite in kinds and record.suite not in sealed:
                routing = measured_routing(evidence.folder / record.path)
                figures[record.suite] = {**figures.get(record.suite, {}), **routing}
    return {suite: values for suite, values in figures.items() if values}
