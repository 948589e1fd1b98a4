"""Check of the rows of a suite's file as its items; names the first lines that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path

from align.config.campaign import PromptsConfig
from rollouts.errors import UserError
from rollouts.rows import read_rows
from rollouts.values import to_json

SHOWN = 3
"""Lines that an error names."""


def check_rows(
    prompts: PromptsConfig,
    needed: Collection[str],
    suite: str,
    where: str,
    reads: Callable[[str], bool] = lambda column: False,
) -> None:
    """Look at a file's rows once more, where their places are still known; other sources have none.

    Args:
        needed: columns that the metric takes.
        reads: tells if the metric takes a column, needed or not.

    Raises:
        UserError: rows without such a column, or rows that the metric cannot tell apart: an item counts
            once.
    """
    if not Path(prompts.source).is_file():
        return
    first: dict[str, str] = {}
    again: list[str] = []
    bare: dict[str, list[str]] = {}
    for row in islice(read_rows(prompts.source, prompts.split), prompts.limit):
        for column in needed:
            if column not in row.values:
                bare.setdefault(column, []).append(row.location)
        read_values = {n: v for n, v in row.values.items() if n == prompts.column or reads(n)}
        item = json.dumps(to_json(read_values), sort_keys=True, default=str)
        if item in first:
            again.append(f"{row.location} is {first[item]}")
        first.setdefault(item, row.location)
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
