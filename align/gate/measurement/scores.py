"""Scores of a campaign's snapshots from the ledger: a table of some rounds, and the sums over all of them.

A table has a column for every round that it has a row for. The sums over the accepted path run over cells
that were measured, so a campaign of ten thousand rounds has them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from align.gate.forgetting import MatrixRow, PathScores, ScoreMatrix
from align.store.ledger.tables.core import evaluations
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.gate.evidence import Evidence


Score = tuple[SnapshotId, str, int, float]
"""Snapshot, suite, number of items, and their mean: a row as the database has it."""
Scores = Mapping[SnapshotId, Sequence[Score]]
"""Scores by snapshot, in the order in which they were recorded: of a suite's, the last one counts."""


def matrix_of(evidence: Evidence, indices: Container[int] | None = None) -> ScoreMatrix:
    """Return the mean score of the base and of the candidates of some rounds on every suite.

    Args:
        indices: places in the ledger of the rounds to show; None: all.
    """
    accepted = evidence.accepted("policy")
    committed = [r for r in evidence.policy_rounds() if indices is None or r.index in indices]
    shown = {record.name for record in committed}
    specs = [r for r in evidence.config.rounds if r.algorithm.makes == "policy"]
    if indices is not None:
        undecided = {r.name for r in evidence.ledger.rounds() if r.index in indices}
        specs = [spec for spec in specs if spec.name in shown | undecided]
    gate_suites = [s.name for s in evidence.config.suites if s.role != "sealed"]
    suites = tuple(dict.fromkeys([*gate_suites, *(spec.name for spec in specs)]))
    rows = [("base", evidence.base, True)]
    rows += [(r.name, r.candidate or "", r.name in accepted) for r in committed]
    scores = _scores_of(evidence)

    def cells(snapshot: SnapshotId) -> list[Score | None]:
        latest = {score[1]: score for score in scores.get(snapshot, ())}
        return [latest.get(suite) for suite in suites]

    measured = {name: cells(snapshot) for name, snapshot, _ in rows}
    return ScoreMatrix(
        rows=tuple(
            MatrixRow(
                name=name,
                accepted=is_accepted,
                scores=tuple(None if score is None else score[3] for score in measured[name]),
                items=tuple(None if score is None else score[2] for score in measured[name]),
            )
            for name, _, is_accepted in rows
        ),
        suites=suites,
        retired=evidence.retired([name for name, _, is_accepted in rows if is_accepted]),
    )


def path_scores(evidence: Evidence) -> PathScores:
    """Return the scores on the accepted path of the whole campaign."""
    accepted = evidence.accepted("policy")
    scores = _scores_of(evidence)
    suites = {s.name for s in evidence.config.suites if s.role != "sealed"}
    suites |= {r.name for r in evidence.config.rounds if r.algorithm.makes == "policy"}
    rejected = (r.candidate for r in evidence.policy_rounds() if r.name not in accepted)
    most: dict[str, int] = {}
    means: list[dict[str, float]] = []
    items: list[dict[str, int]] = []
    for snapshot in (evidence.base, *accepted.values(), *rejected):
        row = scores.get(snapshot or "", ())
        means.append({suite: mean for _, suite, _, mean in row if suite in suites})
        items.append({suite: n for _, suite, n, _ in row if suite in suites})
        for suite, n in items[-1].items():
            if n > most.get(suite, 0):
                most[suite] = n
    path = len(accepted) + 1
    return PathScores(
        names=("base", *accepted),
        suites=frozenset(suites),
        scores=tuple(means[:path]),
        fewer=frozenset(s for row in items[:path] for s, n in row.items() if n < most[s]),
        retired=evidence.retired(tuple(accepted)),
    )


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


def _scores_of(evidence: Evidence) -> Scores:
    """Return all scores of the ledger; on an overridden suite, in the form that counts now."""
    scores = evidence.ledger.database.follow("scores", _read)
    current = evidence.ledger.evaluations_on(_overridden(evidence))
    if not current:
        return scores
    scores = dict(scores)
    for record in current:
        score = (record.snapshot, record.suite, record.n, record.mean)
        scores[record.snapshot] = [*scores[record.snapshot], score]
    return scores


def _read(connection: Connection) -> Scores:
    table = evaluations.c
    columns = (table.snapshot, table.suite, table.n, table.mean)
    query = select(*columns).order_by(table.recorded, table.suite)
    scores: defaultdict[SnapshotId, list[Score]] = defaultdict(list)
    # Plain tuples of the driver: SQLAlchemy's rows would cost more than all sums over them.
    cursor = connection.connection.cursor()
    cursor.execute(str(query.compile(dialect=connection.dialect)))
    for row in cursor.fetchall():
        scores[row[0]].append(row)
    cursor.close()
    return dict(scores)
