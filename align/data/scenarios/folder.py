"""Folder of a scenario's world: its files and its base model, written once for each state of the code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from align.data import word_models
from align.data.scenarios import SCENARIOS
from align.data.scenarios.world import Dice, World
from rollouts.errors import UserError, nearest

RECORD = "world.json"
"""File that is written last, with the digest of what the world was made by."""


def write(
    name: str,
    folder: Path,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    steps: int | None = None,
    data: Path | None = None,
) -> Path:
    """Write a scenario's world below a folder unless it lies there already; return the world's folder.

    Args:
        folder: parent of the worlds; this one's folder has the scenario's name.
        note: told before the base is trained.
        steps: batches that the base is trained for; None: as many as it takes.
        data: folder of real data, which scenarios that know it take in place of generated rows.

    Raises:
        UserError: there is no such scenario.
    """
    if name not in SCENARIOS:
        raise UserError(
            f"there is no scenario {name!r}", where="scenario", remedy=nearest(name, [*SCENARIOS])
        )
    home, world = folder / name, SCENARIOS[name].world(seed, data)
    if steps is not None:
        world = replace(world, steps=steps)
    record = {"seed": seed, "steps": world.steps, "digest": digest(name, seed, data)}
    if _is_written(home / RECORD, record):
        return home
    note(f"{name}: writing {home} and training its base")
    shutil.rmtree(home, ignore_errors=True)
    write_files(world, home)
    from align.data.scenarios.base import build

    loss = build(world, home / "base", seed)
    note(f"{name}: the base's loss is {loss:.3f} nats per token")
    (home / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
    return home


def write_files(world: World, folder: Path) -> None:
    """Write a world's rows as JSON Lines, and its texts with a blank line between documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in world.files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name, documents in world.texts.items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")


@cache
def digest(name: str, seed: int = 0, data: Path | None = None) -> str:
    """Return the sha256 of all that a world and its base follow from, by which those of older code are
    told: its rows and texts, its first lessons, and how the base is trained."""
    world = SCENARIOS[name].world(seed, data)
    dice = Dice("digest")
    lessons = [world.lesson(dice) for _ in range(200)]
    content = json.dumps(
        [dict(world.files), dict(world.texts), lessons, world.template, world.steps]
    )
    files = (Path(__file__).parent / "base.py", Path(word_models.__file__))
    code = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content.encode() + code).hexdigest()


def _is_written(path: Path, record: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == record)
    except (OSError, ValueError):
        return False
