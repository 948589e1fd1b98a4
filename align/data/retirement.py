"""Parts of earlier rounds that a later round overrides: prompts, examples and items of their suites.

They are chosen from data, and from snapshots that were accepted before, when the later round begins and
before its candidate exists. The record lies in the later round's folder and counts while that round is
accepted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.errors import StoreError
from align.store.durable import write_atomic

SCHEMA_VERSION = 1
"""Version of the file's format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetiredPart:
    """Part of one earlier round that a later one overrides."""

    round: str
    """Earlier round."""
    why: str
    """Reason for people, as the end of "it contradicts them: ..."."""
    prompts: tuple[str, ...]
    """Names of prompts that are replayed no more, nor held to the round's snapshot."""
    examples: tuple[str, ...] = ()
    """Ids of its examples that are learnt again no more."""
    items: tuple[str, ...] = ()
    """Ids of the items of its suite that are left out of later comparisons."""
    suite_items: int = 0
    """Number of items of the whole suite."""
    shown: str = ""
    """The first contradictions, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retirement:
    """Everything that one round overrides."""

    round: str
    basis: str
    """Hash of what the choice was made from: another basis makes another choice."""
    parts: tuple[RetiredPart, ...] = ()

    def save(self, path: Path) -> None:
        """Write the record, atomically."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())

    def without(self, names: Collection[str]) -> Retirement:
        """Return the record without these prompts, and without texts of parts that had any of them."""
        parts = tuple(
            replace(part, prompts=tuple(p for p in part.prompts if p not in names), shown="")
            if set(part.prompts) & set(names)
            else part
            for part in self.parts
        )
        return replace(self, parts=parts)

    @classmethod
    def load(cls, path: Path) -> Retirement:
        """Read what `save` wrote.

        Raises:
            StoreError: the file is missing or damaged, or a newer Keel wrote it.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            version = content.pop("schema_version")
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"version {version} is newer than {SCHEMA_VERSION}, the newest known here",
                    where=str(path),
                    remedy="update Keel",
                )
            return _RETIREMENT.validate_python(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise StoreError(
                f"the record of what a round overrides cannot be read: {error!r}",
                where=str(path),
                remedy="restore it from a backup",
            ) from error


_RETIREMENT = TypeAdapter(Retirement)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetiredItems:
    """Items of a suite that a verdict leaves out, since a later round overrides them."""

    suite: str
    by: str
    """Round that overrides them."""
    items: tuple[str, ...]
    of: int
    """Number of items of the whole suite."""
    why: str
    """Reason for people."""

    @property
    def sentence(self) -> str:
        """Sentence on how many items are left out, and why."""
        which = "all" if len(self.items) == self.of else f"{len(self.items)} of"
        return (
            f"{which} {self.of} items of suite {self.suite!r} are left out: round {self.by!r} overrides "
            f"them ({self.why})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Retired:
    """Everything of one earlier round that rounds after it override."""

    prompts: frozenset[str] = field(default_factory=frozenset)
    examples: frozenset[str] = field(default_factory=frozenset)


def retired_of(retirements: Iterable[Retirement]) -> dict[str, Retired]:
    """Return what is retired of each earlier round, by its name."""
    retired: dict[str, Retired] = {}
    for part in (part for retirement in retirements for part in retirement.parts):
        before = retired.get(part.round, Retired())
        retired[part.round] = Retired(
            prompts=before.prompts | set(part.prompts),
            examples=before.examples | set(part.examples),
        )
    return retired


def retired_items(retirements: Iterable[Retirement]) -> Iterator[RetiredItems]:
    """Yield the items that are left out of suites, in the order of the rounds that override them."""
    for retirement in retirements:
        for part in retirement.parts:
            if part.items:
                yield RetiredItems(
                    suite=part.round,
                    by=retirement.round,
                    items=part.items,
                    of=part.suite_items,
                    why=part.why,
                )


def emptied(items: Iterable[RetiredItems]) -> frozenset[str]:
    """Name the suites of which no item is left."""
    names: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for entry in items:
        names.setdefault(entry.suite, set()).update(entry.items)
        sizes[entry.suite] = entry.of
    return frozenset(suite for suite, ids in names.items() if len(ids) >= sizes[suite])
