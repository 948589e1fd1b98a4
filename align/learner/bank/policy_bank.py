"""Bank of adapters under a policy: those of accepted rounds, frozen, and the one that learns.

A policy is either at a snapshot, whose prompts retrieve among all its adapters, or it learns: then every
prompt is answered by the increments of the round's own adapter alone, chosen by that adapter's keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from align.algorithms.rows import Row
from align.bank.bank import ADAPTERS, Bank, KeyedAdapter, is_bank, read_bank, write_keys
from align.bank.folder import weights_hash
from align.bank.keys import train_keys
from align.bank.router import Queries, Router
from align.config.policy import BankConfig
from align.learner.bank.encoding import encoder_of
from align.learner.model.adapter import TRAINED, causal_of, reset_adapter, save_adapter
from rollouts.engines.decoding.gated import AdapterBank
from rollouts.engines.protocol import BankAdapter, WeightUpdate
from rollouts.types import Mix, PromptIds


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningAdapter:
    """Adapter of the round that learns."""

    name: str
    keys_GPC: Tensor


class PolicyBank:
    """Adapters of a policy and their retrieval.

    Args:
        model: peft's wrapper of the base, with the adapter `TRAINED`.
        base: folder of the base.
    """

    def __init__(self, model: Any, base: Path, config: BankConfig) -> None:
        self._model, self._config = model, config
        self._adapters = AdapterBank(model)
        encoder = encoder_of(
            config, causal_of(model), base, resting=lambda: self._adapters.gated([])
        )
        self._queries = Queries(encoder)
        self._base = weights_hash(base)
        self._bank = self._empty()
        self._learning: LearningAdapter | None = None
        self._router = self._router_of(self._bank)
        self._earlier: dict[Path, Router] = {}

    @property
    def keys(self) -> Tensor | None:
        """Keys of the adapter that learns; None at a snapshot."""
        return None if self._learning is None else self._learning.keys_GPC

    def load(self, folder: Path) -> None:
        """Move to a snapshot, a bank or the base alone; the adapter that learns is reset.

        Raises:
            SnapshotError: the bank cannot be read, or belongs to another base or encoder.
        """
        reset_adapter(self._model)
        self._adapters.release()
        self._bank, self._learning = self._read(folder), None
        self._adapters.hold({a.name: a.engine_form for a in self._bank.adapters})
        self._earlier.clear()
        self._router = self._router_of(self._bank)

    def begin(
        self,
        name: str,
        prompts: Sequence[PromptIds],
        seed: int,
        superseded: AbstractSet[str] = frozenset(),
    ) -> None:
        """Train the keys of a round on its prompts, and learn an adapter under them from here on.

        Args:
            seed: seed of the round, the same for every attempt.
            superseded: adapters that leave the bank, since this one answers their prompts.
        """
        remaining = tuple(
            adapter for adapter in self._bank.adapters if adapter.name not in superseded
        )
        self._bank = replace(self._bank, adapters=remaining)
        chosen = list(dict.fromkeys(prompts))[: self._config.prompts]
        keys_GPC = train_keys(
            self._queries.of(chosen), self._config, seed=seed, old_GOC=self._bank.keys_GPC
        )
        self._learning = LearningAdapter(name=name, keys_GPC=keys_GPC)
        self._adapters.adopt(name, TRAINED, self._config.keys)
        self.restart()

    def restart(self) -> None:
        """Retrieve anew, since a checkpoint may have replaced the keys that learn."""
        if (learning := self._learning) is not None:
            self._router = self._routes([(learning.name, learning.keys_GPC)])

    def mixes(self, prompts: Sequence[PromptIds]) -> list[Mix]:
        """Return the adapters that answer each prompt."""
        return self._router.mixes(prompts)

    def open_gates(self, rows: Sequence[Row]) -> None:
        """Set the adapters that act on the rows of the passes to come, until they are set again."""
        self._adapters.open_gates(self.mixes([row.prompt_ids for row in rows]))

    @contextmanager
    def at(self, folder: Path, rows: Sequence[Row]) -> Iterator[None]:
        """Answer rows as another snapshot does, within the block."""
        router = self._earlier.get(folder)
        if router is None:
            bank = self._read(folder)
            renamed = tuple(
                replace(adapter, name=f"{folder.name}/{adapter.name}") for adapter in bank.adapters
            )
            self._adapters.add({adapter.name: adapter.engine_form for adapter in renamed})
            router = self._earlier[folder] = self._router_of(replace(bank, adapters=renamed))
        with self._adapters.gated(router.mixes([row.prompt_ids for row in rows])):
            yield

    def update(self, version: str, folder: Path) -> WeightUpdate:
        """Return what engines hold: the adapters of the snapshot, or the one that learns.

        Args:
            folder: gets the adapter that learns, as it is now.
        """
        if self._learning is None:
            adapters = {adapter.name: adapter.engine_form for adapter in self._bank.adapters}
            return WeightUpdate(version=version, bank=adapters)
        save_adapter(self._model, folder)
        adapter = BankAdapter(str(folder.absolute()), self._config.keys)
        return WeightUpdate(version=version, bank={self._learning.name: adapter})

    def save(self, folder: Path) -> None:
        """Write the bank so far, with the adapter that learns as its newest."""
        bank = self._bank
        if (learning := self._learning) is not None:
            target = folder / ADAPTERS / learning.name
            target.parent.mkdir(parents=True)
            save_adapter(self._model, target)
            write_keys(target, learning.keys_GPC)
            newest = KeyedAdapter(name=learning.name, folder=target, keys_GPC=learning.keys_GPC)
            bank = replace(bank, adapters=(*bank.adapters, newest))
        bank.write(folder)

    def _empty(self) -> Bank:
        return Bank(
            base=self._base,
            encoder=self._queries.encoder.identity,
            groups=self._config.groups,
            top_k=self._config.top_k,
        )

    def _read(self, folder: Path) -> Bank:
        if not is_bank(folder):
            return self._empty()
        bank = read_bank(folder)
        encoder = self._queries.encoder.identity
        bank.check_fit(base=self._base, encoder=encoder, where=str(folder))
        bank.check_groups(self._config.groups, str(folder))
        return bank

    def _router_of(self, bank: Bank) -> Router:
        return self._routes([(adapter.name, adapter.keys_GPC) for adapter in bank.adapters])

    def _routes(self, keys: Sequence[tuple[str, Tensor]]) -> Router:
        config = self._config
        return Router(self._queries, keys, top_k=config.top_k, per_batch=config.mixing == "batch")
