"""Whether the rows of a suite's file can be its items; names the first lines that cannot."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from pathlib import Path

from align.config import PromptsConfig
from rollouts.errors import UserError
from rollouts.prompts import content_id
from rollouts.rows import read_rows

SHOWN = 3
"""Lines that an error names."""


def check_rows(prompts: PromptsConfig, needed: Collection[str], suite: str, where: str) -> None:
    """Look at a file's rows once more, where their places are still known; other sources have none.

    Args:
        needed: columns that the metric takes.

    Raises:
        UserError: rows without such a column, or rows with the same prompt: an item counts once.
    """
    if not Path(prompts.source).is_file():
        return
    first: dict[str, str] = {}
    again: list[str] = []
    bare: dict[str, list[str]] = {}
    for row in islice(read_rows(prompts.source, prompts.split), prompts.limit):
        for column in needed:
            if column not in row.values:
                bare.setdefault(column, []).append(row.place)
        found = content_id(row.values.get(prompts.column, ""))
        if found in first:
            again.append(f"{row.place} is {first[found]}")
        first.setdefault(found, row.place)
    for column, places in bare.items():
        raise UserError(
            f"the metric of suite {suite!r} needs the column {column!r}, which {len(places)} rows do not "
            f"have: {_some(places)}",
            where=where,
            remedy="add the column to the file, or choose another metric",
        )
    if again:
        raise UserError(
            f"suite {suite!r} has {len(again)} items twice: {_some(again)}",
            where=where,
            cause="an item that counts twice pretends to be more evidence",
            remedy="remove the repeated rows",
        )


def _some(places: list[str]) -> str:
    return ", ".join(places[:SHOWN]) + (", ..." if len(places) > SHOWN else "")
