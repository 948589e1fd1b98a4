"""Snapshots that a suite compares answers with, and the files that those have to make first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.gate.evidence import Evidence
    from align.gate.suites.suite import Suite
    from align.store.paths import StorePaths
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSnapshots:
    """Snapshots that there are by now, by the names that campaign files have for them."""

    base: SnapshotId
    production: SnapshotId
    store: StorePaths
    accepted: Mapping[str, SnapshotId] = field(default_factory=dict)
    """Candidates of accepted rounds that production descends from, by round."""
    ever_accepted: Mapping[str, SnapshotId] = field(default_factory=dict)
    """Candidates of all accepted rounds, by round; some may have been rolled back."""
    parents: Mapping[str, SnapshotId] = field(default_factory=dict)
    """Parents of rounds that are over, run, or come next, by round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeededFile:
    """A file that another snapshot makes once, before any snapshot is measured on a suite."""

    path: Path
    snapshot: SnapshotId
    """Snapshot that makes it."""
    snapshot_name: str
    """Name of the snapshot for people."""
    note: str
    """Remark for the user while it is made."""
    write: Callable[[RolloutEngine, PromptEncoder, int], None]
    """Writes the file by an engine that holds the snapshot, with the campaign's seed."""


def known_snapshots(evidence: Evidence, suites: Sequence[Suite]) -> KnownSnapshots:
    """Return what is known to the store by now.

    Args:
        suites: those of all rounds. A round without one waits for feedback, and does not come next.
    """
    records = evidence.ledger.rounds()
    production = evidence.ledger.alias("production") or evidence.base
    parents = {r.name: r.parent for r in records if r.parent is not None and (r.closed or r.live)}
    measured = {suite.target_of for suite in suites}
    coming = (r.name for r in records if not r.closed and r.name in measured)
    if (name := next(coming, None)) is not None:
        parents[name] = production
    return KnownSnapshots(
        base=evidence.base,
        production=production,
        store=evidence.store.paths,
        accepted=evidence.accepted("policy"),
        ever_accepted={
            r.name: r.candidate
            for r in evidence.committed()
            if r.state == "accepted" and r.candidate
        },
        parents=parents,
    )


def compared(suites: Sequence[Suite], known: KnownSnapshots) -> list[Suite]:
    """Return the suites with what they compare answers with; without those that must wait for it."""
    ready = (suite.compared(known) for suite in suites)
    return [suite for suite in ready if suite is not None]
