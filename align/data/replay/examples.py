"""Examples of accepted rounds' files, which later rounds learn from again beside their own.

A replayed pair, rating, demonstration or text teaches by the later round's own loss, and KL terms of past
prompts hold it to the snapshot that owns it. Only training rows are kept, as token ids, so nothing of a
held-out part is ever replayed and the file itself is needed no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.algorithms.base import Material
from align.algorithms.rows import Row, spans_of
from align.data.examples.stream import Unit
from align.data.json_lines import Record, load_lines, save_lines
from align.data.replay.dealing import chosen_evenly
from rollouts.types import Prompt, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

SCHEMA_VERSION = 2
"""Version of the file's format: 2 has episodes. A file without any is written as version 1."""

USABLE: Mapping[Material, Sequence[Material]] = {
    "pairs": ("pairs",),
    "ratings": ("ratings", "pairs"),
    "demonstrations": ("demonstrations", "texts"),
    "texts": ("texts", "demonstrations"),
}
"""Kinds of earlier examples that teach by the loss of a round with this material. A pair is two ratings;
demonstrations and texts are both tokens to repeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnedExamples:
    """Training examples kept of one accepted round."""

    round: str
    owner: SnapshotId
    """Accepted snapshot that has learnt them."""
    material: Material
    units: tuple[Unit, ...]

    @classmethod
    def chosen(
        cls, spec: RoundConfig, units: Sequence[Unit], owner: SnapshotId, seed: int
    ) -> OwnedExamples:
        """Keep at most ``replay.buffer`` distinct units of a round, chosen evenly by the seed."""
        distinct = list({unit.id: unit for unit in units}.values())
        return cls(
            round=spec.name,
            owner=owner,
            material=spec.algorithm.material,
            units=tuple(chosen_evenly(distinct, spec.replay.buffer, f"{seed}/{spec.name}")),
        )

    def without(
        self, names: AbstractSet[str], units: AbstractSet[str] = frozenset()
    ) -> OwnedExamples:
        """Return the examples whose prompt, and whose documents, are none of these.

        Args:
            units: ids of further examples to leave out.
        """
        remaining = tuple(
            unit for unit in self.units if unit.id not in units and not names_of(unit) & names
        )
        return replace(self, units=remaining)

    def units_for(self, material: Material) -> list[Unit]:
        """Return the units for a round with this material, marked as its past; none if they do not fit."""
        if self.material not in USABLE.get(material, ()):
            return []
        units = self.units
        if self.material == "pairs" and material == "ratings":
            units = tuple(
                replace(unit, id=f"{unit.id}/{side}", rows=(row,))
                for unit in units
                for side, row in enumerate(unit.rows)
            )
        return [self._past(unit) for unit in units]

    @property
    def _has_episodes(self) -> bool:
        return any(row.observed for unit in self.units for row in unit.rows)

    def _past(self, unit: Unit) -> Unit:
        rows = (
            replace(row, source="past", owner=self.owner, round=self.round) for row in unit.rows
        )
        return replace(unit, rows=tuple(rows))

    def save(self, path: Path) -> None:
        """Write JSON lines atomically: a line on the round, then one unit on each line."""
        head = {
            "schema_version": SCHEMA_VERSION if self._has_episodes else 1,
            "round": self.round,
            "owner": self.owner,
            "material": self.material,
        }
        save_lines(path, head, map(_line, self.units))

    @classmethod
    def load(cls, path: Path) -> OwnedExamples:
        """Read what `save` wrote.

        Raises:
            StoreError: a line is damaged, or a newer Keel wrote the file; ``where`` names the line.
        """

        def read(lines: Iterator[Record]) -> OwnedExamples:
            head = next(lines)
            return cls(
                round=head["round"],
                owner=head["owner"],
                material=head["material"],
                units=tuple(map(_unit, lines)),
            )

        return load_lines(path, read, newest=SCHEMA_VERSION, what="replayed example")


def names_of(unit: Unit) -> frozenset[str]:
    """Return the names that a unit can be held out or removed under: its prompt's, or its documents'."""
    if unit.prompt is not None:
        return frozenset((unit.prompt.id,))
    return frozenset((unit.id, *unit.documents))


def names_in(pools: Iterable[Sequence[Unit]]) -> frozenset[str]:
    """Return the names of all units of several pools."""
    return frozenset(name for units in pools for unit in units for name in names_of(unit))


def _line(unit: Unit) -> dict[str, Any]:
    """Return a unit as a line of the file."""
    return {
        "id": unit.id,
        "prompt": None if unit.prompt is None else unit.prompt.id,
        "location": unit.location,
        "documents": unit.documents,
        "rows": [
            {
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
                "advantage": row.advantage,
                "margin": row.margin,
                **({"observed": row.observed} if row.observed else {}),
            }
            for row in unit.rows
        ],
    }


def _unit(data: Mapping[str, Any]) -> Unit:
    prompt = data["prompt"]
    return Unit(
        id=data["id"],
        prompt=None if prompt is None else Prompt(id=prompt, text=""),
        rows=tuple(
            Row(
                prompt_ids=tuple(row["prompt_ids"]),
                completion_ids=tuple(row["completion_ids"]),
                observed=spans_of(row.get("observed", ())),
                advantage=row["advantage"],
                margin=row["margin"],
                source="past",
            )
            for row in data["rows"]
        ),
        location=data["location"],
        documents=tuple(data["documents"]),
    )
