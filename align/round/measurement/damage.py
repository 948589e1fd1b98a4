"""Files of a store that are missing or changed, and what a run does about each of them.

Looked for before a run reads any of them. Results of a suite that the campaign still has are measured again
on the snapshot's own weights, and the record says so; sampled answers are sampled again where they are
needed; prompts to replay follow from their round's data. Everything else is named, with what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from align.data.replay.buffer import ReplayBuffer
from align.data.replay.examples import OwnedExamples
from align.data.replay.history import PromptHistory
from align.data.stored_answers import load_answers
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.measurement.retired import forms_of
from align.gate.suites.known import compared, known_snapshots
from align.gate.suites.suite import Suite
from align.gate.suites.win_rate import load_answers as load_rivals
from align.gate.verdict import Verdict
from align.round.inputs import Inputs
from align.round.reward_models import measurable
from align.store.ledger.records import EvaluationRecord
from align.store.paths import (
    DIGITS,
    EXAMPLES,
    GENERAL_ANSWERS,
    HISTORIES,
    NAMED_ELSEWHERE,
    OWNED,
    REPEATS,
    REPLAYED,
    RIVAL_ANSWERS,
    SYNTHETIC,
    remedy_of,
)
from align.store.stored_files import FIRST_READ, MEASURED_AGAIN, FileHash, fault_of
from rollouts.errors import KeelError
from rollouts.types import SnapshotId

SURVEYED = 5_000
"""Rows of the record of hashes up to which a run checks every file before it begins."""
NEWEST, IN_TURN = 20, 500
"""Newest rounds whose files are checked of a larger record, and rows that are checked in turn."""
GOLDEN = (5**0.5 - 1) / 2
RESULTS = 100
"""Newest results of each snapshot that are checked then."""

LOADERS: Mapping[str, Callable[[Path], object]] = {
    REPEATS: ItemResults.load,
    RIVAL_ANSWERS: load_rivals,
    REPLAYED: ReplayBuffer.load,
    EXAMPLES: OwnedExamples.load,
    SYNTHETIC: ReplayBuffer.load,
    HISTORIES: PromptHistory.load,
    GENERAL_ANSWERS: load_answers,
}
"""Patterns of files that no row of the ledger describes, and what reads them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damaged:
    """Stored results whose file cannot be trusted."""

    record: EvaluationRecord
    fault: str
    """The end of a sentence about the file, such as ``is missing``."""
    suite: Suite | None
    """The suite to measure again; None if the campaign no longer has it, or the snapshot is collected."""
    collected: bool = False
    """True if the snapshot's weights were collected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The state of a store's files at the beginning of a run."""

    damaged: tuple[Damaged, ...]
    adopted: int
    """Files of an older version whose hash was recorded just now."""
    others: Mapping[str, str]
    """Ends of sentences about other files, by path."""

    @property
    def measurable(self) -> tuple[Damaged, ...]:
        """Results that this run measures again."""
        return tuple(entry for entry in self.damaged if entry.suite is not None)

    def lines(self) -> Iterator[str]:
        """Describe the state to a person."""
        if self.adopted:
            yield (
                f"{self.adopted} files of a version that recorded no hashes: their hashes are recorded as "
                "the files are now"
            )
        for entry in self.damaged:
            does = "it is measured again"
            if entry.suite is None:
                why = (
                    "its snapshot's weights were collected"
                    if entry.collected
                    else f"this run has no suite {entry.record.suite!r} that is still the same"
                )
                does = (
                    f"{why}, so it is not measured again: restore it from a backup; until then verdicts "
                    "that rest on it stand, and cannot be recomputed"
                )
            yield f"{entry.record.path} {entry.fault}; {does}"
        for path, fault in self.others.items():
            yield f"{path} {fault}; {remedy_of(path)}"


def survey(evidence: Evidence, inputs: Inputs, folder_of: Callable[[SnapshotId], Path]) -> Survey:
    """Check the files of the store that have a hash, and record those of an older version.

    What lies unharmed on the far side of a store is fetched from there first. Of a store with more than
    `SURVEYED` files those of the newest rounds are checked, and a part of the others in turn; every file is
    checked whenever it is read.

    Args:
        folder_of: where a snapshot lies.
    """
    adopted = adopt(evidence)
    hashes, needed = _surveyed(evidence)
    faults: dict[str, str] = {}
    collected = evidence.ledger.collected()
    for path, row in hashes.items():
        if NAMED_ELSEWHERE.match(path) and path not in needed:
            continue
        fault = fault_of(evidence.folder / path, row.sha256)
        if fault and not evidence.store.restored(path, row.sha256):
            faults[path] = fault
    for record in evidence.ledger.unhashed_evaluations():
        if fault := _fault_unhashed(evidence.folder / record.path, record):
            faults[record.path] = fault
    evaluations = evidence.ledger.evaluations() if faults else ()
    records = [record for record in evaluations if record.path in faults]
    known = _suites_by_hash(evidence, inputs, folder_of) if records else {}
    damaged = tuple(
        Damaged(
            record=r,
            fault=faults[r.path],
            suite=None if r.snapshot in collected else known.get(r.suite_hash),
            collected=r.snapshot in collected,
        )
        for r in records
    )
    measured = {record.path for record in records}
    others = {path: fault for path, fault in faults.items() if path not in measured}
    return Survey(damaged=damaged, adopted=adopted, others=others)


