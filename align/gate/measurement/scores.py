"""Scores of a campaign's snapshots from the ledger: a table of some rounds, and the sums over all of them.

A table has a column for every round that it has a row for. The sums over the accepted path run over cells
that were measured, so a campaign of ten thousand rounds has them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from align.gate.forgetting import MatrixRow, PathScores, ScoreMatrix
from align.store.database.database import Database
from align.store.ledger.records import EvaluationRecord
from align.store.ledger.tables.core import evaluations
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.gate.evidence import Evidence


FEW = 500
"""Snapshots that one query names."""
Score = tuple[SnapshotId, str, int, float]
"""Snapshot, suite, number of items, and their mean: a row as the database has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """Measured scores of one snapshot."""

    name: str
    """``base``, or the round that made it."""
    snapshot: SnapshotId
    accepted: bool
    scores: Mapping[str, Score]
    """Newest score by suite, also of suites that are no column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRows:
    """Measured scores of the base and of the candidates of some rounds; nothing stands for what is not."""

    rows: tuple[ScoreRow, ...]
    suites: tuple[str, ...]
    """Suites of the gate, then those of the rounds; no sealed one."""
    shared: int
    """Number of the first ``suites`` that belong to no round."""
    retired: frozenset[str]
    """Rounds that a later one overrode."""

    def matrix(self, num_suites: int | None = None) -> ScoreMatrix:
        """Return a table with a cell for every snapshot and suite.

        Args:
            num_suites: first suites that are its columns; None: all.
        """
        suites = self.suites[:num_suites]
        cells = [[row.scores.get(suite) for suite in suites] for row in self.rows]
        return ScoreMatrix(
            rows=tuple(
                MatrixRow(
                    name=row.name,
                    accepted=row.accepted,
                    scores=tuple(None if score is None else score[3] for score in scores),
                    items=tuple(None if score is None else score[2] for score in scores),
                )
                for row, scores in zip(self.rows, cells, strict=True)
            ),
            suites=suites,
            retired=self.retired,
        )


def score_rows(evidence: Evidence, indices: Container[int] | None = None) -> ScoreRows:
    """Return the measured scores of the base and of the candidates of some rounds.

    Args:
        indices: places in the ledger of the rounds to show; None: all.
    """
    accepted = evidence.accepted("policy")
    committed = [r for r in evidence.policy_rounds() if indices is None or r.index in indices]
    shown = {record.name for record in committed}
    specs = [r for r in evidence.config.rounds if r.algorithm.makes == "policy"]
    if indices is not None:
        shown |= {r.name for r in evidence.ledger.rounds() if r.index in indices}
        specs = [spec for spec in specs if spec.name in shown]
    gate_suites = [s.name for s in evidence.config.suites if s.role != "sealed"]
    snapshots = [("base", evidence.base, True)]
    snapshots += [(r.name, r.candidate or "", r.name in accepted) for r in committed]
    few = None if indices is None else {snapshot for _, snapshot, _ in snapshots}
    scores = scores_of(evidence, few)
    return ScoreRows(
        rows=tuple(
            ScoreRow(name=name, snapshot=id, accepted=is_accepted, scores=scores.get(id, {}))
            for name, id, is_accepted in snapshots
        ),
        suites=tuple(dict.fromkeys([*gate_suites, *(spec.name for spec in specs)])),
        shared=len(dict.fromkeys(gate_suites)),
        retired=evidence.retired([name for name, _, is_accepted in snapshots if is_accepted]),
    )


def path_scores(evidence: Evidence) -> PathScores:
    """Return the scores on the accepted path of the whole campaign."""
    accepted = evidence.accepted("policy")
    means, uneven = evidence.ledger.database.follow("means", _read_means)
    if changed := _on_overridden(evidence):
        means = dict(means)
        for record in changed:
            means[record.snapshot] = {**means[record.snapshot], record.suite: record.mean}
    suites = {s.name for s in evidence.config.suites if s.role != "sealed"}
    suites |= {r.name for r in evidence.config.rounds if r.algorithm.makes == "policy"}
    path = [means.get(snapshot, {}) for snapshot in (evidence.base, *accepted.values())]
    if hidden := set().union(*path) - suites:
        path = [{n: a for n, a in row.items() if n not in hidden} if row.keys() & hidden else row
                for row in path]  # fmt: skip
    return PathScores(
        names=("base", *accepted),
        suites=frozenset(suites),
        scores=tuple(path),
        fewer=_on_fewer(evidence, uneven & suites),
        retired=evidence.retired(tuple(accepted)),
    )


def _on_fewer(evidence: Evidence, suites: Collection[str]) -> frozenset[str]:
    """Return those of some suites whose mean on the path is over fewer items than another candidate's."""
    if not suites:
        return frozenset()
    path = {evidence.base, *evidence.accepted("policy").values()}
    others = {record.candidate for record in evidence.policy_rounds() if record.candidate} - path
    rows = scores_of(evidence, {*path, *others})
    most = {n: max((row[n][2] for row in rows.values() if n in row), default=0) for n in suites}
    on_path = [row for snapshot, row in rows.items() if snapshot in path]
    return frozenset(n for n in suites if any(n in row and row[n][2] < most[n] for row in on_path))


