"""Checkpoints that no attempt will go on from, on both sides of a store."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree

from align.store.mirror import Mirror


def forget_checkpoints(folder: Path, mirror: Mirror, index: int, round: str) -> None:
    """Remove the checkpoints of a round and of its repairs; metrics and rollouts stay.

    Args:
        folder: the store.
    """
    for path in (folder / "rounds").glob(f"{index:02d}-{round}/checkpoint*"):
        rmtree(path, ignore_errors=True)
        mirror.trim(path)
