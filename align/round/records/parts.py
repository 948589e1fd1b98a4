"""Weights and index of a candidate apart: what each of them does alone, on the suites of the round.

Measured where a round changes both. Four pairs have scores then: the parent and the candidate, which the
gate compares, and the two mixed pairs, which decide nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.data.retrieval.record import PartScores, record_of
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.round.measurement.measuring import teller
from align.round.times.clock import phase
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.data.retrieval.index import DocumentIndex
    from align.gate.suites.suite import Suite
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.session import Session


def parts_of(plan: RoundPlan, session: Session, outcome: RoundOutcome) -> tuple[PartScores, ...]:
    """Measure the parts of a change of both; nothing for a candidate that changed one of them alone.

    The candidate is the one that the verdict is about: a repair where one was taken.

    Suites of which the parent or the candidate was not measured on every item are left out.
    """
    change, spec = plan.documents_change, plan.spec
    if spec.index is None or not spec.index.compare or not spec.steps:
        return ()
    if change is None or not change.touched:
        return ()
    candidate = outcome.candidate
    if any(s.rung == "index" and s.candidate == candidate for s in outcome.repairs):
        return ()  # Its weights are the parent's.
    measured = {
        suite.name: (suite, whole)
        for suite in session.suites()
        if (whole := _whole(suite, (plan.parent, candidate), session)) is not None
    }
    suites = [suite for suite, _ in measured.values()]
    before = session.documents_of(plan.parent)
    index = _measured(plan.parent, plan.documents, "the index alone", suites, session)
    weights = _measured(candidate, before, "the weights alone", suites, session)
    session.documents = session.documents_of(candidate)
    role = session.evidence.role_in(spec.name)
    parts = tuple(
        PartScores(
            suite=name,
            role=role(suite.rule),
            parent=parent,
            weights=weights[name].mean,
            index=index[name].mean,
            both=both,
        )
        for name, (suite, (parent, both)) in measured.items()
    )
    if (record := record_of(plan.documents, change, parts)) is not None and record.verdict:
        session.observer.note(f"{spec.name}: {record.verdict}")
    return parts


def _whole(
    suite: Suite, snapshots: tuple[SnapshotId, SnapshotId], session: Session
) -> tuple[float, float] | None:
    """Return the means of two snapshots over all items of a suite; None if one of them has none."""
    records = [session.ledger.find_evaluation(s, suite.hash) for s in snapshots]
    means = [r.mean for r in records if r is not None and r.n == len(suite.item_ids)]
    return (means[0], means[1]) if len(means) == 2 else None


@phase("measuring")
def _measured(
    snapshot: SnapshotId,
    documents: DocumentIndex | None,
    title: str,
    suites: list[Suite],
    session: Session,
) -> dict[str, ItemResults]:
    """Measure the weights of a snapshot that read other documents than its own."""
    session.hold(snapshot, title)
    session.documents = documents
    return evaluate(
        session.engine,
        suites,
        session.encoder,
        title,  # It is neither snapshot: one of them may be what pairs are compared with.
        seed=session.config.seed,
        tell=teller(session, title),
    )
