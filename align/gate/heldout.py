"""Which examples a round never learns from: decided by their prompts alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from align.examples.stream import Unit


def hold_out(units: Iterable[Unit], share: float) -> tuple[list[Unit], list[Unit]]:
    """Units to learn from and units to measure on, both in the given order.

    All units of one prompt go to the same side, or answers to a prompt that was trained on would be
    measured. Where a unit goes follows from a hash: not from its place, nor from what else there is.

    Args:
        share: of the prompts, to be held out; about so many, since each is decided on its own.
    """
    sides: tuple[list[Unit], list[Unit]] = ([], [])
    for unit in units:
        sides[_draw(unit) < share].append(unit)
    return sides


def _draw(unit: Unit) -> float:
    """Uniform in [0, 1)."""
    name = unit.id if unit.prompt is None else unit.prompt.id
    digest = hashlib.sha256(f"heldout/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
