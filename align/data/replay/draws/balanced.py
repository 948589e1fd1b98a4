"""Balanced draw: every earlier round gets the same share, and each of its prompts comes up in turn."""

from __future__ import annotations

from collections.abc import Mapping

from align.config.replay.draws import BalancedConfig
from align.data.replay.dealing import (
    ROUNDS_PER_STEP,
    dealt,
    in_turn,
    run_of,
    total_before,
    whole,
)
from align.data.replay.draws.base import ReplayDraw
from align.data.replay.history import Sight
from rollouts.types import Prompt


class BalancedDraw(ReplayDraw[BalancedConfig]):
    """Draw in turn from each round, without replacement until all prompts of the round came up."""

    def take(self, rate: float, step: int, sights: Mapping[str, Sight], now: int) -> list[Prompt]:
        rounds = tuple(self.buffer.entries)
        first = total_before(rate, step)
        if len(rounds) <= ROUNDS_PER_STEP:
            return self.buffer.draw(whole(rate, step), seed=self.seed, step=step, first=first)
        drawn: dict[str, Prompt] = {}
        run = run_of(rate)
        for name, count in in_turn(rounds, rate, step).items():
            start = dealt(first, rounds.index(name), len(rounds), run)
            prompts = self.buffer.draw(count, seed=self.seed, step=step, rounds=[name], first=start)
            for prompt in prompts:
                drawn.setdefault(prompt.id, prompt)
        return list(drawn.values())
