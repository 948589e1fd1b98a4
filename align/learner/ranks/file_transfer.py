"""Files between the driver's disk and those of nodes that do not see it, in pieces through Ray.

A node gets a folder once, whatever number of ranks it has. Each file's hash is compared where it arrives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.store.durable import digest_of, sync
from rollouts.errors import RunError

PIECE_BYTES = 32 << 20
"""Bytes of a file that travel at a time; two pieces are under way to a node."""
Wait = Callable[[Mapping[int, Any], str], dict[int, Any]]
"""Waits for calls of ranks, by rank; the text says what they do, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerNode:
    """Node that ranks of the learner are on."""

    address: str
    ranks: tuple[int, ...]
    actor: Any
    """Actor of the node's first rank."""
    sees_driver: bool
    """True if it reads the driver's disk."""

    @property
    def first(self) -> int:
        """Number of the node's first rank."""
        return self.ranks[0]


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """Copies folders to and from the nodes of a learner group."""

    nodes: Sequence[LearnerNode]
    wait: Wait
    _sent: set[Path] = field(default_factory=set)

    @property
    def needed(self) -> bool:
        """True if a node does not see the driver's disk."""
        return not all(node.sees_driver for node in self.nodes)

    def send(self, path: Path, *, once: bool = True) -> None:
        """Let every node have a folder or file that does not change.

        Args:
            once: nodes that have had it have it still; else the copies are to be removed by `forget`.
        """
        far = [node for node in self.nodes if not node.sees_driver]
        if not far or path in self._sent:
            return
        self.forget(path)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        digests = {_name(file, path): self._send_file(file, far) for file in files}
        arrived = self.wait(
            {node.first: node.actor.file.remote("digests", path) for node in far},
            f"get {path.name}",
        )
        for node in far:
            if wrong := _differing(digests, arrived[node.first]):
                raise _damaged(wrong, path, f"on its way to {node.address}")
        if once:
            self._sent.add(path)

    def forget(self, path: Path) -> None:
        """Remove the copies of a folder."""
        far = [node for node in self.nodes if not node.sees_driver]
        self.wait({n.first: n.actor.file.remote("remove", path) for n in far}, "remove copies")
        self._sent.discard(path)

    def collect(self, folder: Path, to: Path, *, keep: bool = False) -> None:
        """Copy what all nodes wrote in place of a folder into one here.

        Args:
            folder: the folder that ranks were told to write.
            to: the folder here that gets its files, by the same names.
            keep: leave the files on their nodes, too.
        """
        for node in self.nodes:
            call = node.actor.file.remote("digests", folder)
            written = self.wait({node.first: call}, f"hash {folder.name}")[node.first]
            for name, (size, digest) in written.items():
                self._collect_file(node, folder / name, to / name, size)
                if digest_of(to / name) != (size, digest):
                    raise _damaged(name, folder, f"on its way from {node.address}")
            if not keep:
                removed = node.actor.file.remote("remove", folder)
                self.wait({node.first: removed}, "remove copies")

    def _send_file(self, file: Path, far: Sequence[LearnerNode]) -> tuple[int, str]:
        import ray

        digest, size = hashlib.sha256(), 0
        before: dict[int, Any] = {}
        with file.open("rb") as source:
            while (piece := source.read(PIECE_BYTES)) or not size:
                digest.update(piece)
                shared = ray.put(piece)
                calls = {n.first: n.actor.file.remote("append", file, shared) for n in far}
                self.wait(before, f"get {file.name}")
                before, size = calls, size + len(piece)
                if not piece:
                    break
        self.wait(before, f"get {file.name}")
        return size, digest.hexdigest()

    def _collect_file(self, node: LearnerNode, source: Path, target: Path, size: int) -> None:
        def ask(offset: int) -> Any:
            return node.actor.file.remote("chunk", source, offset, PIECE_BYTES)

        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            call = ask(0)
            for offset in range(0, max(size, 1), PIECE_BYTES):
                following = ask(offset + PIECE_BYTES) if offset + PIECE_BYTES < size else None
                file.write(self.wait({node.first: call}, f"hand over {source.name}")[node.first])
                call = following
        sync(target)


def _name(file: Path, path: Path) -> str:
    return "" if file == path else file.relative_to(path).as_posix()


def _differing(
    sent: Mapping[str, tuple[int, str]], arrived: Mapping[str, tuple[int, str]]
) -> str | None:
    """Name the first file that is on one side only, or differs."""
    names = sorted(sent.keys() | arrived.keys())
    return next((n or "it" for n in names if sent.get(n) != arrived.get(n)), None)


def _damaged(name: str, path: Path, way: str) -> RunError:
    return RunError(
        f"{name} of {path.name} changed {way}",
        where="learner ranks",
        cause="a full disk on that node, or its folder of temporary files was cleared",
        remedy="look at the free space of the node's folder of temporary files, then run again",
    )
