"""Verification of a store: every hash that it has on record, computed again from the bytes.

Snapshots, results of items, replayed prompts and examples, artifacts, histories, the index of documents in
its snapshot, and the ledger's own database are compared. Nothing is repaired; what the cache of a store
with a URL lacks is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from align.config.store import KeepConfig
from align.errors import SnapshotError
from align.gate.evidence import Evidence
from align.gate.verdict import Verdict
from align.store.database.integrity import integrity_faults
from align.store.paths import NAMED_ELSEWHERE, StorePaths, remedy_of
from align.store.stored_files import fault_of
from align.store.superseded import handed_on
from align.upkeep.collect import Garbage, plan_collection

FROM_BACKUP = "restore it from a backup"
AGAIN = "keel run measures it again where the campaign still has the suite"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that is not as it was written."""

    path: str
    """Relative to the store; the ledger's own place for its database."""
    fault: str
    """End of a sentence about it, such as ``is missing``."""
    remedy: str

    @property
    def sentence(self) -> str:
        """Sentence for people."""
        return f"{self.path} {self.fault}; {self.remedy}"


@dataclass(kw_only=True, slots=True)
class Verification:
    """Result of a verification."""

    snapshots: int = 0
    """Number of snapshots that were read."""
    files: int = 0
    """Number of other files that were read."""
    bytes: int = 0
    """Bytes of both."""
    collected: int = 0
    """Number of snapshots that were removed on purpose."""
    unhashed: int = 0
    """Number of files of results without a hash on record: a version of Keel that recorded none wrote
    them."""
    faults: list[Fault] = field(default_factory=list)
    not_recomputable: list[str] = field(default_factory=list)
    """Rounds whose verdict cannot be drawn again, since a file that it rests on has a fault."""
    unnamed: tuple[Garbage, ...] = ()
    """Files that nothing names; they do no harm, and ``keel gc`` removes them."""

    @property
    def whole(self) -> bool:
        """True if nothing is wrong."""
        return not self.faults

    @property
    def sentence(self) -> str:
        """Sentence for people."""
        count = f"{self.snapshots} snapshots and {self.files} files"
        checked = f"{count}, {self.bytes / 1e6:.1f} MB, and the ledger"
        if self.whole:
            return f"{checked}: every byte is as it was written"
        return f"{checked}: {len(self.faults)} are not as they were written"


def verify(evidence: Evidence, tell: Callable[[str, int], None]) -> Verification:
    """Read the whole store and compare it with what is on record.

    Args:
        tell: told the name of each snapshot or file before it is read, and how many there are in all.
    """
    result = Verification(collected=len(evidence.ledger.collected()))
    records = evidence.ledger.snapshots()
    hashes = evidence.files.hashes()
    total = len(records) + len(hashes)
    where = evidence.ledger.database.where
    for words in integrity_faults(evidence.ledger.database):
        result.faults.append(Fault(path=where, fault=f"is damaged: {words}", remedy=FROM_BACKUP))
    _verify_snapshots(evidence, result, lambda name: tell(name, total))
    _verify_files(evidence, result, lambda name: tell(name, total))
    faulty = {fault.path for fault in result.faults}
    result.not_recomputable = [r for r, paths in _evidence_files(evidence) if paths & faulty]
    result.unnamed = plan_collection(evidence, KeepConfig(), alone=False).garbage
    return result


def _verify_snapshots(
    evidence: Evidence, result: Verification, tell: Callable[[str], None]
) -> None:
    collected, store = evidence.ledger.collected(), evidence.store
    for record in evidence.ledger.snapshots():
        if record.id in collected:
            continue
        path = store.paths.relative(store.paths.snapshot(record.id))
        tell(path)
        result.snapshots += 1
        result.bytes += record.bytes
        try:
            store.snapshots.verify(record.id)
        except SnapshotError as error:
            if record.id in evidence.ledger.collected():
                continue  # Meanwhile.
            is_gone = not (store.is_remote or store.snapshots.is_here(record.id))
            words = "is missing" if is_gone else f"is damaged: {error.what}"
            result.faults.append(Fault(path=path, fault=words, remedy=FROM_BACKUP))


def _verify_files(evidence: Evidence, result: Verification, tell: Callable[[str], None]) -> None:
    hashes, folder = evidence.files.hashes(), evidence.folder
    results = {record.path: record for record in evidence.ledger.evaluations()}
    artifacts, collected = handed_on(evidence.ledger, hashes), evidence.ledger.collected()
    needed = results.keys() | _replayed(evidence) | artifacts
    sizes = evidence.store.sizes()
    for path, row in hashes.items():
        if path not in sizes and NAMED_ELSEWHERE.match(path) and path not in needed:
            continue  # Of a round that nobody replays, and so was removed.
        tell(path)
        result.files += 1
        result.bytes += row.bytes
        fault = fault_of(folder / path, row.sha256)
        if fault and not evidence.store.restored(path, row.sha256):
            remedy = FROM_BACKUP if path in artifacts else remedy_of(path)
            if (record := results.get(path)) is not None:
                remedy = FROM_BACKUP if record.snapshot in collected else AGAIN
            result.faults.append(Fault(path=path, fault=fault, remedy=remedy))
    for path in results.keys() - hashes.keys():
        result.unhashed += 1
        if fault := fault_of(folder / path, None):
            result.faults.append(Fault(path=path, fault=fault, remedy=AGAIN))


def _replayed(evidence: Evidence) -> set[str]:
    """Return the files of accepted rounds that later rounds replay, by the ledger's names."""
    paths: StorePaths = evidence.store.paths
    hashes, collected = evidence.files.hashes(), evidence.ledger.collected()
    kinds = (paths.replay, paths.replay_examples, paths.prompt_history)
    owners = set(evidence.accepted("policy").values()) - collected
    names = {paths.relative(path_of(owner)) for owner in owners for path_of in kinds}
    return names & hashes.keys()


def _evidence_files(evidence: Evidence) -> Iterator[tuple[str, set[str]]]:
    """Yield every judged round with the files that its verdict rests on."""
    known = {(e.snapshot, e.suite_hash): e.path for e in evidence.ledger.evaluations()}
    for record in evidence.committed():
        if "inputs" not in (record.report or {}):
            continue
        inputs = Verdict.from_dict(record.report or {}).inputs
        hashes = {rule.name: rule.hash for rule in inputs.suites}
        paths = {
            known.get((snapshot, hashes[suite]), "")
            for chosen in (inputs.candidate, inputs.parent, inputs.best, inputs.start)
            for suite, snapshot in chosen.items()
        }
        yield record.name, paths
