"""Reservoir draw: one sample of a fixed size over the prompts of all earlier rounds.

Algorithm R of Vitter 1985 (Random Sampling with a Reservoir, ACM TOMS 11) over the stream of stored
prompts, round after round. The prompt at position ``t``, counted from 0, fills the reservoir while
``t < size``; later it replaces the prompt in slot ``j``, uniform in ``0..t``, if ``j < size``. So every
stored prompt is in the reservoir with the same chance, whatever its round, and a new round takes its place
from all older ones alike. A round with many stored prompts has a larger part than one with few; the
balanced draw gives both the same.

Riemer et al. 2019, arXiv 1810.11910, replay a reservoir in continual learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from align.config.replay.draws import ReservoirConfig
from align.data.replay.draws.base import WeightedDraw, uniform
from align.data.replay.history import Sight
from rollouts.types import Prompt


class ReservoirDraw(WeightedDraw[ReservoirConfig]):
    """Draw evenly from one reservoir over all earlier rounds."""

    def pool(self) -> list[Prompt]:
        return reservoir(super().pool(), self.config.size)

    def weights(
        self, pool: Sequence[Prompt], sights: Mapping[str, Sight], now: int
    ) -> dict[str, float]:
        return {prompt.id: 1.0 for prompt in pool}


def reservoir(stream: Iterable[Prompt], size: int) -> list[Prompt]:
    """Return the reservoir after a stream of prompts, by slot.

    The slot of a prompt depends on its id and its position, not on the round that replays: prompts that a
    later round adds at the end replace some, and move none of the others.
    """
    slots: list[Prompt] = []
    for position, prompt in enumerate(stream):
        if position < size:
            slots.append(prompt)
            continue
        slot = int(uniform(f"reservoir/{prompt.round}/{prompt.id}") * (position + 1))
        if slot < size:
            slots[slot] = prompt
    return slots
