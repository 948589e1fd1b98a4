"""Files of a store that the ledger no longer names: superseded ones, and leftovers.

A superseded file is fetched by nobody, and the next run removes it, once the ledger's newer entry is
durable: a crash leaves both. A file counts as superseded only if the ledger names what has replaced it, or
says that its round or attempt is over. Leftovers are what rejected rounds, dead attempts and crashes left;
they may be of use to a person and go only when somebody asks. Metrics and sampled rollouts always stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from align.store.ledger.ledger import PRODUCTION, Ledger
from align.store.paths import DIGITS, MIRRORED, StorePaths
from rollouts.types import SnapshotId

RESULTS = re.compile(r"(evaluations/[0-9a-f]+/[^/]+-[0-9a-f]{8})(?:-\d+)?\.parquet")
"""Results on a suite. The group is what all looks at the suite have in common."""
CHECKPOINTS = re.compile(r"rounds/(\d+)-([^/]+)/checkpoint[^/]*/.+")
"""Files of checkpoints. The groups are the round's index and name."""
ARTIFACTS = re.compile(r"rounds/(\d+)-[^/]+/attempt-(\d+)/artifacts/.+")
"""Tensors that retention methods hand on. The groups are the round's index and the attempt."""
RESULT_FILES = re.compile(r"evaluations/[0-9a-f]+/[^/]+\.parquet")
REPLAYED = re.compile(rf"replay/(?:examples-|history-)?([0-9a-f]{{{DIGITS}}})\.jsonl")
"""Prompts, examples and history of a round. The group is its snapshot."""
BULK = re.compile(r"rounds/(\d+)-([^/]+)/attempt-(\d+)/(?:[^/]+/)?(critic|artifacts|output)/.+")
"""Large files of an attempt. The groups are the round's index and name, the attempt, and the folder."""
UNFINISHED = re.compile(r"\..+\.(?:[0-9a-f]{32}|again|\d+\.tmp)")
"""Name of a file that was to take another one's place."""
SCRATCH = "adapters-*"
"""Folders of a runner's temporary adapters."""


def superseded_in(
    ledger: Ledger, snapshots: Collection[SnapshotId] | None = None
) -> Callable[[str], bool]:
    """Return a test of paths, relative to the store: True for a file that the ledger no longer names.

    Superseded are results that a record with more items has replaced, checkpoints of a round that is over
    or has left its place in the ledger, and what retention kept of an attempt that was not accepted.

    Args:
        snapshots: those whose results are told apart; None: all.
    """
    each = [None] if snapshots is None else snapshots
    results = {record.path for snapshot in each for record in ledger.evaluations(snapshot)}
    looks = {match[1] for path in results if (match := RESULTS.fullmatch(path))}
    attempts = {(record.index, record.attempt): record for record in ledger.attempts()}
    latest = {index: record for (index, _), record in attempts.items()}

    def is_superseded(path: str) -> bool:
        if match := RESULTS.fullmatch(path):
            return match[1] in looks and path not in results
        if match := CHECKPOINTS.fullmatch(path):
            record = latest.get(int(match[1]))
            return record is not None and (record.closed or record.name != match[2])
        if match := ARTIFACTS.fullmatch(path):
            record = attempts.get((int(match[1]), int(match[2])))
            return record is not None and record.state != "accepted" and not record.live
        return False

    return is_superseded


def leftover_in(
    ledger: Ledger, staying: Collection[SnapshotId], recorded: Collection[str]
) -> Callable[[str], str | None]:
    """Return a function of paths, relative to the store: why nothing refers to the file, or None.

    Args:
        staying: snapshots that stay.
        recorded: files with a hash on record.
    """
    kept_artifacts = handed_on(ledger, recorded)
    results = {record.path for record in ledger.evaluations()}
    attempts = {(r.index, r.attempt): r for r in ledger.attempts()}
    names = {record.index: record for record in attempts.values()}
    open_rounds = {r.name for r in names.values() if not r.closed}
    accepted = {
        key: (r.candidate or "")[:DIGITS]
        for key, r in attempts.items()
        if r.state == "accepted" and r.candidate in staying
    }
    owners = set(accepted.values())
    owners |= {s.id[:DIGITS] for s in ledger.snapshots() if s.round in open_rounds}

    def why(path: str) -> str | None:
        if RESULT_FILES.fullmatch(path) and path not in results:
            return "no evaluation on record names it"
        if (match := REPLAYED.fullmatch(path)) and match[1] not in owners:
            return "its snapshot is not accepted, or goes too"
        if (match := BULK.fullmatch(path)) and path not in kept_artifacts:
            key = int(match[1]), int(match[3])
            record = attempts.get(key)
            if record is None or record.name != match[2]:
                return "the ledger has no such attempt"
            if names[record.index].closed and key not in accepted:
                return "its attempt was not accepted, or its snapshot goes too"
        return None

    return why


def handed_on(ledger: Ledger, recorded: Collection[str]) -> frozenset[str]:
    """Return the artifacts that a round to come goes on from: of each method the newest on the line.

    Args:
        recorded: files with a hash on record.
    """
    by_attempt: dict[tuple[int, int], list[str]] = {}
    for path in recorded:
        if match := ARTIFACTS.fullmatch(path):
            by_attempt.setdefault((int(match[1]), int(match[2])), []).append(path)
    accepted = {r.candidate: r for r in ledger.attempts() if r.state == "accepted"}
    newest: dict[str, str] = {}
    snapshot = ledger.alias(PRODUCTION)
    while (record := accepted.pop(snapshot, None)) is not None:
        attempt = StorePaths(Path()).attempt(record.index, record.name, record.attempt)
        folder = f"{attempt.artifacts.as_posix()}/"
        for path in by_attempt.get((record.index, record.attempt), ()):
            if path.startswith(folder):
                newest.setdefault(path.removeprefix(folder), path)
        snapshot = record.parent
    return frozenset(newest.values())


def unfinished(folder: Path) -> list[Path]:
    """List records that were being written when a process died. Hold the lease first."""
    mirrored = (path for name in MIRRORED for path in (folder / name).rglob(".*"))
    hidden = (*folder.glob(".*"), *mirrored)
    return sorted(path for path in hidden if UNFINISHED.fullmatch(path.name) and path.is_file())


def scratch(folder: Path) -> list[Path]:
    """List folders of temporary adapters. Hold the lease first."""
    return sorted(path for path in folder.glob(SCRATCH) if path.is_dir())
