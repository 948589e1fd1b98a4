"""Folder of a bank: adapters of accepted rounds over one base, and the keys that retrieve them.

    bank.json                                   base by hash, encoder, groups, top_k, adapters by hash
    adapters/<round>/adapter_model.safetensors  peft's format, rank = keys * policy.lora.rank
    adapters/<round>/adapter_config.json
    adapters/<round>/keys.safetensors           tensor ``keys``, ``G, P, C / G``

The rank of an adapter is divided into one increment for each key: rows ``i r`` to ``(i + 1) r`` of every A
and the same columns of every B belong to key ``i``. peft reads such a folder too, as the sum of its
increments. A bank is a snapshot: it is written once and never changed, and the next round's bank has the
same adapters and one more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.bank.encoder import EncoderIdentity
from align.errors import SnapshotError
from align.settings import NAME_PATTERN
from align.store.durable import digest_of
from align.store.snapshots.contained import copy_contained
from rollouts.engines.protocol import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BankAdapter

BANK = "bank.json"
ADAPTERS = "adapters"
KEYS = "keys.safetensors"
FILES = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, KEYS)
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedAdapter:
    """Adapter of one round with its keys."""

    name: str
    """Name of the round."""
    folder: Path
    keys_GPC: Tensor

    @property
    def engine_form(self) -> BankAdapter:
        """Adapter as engines load it."""
        return BankAdapter(str(self.folder.absolute()), self.keys_GPC.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Bank:
    """Adapters over one base, oldest first, and the encoder that their keys belong to."""

    base: str
    """Hash of the base's weights."""
    encoder: EncoderIdentity
    groups: int
    top_k: int
    adapters: tuple[KeyedAdapter, ...] = ()

    @property
    def keys_GPC(self) -> Tensor:
        """All keys, those of the oldest adapter first."""
        if not self.adapters:
            return torch.zeros(self.groups, 0, self.encoder.width // self.groups)
        return torch.cat([adapter.keys_GPC for adapter in self.adapters], dim=1)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(adapter.name for adapter in self.adapters)

    def check_fit(self, *, base: str, encoder: EncoderIdentity, where: str) -> None:
        """Refuse a bank that was made for another base or another encoder.

        Raises:
            SnapshotError: the bank must not be used here.
        """
        if self.base != base:
            raise SnapshotError(
                f"the bank belongs to the base {self.base[:12]}, and the policy's is {base[:12]}",
                where=where,
                cause="adapters only make sense over the weights that they were trained on",
                remedy="use the model that the bank was trained over as policy.model",
            )
        if self.encoder.width != encoder.width:
            raise SnapshotError(
                f"the bank's keys have {self.encoder.width} numbers, and the encoder gives "
                f"{encoder.width}",
                where=where,
                cause="policy.bank.encoder names another encoder than the one that trained the keys",
                remedy="name that encoder in policy.bank.encoder, or begin a new store",
            )
        if self.encoder != encoder:
            raise SnapshotError(
                f"the bank's keys belong to the encoder {self.encoder.label}, not to {encoder.label}",
                where=where,
                cause="policy.bank.encoder, layer or scale was changed, or the encoder's files were",
                remedy="set what trained the keys (an older bank has scale: none), or begin a new store",
            )

    def check_groups(self, groups: int, where: str) -> None:
        """Refuse keys that are compared in another number of groups.

        Raises:
            SnapshotError: the bank must not be used here.
        """
        if self.groups != groups:
            raise SnapshotError(
                f"the bank's keys have {self.groups} groups, and policy.bank.groups is {groups}",
                where=where,
                remedy=f"set policy.bank.groups to {self.groups}, or begin a new store",
            )

    def write(self, folder: Path) -> None:
        """Write the bank into a folder, with copies of its adapters' files."""
        entries = []
        for adapter in self.adapters:
            target = folder / ADAPTERS / adapter.name
            target.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                if adapter.folder != target:
                    copy_contained(adapter.folder / name, target / name)
            files = {name: digest_of((target / name).resolve())[1] for name in FILES}
            entries.append(
                {"name": adapter.name, "keys": adapter.keys_GPC.shape[1], "files": files}
            )
        content = {
            "version": VERSION,
            "base": self.base,
            "encoder": asdict(self.encoder),
            "groups": self.groups,
            "top_k": self.top_k,
            "adapters": entries,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BANK).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def is_bank(folder: Path) -> bool:
    """Tell if a folder holds a bank."""
    return (folder / BANK).is_file()


def write_keys(folder: Path, keys_GPC: Tensor) -> None:
    """Write the keys of one adapter beside its weights."""
    from safetensors.torch import save_file

    save_file({"keys": keys_GPC.contiguous()}, folder / KEYS)


def read_bank(folder: Path) -> Bank:
    """Read a bank; every file of an adapter is verified by its hash.

    Raises:
        SnapshotError: it is no bank, its keys are missing or of another shape, or a file was changed.
    """
    path = folder / BANK
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        version = int(content["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"this is no bank ({error!r})",
            where=str(path),
            remedy="name a folder that a campaign with policy.bank published",
        ) from error
    if version > VERSION:
        raise SnapshotError(
            f"version {version} of the bank is newer than {VERSION}",
            where=str(path),
            cause="a newer Keel wrote it",
            remedy="update Keel",
        )
    try:
        bank = Bank(
            base=str(content["base"]),
            encoder=EncoderIdentity(**content["encoder"]),
            groups=int(content["groups"]),
            top_k=int(content["top_k"]),
        )
        entries: Sequence[Mapping[str, Any]] = content["adapters"]
        adapters = tuple(_read_adapter(folder, bank, entry) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(
            f"the bank lacks something or has a wrong value ({error!r})",
            where=str(path),
            cause="someone edited the file",
            remedy="restore it from a backup; nothing was loaded",
        ) from error
    return replace(bank, adapters=adapters)


def _read_adapter(folder: Path, bank: Bank, entry: Mapping[str, Any]) -> KeyedAdapter:
    from safetensors.torch import load_file

    name, count = str(entry["name"]), int(entry["keys"])
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} is no name of a round")
    adapter_folder = folder / ADAPTERS / name
    for file in FILES:
        path = adapter_folder / file
        if not path.is_file():
            what = "the keys of this adapter are missing" if file == KEYS else f"{file} is missing"
            raise SnapshotError(
                what,
                where=str(path),
                cause="the folder was copied in part, or it is an adapter that no bank trained",
                remedy="restore the folder from a backup: without keys nothing retrieves the adapter",
            )
        if digest_of(path.resolve())[1] != entry["files"][file]:
            raise SnapshotError(
                f"{file} has changed since the bank was written",
                where=str(path),
                remedy="restore it from a backup; nothing was loaded",
            )
    keys_GPC = load_file(adapter_folder / KEYS).get("keys")
    shape = (bank.groups, count, bank.encoder.width // bank.groups)
    if keys_GPC is None or tuple(keys_GPC.shape) != shape or not count:
        actual = "no tensor" if keys_GPC is None else tuple(keys_GPC.shape)
        raise SnapshotError(
            f"the keys are {actual}, and the bank's encoder, groups and keys ask for {shape}",
            where=str(adapter_folder / KEYS),
            cause="they were trained with another encoder or another number of groups",
            remedy="restore the file from a backup",
        )
    return KeyedAdapter(name=name, folder=adapter_folder, keys_GPC=keys_GPC)
