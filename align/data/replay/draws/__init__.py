"""Draws that choose which prompts of earlier rounds a step replays; a new one is a file and a line here.

`align.config.replay.draws.DRAWS` names their settings.
"""

from __future__ import annotations

from typing import Any

from align.data.replay.draws.age import AgeDraw
from align.data.replay.draws.balanced import BalancedDraw
from align.data.replay.draws.base import ReplayDraw
from align.data.replay.draws.mastery import MasteryDraw
from align.data.replay.draws.reservoir import ReservoirDraw

DRAWS: dict[str, type[ReplayDraw[Any]]] = {
    "balanced": BalancedDraw,
    "reservoir": ReservoirDraw,
    "mastery": MasteryDraw,
    "age": AgeDraw,
}
"""Class of each draw by the name that a campaign file gives as ``replay.draw``."""
