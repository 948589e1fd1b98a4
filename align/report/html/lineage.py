"""Who descends from whom: the start, every attempt at a round, and what became of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from align.report.export.repaired import repaired_by
from align.store.ledger.ledger import RoundRecord
from align.store.repairs import repairs_of
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One attempt at a round, or the start of the campaign."""

    name: str
    state: str
    """``start``, or the state of the attempt."""
    attempt: int
    snapshot: SnapshotId | None
    kind: str | None
    """Of the snapshot: model, adapter or reward."""
    production: bool = False
    repaired: str = ""
    """How, where the first candidate was refused and another took its place."""
    sides: tuple[tuple[Node, ...], ...] = ()
    """Lines that left from here and that production did not follow."""


def lineage(
    base: SnapshotId,
    attempts: Iterable[RoundRecord],
    production: SnapshotId | None,
    kind_of: Callable[[SnapshotId], str | None],
) -> tuple[Node, ...]:
    """The line from the start to the newest accepted policy; everything else hangs on its sides."""
    children: defaultdict[SnapshotId, list[Node]] = defaultdict(list)
    for record in attempts:
        if record.parent is not None:
            children[record.parent].append(
                Node(
                    name=record.name,
                    state=record.state,
                    attempt=record.attempt,
                    snapshot=record.candidate,
                    kind=kind_of(record.candidate) if record.candidate else None,
                    production=record.state == "accepted" and record.candidate == production,
                    repaired=repaired_by(repairs_of(record.report)),
                )
            )
    start = Node(
        name="base",
        state="start",
        attempt=0,
        snapshot=base,
        kind=kind_of(base),
        production=base == production,
    )
    return _line(start, children)


def _line(first: Node, children: defaultdict[SnapshotId, list[Node]]) -> tuple[Node, ...]:
    """A node, and as long as there is one the accepted policy that came of it."""
    nodes: list[Node] = []
    node: Node | None = first
    while node is not None:
        born = children.pop(node.snapshot or "", []) if node.state in ("start", "accepted") else []
        heirs = [c for c in born if c.state == "accepted" and c.kind != "reward"]
        heir = heirs[-1] if heirs else None
        sides = tuple(_line(child, children) for child in born if child is not heir)
        nodes.append(replace(node, sides=sides))
        node = heir
    return tuple(nodes)