def _surveyed(evidence: Evidence) -> tuple[Mapping[str, FileHash], set[str]]:
    """Return the hashes of the files to check, and the names of those that the campaign still needs."""
    store, ledger = evidence.store, evidence.ledger
    num_rows = store.files.num_rows
    collected = ledger.collected()
    accepted = [s for s in evidence.accepted("policy").values() if s not in collected]
    kinds = (store.paths.replay, store.paths.replay_examples, store.paths.prompt_history)
    if num_rows <= SURVEYED:
        needed = {store.paths.relative(path_of(s)) for s in accepted for path_of in kinds}
        return store.files.hashes(), needed | {record.path for record in ledger.evaluations()}
    newest = [record.candidate for record in evidence.committed()[-NEWEST:]]
    plain = {evidence.base, ledger.alias("production"), *accepted[:1], *newest} - {None}
    recent = {
        record.path
        for snapshot in plain
        if snapshot is not None
        for record in ledger.newest_evaluations(snapshot, RESULTS)
    }
    recent |= {store.paths.relative(path_of(s)) for s in accepted[-NEWEST:] for path_of in kinds}
    first = turn_of(len(ledger.attempts()), num_rows)
    turn = store.files.hashes_between(first + 1, first + IN_TURN)
    owners = {snapshot[:DIGITS] for snapshot in accepted}
    replayed = {path for path in turn if (m := OWNED.fullmatch(path)) and m[1] in owners}
    needed = recent | replayed | ledger.evaluation_paths(turn)
    return {**turn, **store.files.hashes_of(recent)}, needed


def turn_of(num_attempts: int, num_rows: int) -> int:
    """Return the row of the record behind which a run checks files, another one after every attempt.

    Multiples of the golden ratio spread evenly, so that old and new rows come up alike, also of a record
    that grows by as many rows with every attempt.
    """
    return int(num_attempts * GOLDEN % 1 * (num_rows + IN_TURN)) - IN_TURN


def adopt(evidence: Evidence) -> int:
    """Record the hashes of files that have none and are what the ledger says of them; return how many."""
    unhashed = evidence.ledger.unhashed_evaluations()
    if not unhashed and evidence.files.num_rows > SURVEYED:
        return 0  # A store of this version: it has recorded what it wrote.
    sound = [
        evidence.folder / record.path
        for record in unhashed
        if not _fault_unhashed(evidence.folder / record.path, record)
    ]
    hashes = evidence.files.hashes()
    sound += [
        path
        for pattern, load in LOADERS.items()
        for path in sorted(evidence.folder.glob(pattern))
        if path.relative_to(evidence.folder).as_posix() not in hashes and _loads(load, path)
    ]
    evidence.files.record(sound, FIRST_READ)
    return len(sound)


def _loads(load: Callable[[Path], object], path: Path) -> bool:
    """Tell if a file is what it should be; whoever needs it says what is wrong."""
    try:
        load(path)
    except KeelError:
        return False
    return True


def _fault_unhashed(path: Path, record: EvaluationRecord) -> str:
    """Return what contradicts the ledger in a file without a hash; empty if nothing does."""
    if not path.is_file():
        return "is missing"
    try:
        results = ItemResults.load(path)
    except KeelError:
        return "cannot be read"
    if (results.suite_hash, results.snapshot) != (record.suite_hash, record.snapshot):
        return "holds results of something else"
    if (len(results.values), results.mean) != (record.n, record.mean):
        return f"was changed: its mean is {results.mean:.6g}, and {record.mean:.6g} is on record"
    return ""


def _suites_by_hash(
    evidence: Evidence, inputs: Inputs, folder_of: Callable[[SnapshotId], Path]
) -> dict[str, Suite]:
    """Return the suites of policies as they were in every round so far, and against every rival."""
    turned = [
        suite.at(index)
        for suite in inputs.policy_suites
        for index in range(evidence.due_index() + 1 if suite.rotates else 1)
    ]
    accepted = evidence.accepted("policy")
    chains = [
        evidence.retired_items({*accepted, record.name})
        for record in evidence.ledger.rounds()
        if record.name not in accepted or record.name == next(reversed(accepted))
    ]
    forms = [f for suite in turned for chain in chains or [()] for f in forms_of(suite, chain)]
    suites = measurable(forms, evidence.accepted("reward_model"), folder_of)
    known = known_snapshots(evidence, suites)
    return {
        suite.hash: suite
        for parent in (known.base, *known.accepted.values())
        for suite in compared(suites, replace(known, production=parent))
    }


def evidence_notes(evidence: Evidence, verdict: Verdict) -> Iterator[str]:
    """Say which of the files that a verdict rests on have no hash, or were measured again since."""
    inputs = verdict.inputs
    suite_hashes = {rule.name: rule.hash for rule in inputs.suites}
    paths = {
        record.path
        for snapshots in (inputs.candidate, inputs.parent, inputs.best, inputs.start)
        for suite, snapshot in snapshots.items()
        if (record := evidence.ledger.find_evaluation(snapshot, suite_hashes[suite])) is not None
    }
    hashes = evidence.files.hashes_of(paths)
    if unverified := sorted(paths - hashes.keys()):
        yield (
            f"{len(unverified)} of {len(paths)} files have no hash on record and are not verified: a "
            "version of Keel that recorded none wrote them; the next keel run records them as they are"
        )
    for path in sorted(paths & hashes.keys()):
        row = hashes[path]
        if row.reason.startswith(MEASURED_AGAIN):
            yield f"{path} was {row.reason} ({row.time[:19]})"
