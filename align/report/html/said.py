"""What the policy said while it learnt: completions of the first and the last step that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.report.html.limits import Limits, cut
from align.round.rollout_table import Record, load_records
from align.store.run_folder import RoundFolder
from rollouts.errors import KeelError

NAME = 120
"""Bytes of a part's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One completion and what it was worth."""

    prompt: str | None
    completion: str | None
    value: float
    parts: tuple[tuple[str, float], ...]
    """Raw rewards by part; empty where the only part is the whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaidAt:
    """Completions of one learner step, the best first, evenly down to the worst."""

    step: int
    """Counted from 1."""
    said: tuple[Said, ...]


def said_of(folder: RoundFolder, limits: Limits) -> tuple[SaidAt, ...]:
    """Read completions of the round's last attempt with tables; damaged tables are left out."""
    for attempt in reversed(folder.attempts()) if limits.samples else ():
        if tables := attempt.tables():
            ends = dict.fromkeys((min(tables), max(tables)))
            return tuple(_of_steps({step: tables[step] for step in ends}, limits))
    return ()


def _of_steps(tables: Mapping[int, Path], limits: Limits) -> Iterator[SaidAt]:
    for step, path in tables.items():
        try:
            records = [r for r in load_records(path) if r["source"] == "new"]
        except (KeelError, KeyError):
            continue
        scored = sorted((r for r in records if r["value"] is not None), key=lambda r: -r["value"])
        if scored:
            said = tuple(_said(record, limits.text) for record in spread(scored, limits.samples))
            yield SaidAt(step=step + 1, said=said)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """The first, the last, and others evenly between; of one only the middle.

    >>> spread([{"n": n} for n in range(5)], 3)
    [{'n': 0}, {'n': 2}, {'n': 4}]
    """
    last = len(records) - 1
    if count == 1:
        return [records[last // 2]]
    places = dict.fromkeys(round(last * i / (count - 1)) for i in range(count))
    return [records[place] for place in places]


def _said(record: Record, text: int) -> Said:
    names = [name for name in record if name.startswith("reward/")]
    parts = [
        (cut(name.partition("/")[2], NAME) or "", record[name])
        for name in names
        if record[name] is not None
    ]
    return Said(
        prompt=cut(record["prompt"], text),
        completion=cut(record["completion"], text),
        value=record["value"],
        parts=tuple(parts) if len(names) > 1 else (),
    )
