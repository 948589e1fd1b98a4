"""Measuring snapshots on suites: what verdicts compare, and nothing twice.

Every snapshot that a verdict names is measured on the items that are due in the round it belongs to.
Sealed suites are measured when they are opened, so that until then there is nothing to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import monotonic

from align.gate.checks import Against
from align.gate.measurement.evaluate import ItemResults, evaluate, no_value, sequence_logprobs
from align.gate.measurement.progress import SuiteProgress, Tell
from align.gate.measurement.reuse import earlier, joined, load_with_texts, rest_of
from align.gate.sealed import is_due, openings
from align.gate.suites.implicit import save_logprobs
from align.gate.suites.looks import looks
from align.gate.suites.suite import Suite
from align.gate.suites.win_rate import save_answers
from align.round.measurement.damage import Damaged
from align.round.session import MeasuringObserver, Parts
from align.round.times.clock import measured, phase
from rollouts.collect import collect
from rollouts.types import SnapshotId

BEAT_EVERY_S = 60.0
"""Seconds between signs of life while a snapshot is measured."""


def measure(
    parts: Parts,
    snapshot: SnapshotId,
    name: str,
    suites: Sequence[Suite] | None = None,
    items: Mapping[str, int] | None = None,
) -> dict[str, ItemResults]:
    """Every suite not yet measured, on the weights the engines hold now: the snapshot's.

    Args:
        name: of the snapshot, for people who watch.
        suites: those to measure; None: those that are due.
        items: by suite, the number of its first items that are needed; where it is not named, all.
    """
    due = parts.suites() if suites is None else suites
    missing = parts.evidence.missing(snapshot, due, items)
    found = {suite.name: _stored(parts, snapshot, suite) for suite in missing}
    wanted = {s.name: s.first((items or {}).get(s.name, len(s.item_ids))) for s in missing}
    rest = {suite.name: rest_of(wanted[suite.name], found[suite.name]) for suite in missing}
    asked = [part for part in rest.values() if part is not None]
    fresh = _evaluated(parts, asked, snapshot, name)
    results = {
        suite.name: joined(
            wanted[suite.name], [*_one(fresh, suite.name), *found[suite.name]], suite.hash
        )
        if found[suite.name] or wanted[suite.name] is not suite
        else fresh[suite.name]
        for suite in missing
    }
    for suite in missing:
        part = results[suite.name]
        if len(part.values) == len(suite.item_ids) and "scored" not in part.statuses:
            raise no_value(suite.name, len(part.values), ["its metric failed or abstained on all"])
        if part.beside_line:
            parts.observer.note(f"{name} on {part.suite}: {part.beside_line}")
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


def measure_until_decided(
    parts: Parts, candidate: SnapshotId, name: str, target: str, parent: SnapshotId, look: int
) -> tuple[dict[str, dict[SnapshotId, int]], dict[str, dict[Against, SnapshotId]]]:
    """Measure a candidate, whose weights the engines hold, on every suite that is due.

    A suite that may stop early is measured look by look, with the comparators on the same items, until more
    items can change nothing. The other suites go on: the report says of each what was kept or lost.

    Args:
        name: of the candidate, for people who watch.
        target: its round.
        look: number of the decision.

    Returns:
        By suite that may stop early and comparator, the number of first items that decide; and by suite
        the comparators, chosen before the first look, so that none drops out by what it shows.
    """
    suites, evidence = parts.suites(), parts.evidence
    early = {suite.name: suite for suite in deciding(parts, target, suites)}
    whole = [suite for suite in suites if suite.name not in early]
    evidence.save(candidate, measure(parts, candidate, name, whole))
    compared = evidence.comparator_snapshots(target, list(early.values()), parent)
    alpha, ends = evidence.level_at(look), {n: suite_looks(suite) for n, suite in early.items()}
    undecided = {n: set(snapshots.values()) for n, snapshots in compared.items()}
    items: dict[str, dict[SnapshotId, int]] = {n: {} for n in early}
    holding = candidate
    for number in range(max(map(len, ends.values()), default=0)):
        asked = {n: ends[n][number] for n, snapshots in undecided.items() if snapshots}
        for n, count in asked.items():
            items[n] |= dict.fromkeys(undecided[n], count)
        for snapshot, names in measured_by(candidate, undecided, holding).items():
            those = [early[n] for n in names]
            if evidence.missing(snapshot, those, asked):
                title = name if snapshot == candidate else snapshot[:16]
                if snapshot != holding:
                    _hold(parts, snapshot, title)
                holding = snapshot
                evidence.save(snapshot, measure(parts, snapshot, title, those, asked))
        for n in asked:
            undecided[n] = evidence.open_against(
                early[n], target, candidate, compared[n], alpha, items[n]
            )
        if not any(undecided.values()):
            break
    if holding != candidate:
        _hold(parts, candidate, name)
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


def deciding(parts: Parts, target: str, suites: Sequence[Suite]) -> list[Suite]:
    """Return the suites that may stop early and decide on round ``target``; others are measured whole."""
    role = parts.evidence.role_in(target)
    return [s for s in suites if s.early is not None and role(s.rule) != "shown"]


def suite_looks(suite: Suite) -> list[int]:
    """Return the numbers of items at which a suite that may stop early is looked at."""
    assert suite.early is not None
    return looks(suite.name, suite.item_ids, suite.item_clusters, suite.early.looks)


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


def measure_known(parts: Parts, target: str) -> None:
    """Evaluate what verdicts compare with: the start, and every accepted snapshot, on every suite.

    The start is row 0 of the matrix and the gate's fixed anchor. Accepted snapshots were measured in
    their own rounds; only what came later is left to do: suites of appended rounds, those whose reward
    model was accepted since, and items that rotate in. Of rounds without end not every snapshot is.

    Args:
        target: the round that is due.
    """
    suites = parts.suites()
    sample_rivals(parts, suites)
    score_references(parts, suites)
    needed = parts.evidence.comparators(suites)
    _measure_accepted(
        parts,
        lambda snapshot: [s for s in suites if snapshot in needed[s.name]],
        # Of a suite that may stop early, a candidate asks for what it needs of them.
        {s.name: suite_looks(s)[0] for s in deciding(parts, target, suites)},
    )


def measure_again(parts: Parts, damaged: Sequence[Damaged]) -> None:
    """Evaluate snapshots on the suites whose stored results were lost or changed, on as many items."""
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
            part = suite.first(entries[suite.hash].record.n)
            fresh = _evaluated(parts, [part], snapshot, name)
            entry = entries[suite.hash]
            items = replace(fresh[suite.name], suite_hash=suite.hash)
            parts.evidence.replace(entry.record, items, entry.fault)


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
                parts.evidence.files.record([file])


def _measure_accepted(
    parts: Parts,
    asked: Callable[[SnapshotId], Sequence[Suite]],
    items: Mapping[str, int] | None = None,
) -> None:
    for name, snapshot in {"base": parts.base, **parts.evidence.accepted("policy")}.items():
        missing = parts.evidence.missing(snapshot, asked(snapshot), items)
        if not missing:
            continue
        parts.observer.note(f"measuring {name} on {', '.join(suite.name for suite in missing)}")
        _hold(parts, snapshot, name)
        parts.evidence.save(snapshot, measure(parts, snapshot, name, missing, items))


@phase("weight sync")
def _hold(parts: Parts, snapshot: SnapshotId, name: str) -> None:
    """Give the engines a snapshot's weights."""
    parts.learner.load(snapshot)
    parts.engine.sync(parts.learner.weights(name))


def _stored(parts: Parts, snapshot: SnapshotId, suite: Suite) -> list[ItemResults]:
    """What is on record of a suite's items: its first, or those of a rotating suite from other rounds."""
    evidence = parts.evidence
    return [
        load_with_texts(evidence.locate(snapshot, found))
        for found in (suite.hash, *earlier(suite, evidence.due_index()))
        if evidence.ledger.find_evaluation(snapshot, found) is not None
    ]


def _one(results: Mapping[str, ItemResults], name: str) -> list[ItemResults]:
    return [results[name]] if name in results else []
