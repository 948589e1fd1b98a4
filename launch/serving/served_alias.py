"""Alias of a campaign, resolved to the files that vLLM serves, every byte of them verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from align.data.retrieval.index import DocumentIndex, has_index, read_index
from align.gate.evidence import Evidence
from launch.serving.bank import ServedBank, base_name, served_bank
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId

SHOWN = 16
"""Digits of a snapshot's id in the name of a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A peft adapter."""

    folder: Path
    rank: int
    targets: tuple[str, ...]
    """Names of the layers that it changes."""
    must_merge: bool
    """True if vLLM cannot serve it beside the base, or the campaign asks for full weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedSnapshot:
    """Verified snapshot, and the names that it answers to."""

    snapshot: SnapshotId
    name: str
    """Name that stays the same over all swaps."""
    folder: Path
    """Folder of full weights: the snapshot's own, or those of its adapter's base."""
    adapter: Adapter | None = None
    bank: ServedBank | None = None
    index: DocumentIndex | None = None
    """Documents that it reads; None: it reads none."""

    @property
    def probed(self) -> str:
        """Name that vLLM itself knows the snapshot by."""
        return self.pinned if self.bank is None else base_name(self.pinned)

    @property
    def pinned(self) -> str:
        """Name that only this snapshot answers to.

        >>> ServedSnapshot(snapshot="ab" * 32, name="digits", folder=Path()).pinned
        'digits@abababababababab'
        """
        return f"{self.name}@{self.snapshot[:SHOWN]}"


class ServedAlias:
    """Snapshots of one campaign, of which an alias names one."""

    def __init__(self, evidence: Evidence, alias: str, name: str | None = None) -> None:
        self.evidence, self._alias = evidence, alias
        self.name = name or evidence.config.name
        self._store = evidence.store.snapshots

    def wanted(self) -> SnapshotId:
        """Return the snapshot that the alias names now.

        Raises:
            UserError: it names nothing.
        """
        target = self.evidence.ledger.alias(self._alias)
        if target is None:
            aliases = sorted({move.alias for move in self.evidence.ledger.alias_moves()})
            raise UserError(
                f"no snapshot is called {self._alias!r}",
                where="--alias",
                remedy=nearest(self._alias, aliases)
                if aliases
                else "run the campaign with keel run",
            )
        return target

    def _index_of(self, folder: Path) -> DocumentIndex | None:
        """Read the documents of a snapshot, with the encoder of a dense index."""
        if not has_index(folder):
            return None
        from align.learner.bank.texts import embedder_of

        base = self._store.open(self.evidence.base).path
        return read_index(folder, embedder_of(self.evidence.config.policy, base))

    def open(self, snapshot: SnapshotId) -> ServedSnapshot:
        """Open a snapshot and, of an adapter, its base.

        Raises:
            SnapshotError: missing or damaged; the file is named.
            UserError: it is a reward model, or a bank that mixes adapters.
        """
        stored = self._store.open(snapshot)
        if stored.kind == "reward":
            raise UserError(
                f"snapshot {snapshot[:SHOWN]} is a reward model: it scores answers and writes none",
                where=self._alias,
                remedy="serve an alias that names a policy, such as production",
            )
        index = self._index_of(stored.path)
        if stored.kind == "model":
            return ServedSnapshot(
                snapshot=snapshot, name=self.name, folder=stored.path, index=index
            )
        base = self._store.open(self.evidence.base)
        if stored.kind == "bank":
            bank = served_bank(stored.path, self._alias)
            return ServedSnapshot(
                snapshot=snapshot, name=self.name, folder=base.path, bank=bank, index=index
            )
        content = json.loads((stored.path / "adapter_config.json").read_text())
        lora = self.evidence.config.policy.lora
        adapter = Adapter(
            folder=stored.path,
            rank=content["r"],
            targets=tuple(content["target_modules"]),
            must_merge=content.get("use_dora", False) or (lora and lora.serve) == "merged",
        )
        return ServedSnapshot(
            snapshot=snapshot, name=self.name, folder=base.path, adapter=adapter, index=index
        )
