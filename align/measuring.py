"""Measuring snapshots on suites: what verdicts compare, and nothing twice.

Every snapshot that a verdict names is measured on the items that are due in the round it belongs to.
Sealed suites are measured when they are opened, so that until then there is nothing to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from align.gate.damage import Damaged
from align.gate.evaluate import ItemResults, evaluate, sequence_logprobs
from align.gate.implicit import save_logprobs
from align.gate.progress import SuiteProgress, Tell
from align.gate.reuse import earlier, joined, load_with_texts, rest_of
from align.gate.sealed import is_due, openings
from align.gate.suite import Suite
from align.gate.win_rate import save_answers
from align.parts import MeasuringObserver, Parts
from align.times.clock import measured, phase
from rollouts.collect import collect
from rollouts.types import SnapshotId

BEAT_EVERY_S = 60.0
"""Seconds between signs of life while a snapshot is measured."""


def measure(
    parts: Parts, snapshot: SnapshotId, name: str, suites: Sequence[Suite] | None = None
) -> dict[str, ItemResults]:
    """Every suite not yet measured, on the weights the engines hold now: the snapshot's.

    Args:
        name: of the snapshot, for people who watch.
        suites: those to measure; None: those that are due.
    """
    missing = parts.evidence.missing(snapshot, parts.suites() if suites is None else suites)
    found = {suite.name: _stored(parts, snapshot, suite) for suite in missing}
    rest = {suite.name: rest_of(suite, found[suite.name]) for suite in missing}
    asked = [part for part in rest.values() if part is not None]
    fresh = _evaluated(parts, asked, snapshot, name)
    results = {
        suite.name: joined(suite, [*_one(fresh, suite.name), *found[suite.name]])
        if found[suite.name]
        else fresh[suite.name]
        for suite in missing
    }
    for items in results.values():
        if items.beside_line:
            parts.observer.note(f"{name} on {items.suite}: {items.beside_line}")
    return results


@phase("measuring")
def _evaluated(
    parts: Parts, suites: Sequence[Suite], snapshot: SnapshotId, name: str
) -> dict[str, ItemResults]:
    """Evaluate the snapshot that the engines hold, and count the seconds of every suite."""
    fresh = evaluate(
        parts.engine,
        suites,
        parts.inputs.encoder,
        snapshot,
        seed=parts.config.seed,
        tell=teller(parts, name),
    )
    for suite, results in fresh.items():
        measured(suite, results.seconds or 0.0)
    return fresh


def teller(parts: Parts, name: str) -> Tell:
    """Return a listener that tells the observer, if it wants to know, and the ledger that work goes on."""
    beaten = monotonic()

    def tell(progress: SuiteProgress) -> None:
        nonlocal beaten
        if isinstance(parts.observer, MeasuringObserver):
            parts.observer.on_measuring(name, progress)
        if monotonic() - beaten >= BEAT_EVERY_S:
            parts.beat()
            beaten = monotonic()

    return tell


def measure_known(parts: Parts) -> None:
    """Evaluate what verdicts compare with: the start, and every accepted snapshot, on every suite.

    The start is row 0 of the matrix and the gate's fixed anchor. Accepted snapshots were measured in
    their own rounds; only what came later is left to do: suites of appended rounds, those whose reward
    model was accepted since, and items that rotate in. Of rounds without end not every snapshot is.
    """
    suites = parts.suites()
    sample_rivals(parts, suites)
    score_references(parts, suites)
    needed = parts.evidence.comparators(suites)
    _measure_accepted(parts, lambda snapshot: [s for s in suites if snapshot in needed[s.name]])


def measure_again(parts: Parts, damaged: Sequence[Damaged]) -> None:
    """Evaluate snapshots on the suites whose stored results were lost or changed."""
    by_snapshot: dict[SnapshotId, dict[str, Damaged]] = {}
    for entry in damaged:
        by_snapshot.setdefault(entry.record.snapshot, {})[entry.record.suite_hash] = entry
    names = {snapshot: name for name, snapshot in parts.evidence.accepted("policy").items()}
    for snapshot, entries in by_snapshot.items():
        name = "base" if snapshot == parts.base else names.get(snapshot, snapshot[:16])
        suites = [entry.suite for entry in entries.values() if entry.suite is not None]
        parts.observer.note(f"measuring {name} again on {', '.join(s.name for s in suites)}")
        sample_rivals(parts, suites)
        score_references(parts, suites)
        _hold(parts, snapshot, name)
        for suite in suites:  # One by one: a rotating suite may be among them several times.
            fresh = _evaluated(parts, [suite], snapshot, name)
            entry = entries[suite.hash]
            parts.evidence.replace(entry.record, fresh[suite.name], entry.fault)


def open_sealed(parts: Parts) -> None:
    """Measure sealed suites that are due to be opened, and say what they show."""
    sealed = [s for s in parts.inputs.policy_suites if s.role == "sealed"]
    due = [s for s in sealed if is_due(parts.evidence, s.name)]
    if not due:
        return
    _measure_accepted(parts, lambda _: due)
    names = {suite.name for suite in due}
    latest = {one.suite: one for one in openings(parts.evidence) if one.suite in names}
    for opening in latest.values():
        parts.observer.note(opening.sentence)


@phase("measuring")
def sample_rivals(parts: Parts, suites: Sequence[Suite]) -> None:
    """The answers that win rates are compared with, from the snapshots that give them; once each."""
    for suite in suites:
        duel = suite.duel
        if duel is None or duel.answers is None or not parts.is_lost(duel.answers):
            continue
        assert duel.comparator is not None and suite.sampling is not None
        parts.observer.note(f"sampling the answers of {duel.against} for {suite.name}")
        _hold(parts, duel.comparator, duel.against)
        groups = collect(
            parts.engine,
            suite.prompts,
            [1] * len(suite.prompts),
            parts.inputs.encoder,
            suite.sampling,
            parts.config.seed,
            policy=duel.comparator,
        )
        save_answers(duel.answers, groups)
        parts.evidence.mirror.push()
        parts.evidence.files.record([duel.answers])


@phase("measuring")
def score_references(parts: Parts, suites: Sequence[Suite]) -> None:
    """Compute the log-likelihoods that implicit rewards are ratios to, once for each snapshot."""
    for suite in suites:
        if suite.reference is None:
            continue
        for (snapshot, _), file in zip(suite.reference.weights, suite.reference.files, strict=True):
            if parts.is_lost(file):
                parts.observer.note(f"scoring the pairs of {suite.name} by {snapshot[:16]}")
                _hold(parts, snapshot, snapshot[:16])
                save_logprobs(file, sequence_logprobs(parts.engine, suite))
                parts.evidence.mirror.push()
                parts.evidence.files.record([file])


def _measure_accepted(parts: Parts, asked: Callable[[SnapshotId], Sequence[Suite]]) -> None:
    for name, snapshot in {"base": parts.base, **parts.evidence.accepted("policy")}.items():
        missing = parts.evidence.missing(snapshot, asked(snapshot))
        if not missing:
            continue
        parts.observer.note(f"measuring {name} on {', '.join(suite.name for suite in missing)}")
        _hold(parts, snapshot, name)
        parts.evidence.save(snapshot, measure(parts, snapshot, name, missing))


@phase("weight sync")
def _hold(parts: Parts, snapshot: SnapshotId, name: str) -> None:
    """Give the engines a snapshot's weights."""
    parts.learner.load(snapshot)
    parts.engine.sync(parts.learner.weights(name))


def _stored(parts: Parts, snapshot: SnapshotId, suite: Suite) -> list[ItemResults]:
    """What is on record of the items of a rotating suite from other rounds."""
    evidence = parts.evidence
    return [
        load_with_texts(evidence.locate(snapshot, found))
        for found in earlier(suite, evidence.due_index())
        if evidence.ledger.find_evaluation(snapshot, found) is not None
    ]


def _one(results: Mapping[str, ItemResults], name: str) -> list[ItemResults]:
    return [results[name]] if name in results else []
