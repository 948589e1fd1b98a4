"""Measuring snapshots on suites: what verdicts compare, and nothing twice.

Every snapshot that a verdict names is measured on the items that are due in the round it belongs to.
Sealed suites are measured when they are opened, so that until then there is nothing to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import monotonic

from align.gate.checks import Against
from align.gate.measurement.evaluate import evaluate
from align.gate.measurement.progress import SuiteProgress, Tell
from align.gate.measurement.results import ItemResults, no_value
from align.gate.measurement.reuse import earlier, joined, load_with_texts, rest_of
from align.gate.measurement.routing import routing_sentence
from align.gate.sealed import is_due, openings
from align.gate.suites.looks import looks
from align.gate.suites.suite import Suite
from align.round.measurement.damage import Damaged
from align.round.session import MeasuringObserver, Session
from align.round.times.clock import measured, phase
from rollouts.types import SnapshotId

BEAT_EVERY_S = 60.0
"""Seconds between signs of life while a snapshot is measured."""


def measure(
    session: Session,
    snapshot: SnapshotId,
    name: str,
    suites: Sequence[Suite] | None = None,
    items: Mapping[str, int] | None = None,
) -> dict[str, ItemResults]:
    """Measure the weights that the engines hold, the snapshot's, on every suite that they were not yet.

    Args:
        name: name of the snapshot for people who watch.
        suites: those to measure; None: those that are due.
        items: by suite, the number of its first items that are needed; where it is not named, all.
    """
    due = session.suites() if suites is None else suites
    missing = session.evidence.missing(snapshot, due, items)
    stored = {suite.name: _on_record(session, snapshot, suite) for suite in missing}
    wanted = {s.name: _wanted(s, items) for s in missing}
    rest = {suite.name: rest_of(wanted[suite.name], stored[suite.name]) for suite in missing}
    unmeasured = [part for part in rest.values() if part is not None]
    fresh = _evaluated(session, unmeasured, snapshot, name)
    results: dict[str, ItemResults] = {}
    for suite in missing:
        part, earlier_parts = wanted[suite.name], stored[suite.name]
        if not earlier_parts and part is suite:
            results[suite.name] = fresh[suite.name]
            continue
        new_parts = [fresh[suite.name]] if suite.name in fresh else []
        whole = joined(part, [*new_parts, *earlier_parts], suite.hash)
        # Figures beside a larger form are of other items too.
        results[suite.name] = replace(whole, beside={}) if suite.larger else whole
    for suite in missing:
        measured_items = results[suite.name]
        num_items = len(measured_items.values)
        if num_items == len(suite.item_ids) and "scored" not in measured_items.statuses:
            raise no_value(suite.name, num_items, ["its metric failed or abstained on all"])
        for sentence in (suite.side_sentence(measured_items), routing_sentence(measured_items)):
            if sentence:
                session.observer.note(f"{name} on {measured_items.suite}: {sentence}")
    return results


def _wanted(suite: Suite, items: Mapping[str, int] | None) -> Suite:
    """Return the part of a suite that is needed."""
    return suite.first((items or {}).get(suite.name, len(suite.item_ids)))


def _on_record(session: Session, snapshot: SnapshotId, suite: Suite) -> list[ItemResults]:
    """Load what is on record of a snapshot on a suite's items.

    It may be the first items, or those of a larger form of the suite, or of earlier rotations.
    """
    evidence = session.evidence
    return [
        load_with_texts(evidence.locate(snapshot, suite_hash))
        for suite_hash in (suite.hash, *suite.larger, *earlier(suite, evidence.due_index()))
        if evidence.ledger.find_evaluation(snapshot, suite_hash) is not None
    ]


def _unmeasured(
    session: Session,
    snapshot: SnapshotId,
    suites: Sequence[Suite],
    items: Mapping[str, int] | None,
) -> list[Suite]:
    """Return the suites for which an engine is asked; of the others a larger form is on record."""
    return [
        suite
        for suite in suites
        if not suite.larger
        or rest_of(_wanted(suite, items), _on_record(session, snapshot, suite)) is not None
    ]


@phase("measuring")
def _evaluated(
    session: Session, suites: Sequence[Suite], snapshot: SnapshotId, name: str
) -> dict[str, ItemResults]:
    """Evaluate the snapshot that the engines hold, and count the seconds of every suite."""
    fresh = evaluate(
        session.engine,
        suites,
        session.encoder,
        snapshot,
        seed=session.config.seed,
        tell=teller(session, name),
    )
    for suite, results in fresh.items():
        measured(suite, results.seconds or 0.0)
    return fresh


def measure_until_decided(
    session: Session, candidate: SnapshotId, name: str, target: str, parent: SnapshotId, look: int
) -> tuple[dict[str, dict[SnapshotId, int]], dict[str, dict[Against, SnapshotId]]]:
    """Measure a candidate, whose weights the engines hold, on every suite that is due.

    A suite that may stop early is measured look by look, with the comparators on the same items, until more
    items can change nothing. The other suites go on: the report says of each what was kept or lost.

    Args:
        name: name of the candidate for people who watch.
        target: its round.
        look: number of the decision.

    Returns:
        By suite that may stop early and comparator, the number of first items that decide; and by suite
        the comparators, chosen before the first look, so that none drops out by what it shows.
    """
    suites, evidence = session.suites(), session.evidence
    early = {suite.name: suite for suite in deciding(session, target, suites)}
    whole = [suite for suite in suites if suite.name not in early]
    evidence.save(candidate, measure(session, candidate, name, whole))
    compared = evidence.comparator_snapshots(target, list(early.values()), parent)
    alpha, ends = evidence.level_at(look), {n: suite_looks(suite) for n, suite in early.items()}
    undecided = {n: set(snapshots.values()) for n, snapshots in compared.items()}
    items: dict[str, dict[SnapshotId, int]] = {n: {} for n in early}
    holding = candidate
    for number in range(max(map(len, ends.values()), default=0)):
        counts = {n: ends[n][number] for n, snapshots in undecided.items() if snapshots}
        for n, count in counts.items():
            items[n] |= dict.fromkeys(undecided[n], count)
        for snapshot, names in measured_by(candidate, undecided, holding).items():
            those = [early[n] for n in names]
            if missing := evidence.missing(snapshot, those, counts):
                title = name if snapshot == candidate else snapshot[:16]
                if snapshot != holding and _unmeasured(session, snapshot, missing, counts):
                    session.hold(snapshot, title)
                    holding = snapshot
                evidence.save(snapshot, measure(session, snapshot, title, those, counts))
        for n in counts:
            undecided[n] = evidence.open_against(
                early[n], target, candidate, compared[n], alpha, items[n]
            )
        if not any(undecided.values()):
            break
    if holding != candidate:
        session.hold(candidate, name)
    return items, compared


def measured_by(
    candidate: SnapshotId,
    undecided: Mapping[str, Collection[SnapshotId]],
    holding: SnapshotId | None = None,
) -> dict[SnapshotId, list[str]]:
    """Return the suites that each snapshot has to be measured on: first of the one whose weights the
    engines hold, then of the candidate.

    >>> measured_by("c", {"a": ["p"], "b": [], "d": ["p", "s"]}, holding="s")
    {'s': ['d'], 'c': ['a', 'd'], 'p': ['a', 'd']}
    """
    snapshots = {candidate}.union(*undecided.values())
    return {
        snapshot: [n for n, left in undecided.items() if left and snapshot in {candidate, *left}]
        for snapshot in sorted(snapshots, key=lambda s: (s != holding, s != candidate, s))
    }


def deciding(session: Session, target: str, suites: Sequence[Suite]) -> list[Suite]:
    """Return the suites that may stop early and decide on round ``target``; others are measured whole."""
    role = session.evidence.role_in(target)
    return [s for s in suites if s.early is not None and role(s.rule) != "shown"]


def suite_looks(suite: Suite) -> list[int]:
    """Return the numbers of items at which a suite that may stop early is looked at."""
    assert suite.early is not None
    return looks(suite.name, suite.item_ids, suite.item_clusters, suite.early.looks)


def teller(session: Session, name: str) -> Tell:
    """Return a listener that tells the observer, if it wants to know, and the ledger that work goes on."""
    beaten = monotonic()

    def tell(progress: SuiteProgress) -> None:
        nonlocal beaten
        if isinstance(session.observer, MeasuringObserver):
            session.observer.on_measuring(name, progress)
        if monotonic() - beaten >= BEAT_EVERY_S:
            session.claim.beat()
            beaten = monotonic()

    return tell


def measure_known(session: Session, target: str) -> None:
    """Evaluate what verdicts compare with: the start, and every accepted snapshot, on every suite.

    The start is row 0 of the matrix and the gate's fixed anchor. Accepted snapshots were measured in
    their own rounds; only what came later is left to do: suites of appended rounds, those whose reward
    model was accepted since, and items that rotate in. Of rounds without end not every snapshot is.

    Args:
        target: the round that is due.
    """
    suites = session.suites()
    make_needed(session, suites)
    needed = session.evidence.comparators(suites)
    _measure_accepted(
        session,
        lambda snapshot: [s for s in suites if snapshot in needed[s.name]],
        # Of a suite that may stop early, a candidate asks for what it needs of them.
        {s.name: suite_looks(s)[0] for s in deciding(session, target, suites)},
    )


def measure_again(session: Session, damaged: Sequence[Damaged]) -> None:
    """Evaluate snapshots on the suites whose stored results were lost or changed, on as many items."""
    by_snapshot: dict[SnapshotId, dict[str, Damaged]] = {}
    for entry in damaged:
        by_snapshot.setdefault(entry.record.snapshot, {})[entry.record.suite_hash] = entry
    names = {snapshot: name for name, snapshot in session.evidence.accepted("policy").items()}
    for snapshot, entries in by_snapshot.items():
        name = "base" if snapshot == session.base else names.get(snapshot, snapshot[:16])
        suites = [entry.suite for entry in entries.values() if entry.suite is not None]
        session.observer.note(f"measuring {name} again on {', '.join(s.name for s in suites)}")
        make_needed(session, suites)
        session.hold(snapshot, name)
        for suite in suites:  # One by one: a rotating suite may be among them several times.
            part = suite.first(entries[suite.hash].record.n)
            fresh = _evaluated(session, [part], snapshot, name)
            entry = entries[suite.hash]
            items = replace(fresh[suite.name], suite_hash=suite.hash)
            session.evidence.replace(entry.record, items, entry.fault)


def open_sealed(session: Session) -> None:
    """Measure sealed suites that are due to be opened, and say what they show."""
    sealed = [s for s in session.inputs.policy_suites if s.role == "sealed"]
    due = [s for s in sealed if is_due(session.evidence, s.name)]
    if not due:
        return
    _measure_accepted(session, lambda _: due)
    names = {suite.name for suite in due}
    latest = {o.suite: o for o in openings(session.evidence) if o.suite in names}
    for opening in latest.values():
        session.observer.note(opening.sentence)


@phase("measuring")
def make_needed(session: Session, suites: Sequence[Suite]) -> None:
    """Make what other snapshots have to say before any is measured on the suites, once each."""
    for suite in suites:
        for needed in suite.needs:
            if not session.is_lost(needed.path):
                continue
            session.observer.note(needed.note)
            session.hold(needed.snapshot, needed.snapshot_name)
            needed.write(session.engine, session.encoder, session.config.seed)
            session.store.files.record([needed.path])


def _measure_accepted(
    session: Session,
    suites_for: Callable[[SnapshotId], Sequence[Suite]],
    items: Mapping[str, int] | None = None,
) -> None:
    collected = session.ledger.collected()
    for name, snapshot in {"base": session.base, **session.evidence.accepted("policy")}.items():
        if snapshot in collected:
            continue
        missing = session.evidence.missing(snapshot, suites_for(snapshot), items)
        if not missing:
            continue
        if unmeasured := _unmeasured(session, snapshot, missing, items):
            session.observer.note(f"measuring {name} on {', '.join(s.name for s in unmeasured)}")
            session.hold(snapshot, name)
        session.evidence.save(snapshot, measure(session, snapshot, name, missing, items))