def measured_names(database: Database) -> frozenset[str]:
    """Name the suites that some snapshot was measured on."""
    query = select(evaluations.c.suite).distinct()
    return database.follow("measured names", lambda c: frozenset(c.scalars(query)))


def _overridden(evidence: Evidence) -> frozenset[str]:
    """Return hashes of rounds' suites in the form that was accepted on last, where rounds override others.

    Rows of a table then compare the same items, whatever was retired, or came back, in between.
    """
    if not any(spec.mode == "override" for spec in evidence.config.rounds):
        return frozenset()
    accepted = evidence.accepted("policy")
    on_path = [record for record in evidence.committed() if record.name in accepted]
    report = on_path[-1].report if on_path else None
    rules = (report or {}).get("inputs", {}).get("suites", ())
    return frozenset(rule["hash"] for rule in rules if rule["target_of"])


def _on_overridden(evidence: Evidence) -> list[EvaluationRecord]:
    """List the evaluations on rounds' suites in the form that counts now, where rounds override others."""
    return evidence.ledger.evaluations_on(_overridden(evidence))


def scores_of(
    evidence: Evidence, snapshots: Collection[SnapshotId] | None
) -> dict[SnapshotId, dict[str, Score]]:
    """Return the newest score by snapshot and suite; on an overridden suite, in the form that counts now.

    Args:
        snapshots: those whose scores are read; None: all.
    """
    scores: defaultdict[SnapshotId, dict[str, Score]] = defaultdict(dict)
    with evidence.ledger.database.read() as connection:
        for score in _rows_of(connection, snapshots):
            if snapshots is None or score[0] in snapshots:
                scores[score[0]][score[1]] = score
    for record in _on_overridden(evidence):
        if snapshots is None or record.snapshot in snapshots:
            score = (record.snapshot, record.suite, record.n, record.mean)
            scores[record.snapshot][record.suite] = score
    return dict(scores)


def _read_means(
    connection: Connection,
) -> tuple[Mapping[SnapshotId, Mapping[str, float]], frozenset[str]]:
    """Read the newest mean by snapshot and suite, and the suites with means over unequal numbers."""
    means: dict[SnapshotId, dict[str, float]] = {}
    num_items: dict[str, int] = {}
    uneven: set[str] = set()
    # Run a hundred thousand times where a campaign is years old.
    for snapshot, suite, n, mean in _rows_of(connection, None):
        row = means.get(snapshot)
        if row is None:
            row = means[snapshot] = {}
        row[suite] = mean
        if num_items.setdefault(suite, n) != n:
            uneven.add(suite)
    return means, frozenset(uneven)


def _rows_of(connection: Connection, snapshots: Collection[SnapshotId] | None) -> Iterator[Score]:
    """Read scores in the order in which they were recorded.

    Args:
        snapshots: those that are asked for; of more than a query takes, and None: all.
    """
    table = evaluations.c
    query = select(table.snapshot, table.suite, table.n, table.mean)
    if snapshots is not None and len(snapshots) <= FEW:
        # In order here: asked for it, SQLite would read the whole table in that order.
        few = query.add_columns(table.recorded).where(table.snapshot.in_(snapshots))
        rows = sorted(connection.execute(few), key=lambda row: (row.recorded, row.suite))
        return ((row.snapshot, row.suite, row.n, row.mean) for row in rows)
    query = query.order_by(table.recorded, table.suite)
    # Plain tuples of the driver: SQLAlchemy's rows would cost more than all sums over them.
    cursor = connection.connection.cursor()
    try:
        cursor.execute(str(query.compile(dialect=connection.dialect)))
        return iter(cursor.fetchall())
    finally:
        cursor.close()
