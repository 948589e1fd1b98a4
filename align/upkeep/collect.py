"""Collection of what a store no longer needs: planned, shown, and removed so that no crash leaves a half.

A snapshot's removal is committed to the ledger before its files go: a crash in between is finished by the
next collection or run, and whoever asks for the snapshot is told that it was collected, and why. Results of
every item stay, so each verdict can still be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from align.config.campaign import RoundConfig
from align.config.store import KeepConfig
from align.gate.evidence import Evidence
from align.store.store import Store
from align.store.superseded import leftover_in, scratch, superseded_in, unfinished
from align.upkeep.needed import needed_snapshots
from rollouts.types import SnapshotId

GarbageKind = Literal["snapshot", "file", "folder"]
UNRECORDED = "no round recorded it"
"""Reason for which a snapshot goes that the ledger does not know."""
BY_HAND = KeepConfig(accepted="all", rejected=0)
"""Policy of a collection by hand in a campaign that states none: accepted snapshots stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that nothing needs."""

    kind: GarbageKind
    name: str
    """Id of a snapshot, or a path relative to the store."""
    round: str | None
    """Round that a snapshot is of; None of a file."""
    reason: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """Things that go, and snapshots that stay."""

    garbage: tuple[Garbage, ...]
    """Rejected and repaired candidates first, then accepted ones, then files."""
    needed: dict[SnapshotId, str]
    """Snapshots that stay, each with the reason."""
    kept_bytes: int
    """Bytes of the snapshots that stay."""

    @property
    def bytes(self) -> int:
        """Bytes that are freed."""
        return sum(entry.bytes for entry in self.garbage)

    @property
    def sentence(self) -> str:
        """Sentence for people: how much of what."""
        snapshots = sum(entry.kind == "snapshot" for entry in self.garbage)
        others = len(self.garbage) - snapshots
        return (
            f"{snapshots} {'snapshot' if snapshots == 1 else 'snapshots'} and {others} other "
            f"{'entry' if others == 1 else 'entries'}, {self.bytes / 1e6:.1f} MB; "
            f"{len(self.needed)} snapshots stay, {self.kept_bytes / 1e6:.1f} MB"
        )


def plan_collection(
    evidence: Evidence, keep: KeepConfig, *, alone: bool, stated: Sequence[RoundConfig] = ()
) -> Collection:
    """Find what nothing needs.

    Args:
        keep: what a person wants to keep besides what is needed.
        stated: rounds of the campaign file; those that wait for their schedule may name earlier ones.
        alone: true if the caller holds the store's lease; else what a runner may be writing is left out.
    """
    needed = needed_snapshots(evidence, keep, stated)
    sizes = evidence.store.snapshots.sizes()
    snapshots = list(_snapshots(evidence, needed, sizes))
    files = list(_files(evidence.store, needed, alone=alone))
    return Collection(
        garbage=(*snapshots, *files),
        needed=needed,
        kept_bytes=sum(size for id, size in sizes.items() if id in needed),
    )


def collect(
    evidence: Evidence, keep: KeepConfig, *, alone: bool, stated: Sequence[RoundConfig] = ()
) -> Collection:
    """Remove what nothing needs; the caller's process holds the store's lease.

    Args:
        stated: as of `plan_collection`.
        alone: true if no round is under way in this process either, and a person asked for it. Else
            snapshots that the ledger does not know stay: an older ledger may have been restored.
    """
    store = evidence.store
    collection = plan_collection(evidence, keep, alone=alone, stated=stated)
    if not alone:
        known = tuple(e for e in collection.garbage if e.reason != UNRECORDED)
        collection = replace(collection, garbage=known)
    snapshots = [entry for entry in collection.garbage if entry.kind == "snapshot"]
    present = {record.id for record in store.ledger.snapshots()} - store.ledger.collected()
    store.ledger.collect((e.name, e.bytes, e.reason) for e in snapshots if e.name in present)
    store.snapshots.remove([entry.name for entry in snapshots])
    store.withdraw(entry.name for entry in collection.garbage if entry.kind == "file")
    if alone:
        store.remove_unfinished()
        store.snapshots.clean(remote=False)
    return collection


def tidy(
    evidence: Evidence, note: Callable[[str], None], stated: Sequence[RoundConfig] = ()
) -> None:
    """Collect what the campaign does not keep once a round is over; by default it keeps all.

    Args:
        stated: as of `plan_collection`.
    """
    keep = evidence.config.keep
    if (keep.accepted, keep.rejected) != ("all", "all"):
        collection = collect(evidence, keep, alone=False, stated=stated)
        if collection.garbage:
            note(f"collected {collection.sentence}")
    if keep.snapshots == "delta":
        pack_kept(evidence)


def pack_kept(evidence: Evidence) -> int:
    """Store kept snapshots as differences from their parents; return the bytes that were saved.

    Those that an alias names or named last stay whole, since servers may read them, and so does what a
    round under way made. The caller holds the store's lease.
    """
    ledger, store = evidence.ledger, evidence.store.snapshots
    moves = {move.alias: move for move in ledger.alias_moves()}.values()
    live = {snapshot for move in moves for snapshot in (move.target, move.previous)}
    open_rounds = {r.name for r in ledger.rounds() if not r.closed}
    records = ledger.snapshots()
    unjudged = {record.id for record in records if record.round in open_rounds}
    staying = {evidence.base, *live, *unjudged, *ledger.collected()}
    before = sum(store.sizes().values())
    # Parents come first, so that each is packed against one that is there.
    for record in records:
        if record.id not in staying:
            store.pack(record.id)
    return before - sum(store.sizes().values())


def _snapshots(
    evidence: Evidence, needed: dict[SnapshotId, str], sizes: dict[SnapshotId, int]
) -> Iterator[Garbage]:
    """Yield the snapshots that are there and not needed, those that never were production first."""
    ledger = evidence.ledger
    rounds = {record.id: record.round for record in ledger.snapshots()}
    states = {r.candidate: r.state for r in ledger.attempts()}
    accepted = {r.candidate for r in ledger.attempts() if r.state == "accepted"}
    open_rounds = {r.name for r in ledger.rounds() if not r.closed and r.attempt > 0}

    def reason(snapshot: SnapshotId) -> str:
        if (gone := ledger.collections.find(snapshot)) is not None:
            return gone.reason
        if snapshot not in rounds:
            return UNRECORDED
        if snapshot in accepted:
            return "accepted, and nothing looks back on it"
        state = states.get(snapshot)
        return f"candidate of an attempt that {_ENDED[state]}" if state in _ENDED else UNJUDGED

    # A snapshot without a record may be what the round under way has just published.
    waiting = bool(open_rounds)
    for snapshot in sorted(sizes, key=lambda id: (id in accepted, id)):
        unknown = snapshot not in rounds and waiting
        if snapshot not in needed and not unknown:
            yield Garbage(
                kind="snapshot",
                name=snapshot,
                round=rounds.get(snapshot),
                reason=reason(snapshot),
                bytes=sizes[snapshot],
            )


_ENDED = {"rejected": "was rejected", "failed": "failed"}
UNJUDGED = "made on the way: repaired, merged or replaced"


def _files(store: Store, needed: dict[SnapshotId, str], *, alone: bool) -> Iterator[Garbage]:
    """Yield files that nothing refers to."""
    why = leftover_in(store.ledger, needed, store.files.hashes())
    superseded = superseded_in(store.ledger)
    for name, size in sorted(store.sizes().items()):
        reason = "superseded" if superseded(name) else why(name)
        if reason is not None:
            yield Garbage(kind="file", name=name, round=None, reason=reason, bytes=size)
    if not alone:
        return
    for path in unfinished(store.folder):
        yield _left(store, "file", path)
    for path in (*scratch(store.folder), *store.snapshots.staged()):
        yield _left(store, "folder", path)


def _left(store: Store, kind: GarbageKind, path: Path) -> Garbage:
    size = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):
            size += file.stat().st_size
    return Garbage(
        kind=kind,
        name=store.paths.relative(path),
        round=None,
        reason="left by a process that died while it wrote",
        bytes=size,
    )
