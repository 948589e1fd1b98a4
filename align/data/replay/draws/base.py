"""Base of the draws, and draws by weight without replacement.

A draw is a function of the seed, the step and the recorded history alone, so a resumed round gets the
same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Generic, TypeVar

from align.config.replay.draws import DrawConfig
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.dealing import ROUNDS_PER_STEP, whole
from align.data.replay.history import Sight
from rollouts.types import Prompt

Config = TypeVar("Config", bound=DrawConfig)


class ReplayDraw(Generic[Config]):
    """Choice of the earlier rounds' prompts that the steps of one round replay.

    Args:
        config: the round's settings of the draw.
        buffer: prompts that may be replayed, by round.
        seed: seed of the round.
    """

    def __init__(self, config: Config, buffer: ReplayBuffer, seed: int) -> None:
        self.config, self.buffer, self.seed = config, buffer, seed

    def take(self, rate: float, step: int, sights: Mapping[str, Sight], now: int) -> list[Prompt]:
        """Return the prompts of a step, distinct by id; fewer than asked for if there are no more.

        Args:
            rate: prompts of a step in the mean; fractions carry over from step to step.
            step: number of the step in the round, from 0.
            sights: history of the prompts before the step, by prompt id.
            now: learner steps of all accepted rounds and of this one before the step.
        """
        raise NotImplementedError


class WeightedDraw(ReplayDraw[Config]):
    """Draw in which a prompt comes up in proportion to a weight; a subclass says which."""

    def take(self, rate: float, step: int, sights: Mapping[str, Sight], now: int) -> list[Prompt]:
        count = whole(rate, step)
        pool = self.pool()
        weights = floored(self.weights(pool, sights, now), self.floor)
        key = f"{self.seed}/{step}"
        totals: dict[str, float] = {}
        for prompt in pool:
            totals[str(prompt.round)] = totals.get(str(prompt.round), 0.0) + weights[prompt.id]
        rounds = set(heaviest(key, totals, ROUNDS_PER_STEP))
        among = {p.id: p for p in pool if str(p.round) in rounds}
        chosen = heaviest(key, {name: weights[name] for name in among}, count)
        return [among[name] for name in chosen]

    @property
    def floor(self) -> float:
        """Share of the draw that is uniform whatever the weights are, from 0 to 1."""
        return 0.0

    def pool(self) -> list[Prompt]:
        """Return the prompts to draw from, distinct by id."""
        stored = (prompt for prompts in self.buffer.entries.values() for prompt in prompts)
        return list({prompt.id: prompt for prompt in stored}.values())

    def weights(
        self, pool: Sequence[Prompt], sights: Mapping[str, Sight], now: int
    ) -> dict[str, float]:
        """Return a weight of at least 0 for every prompt, by id."""
        raise NotImplementedError


def floored(weights: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return weights that add up to 1, a share ``floor`` of which is spread evenly.

    >>> floored({"a": 3.0, "b": 0.0}, 0.5)
    {'a': 0.75, 'b': 0.25}
    """
    total = sum(weights.values())
    even = 1.0 / max(len(weights), 1)
    if not total > 0:
        return dict.fromkeys(weights, even)
    return {name: floor * even + (1.0 - floor) * w / total for name, w in weights.items()}


def heaviest(key: str, weights: Mapping[str, float], count: int) -> list[str]:
    """Draw ``count`` names by weight without replacement; all of them if there are no more.

    Each name gets ``log(u) / weight`` with a uniform ``u`` that depends on the key and the name alone, and
    the largest are taken (Efraimidis and Spirakis 2006). Names of weight 0 come last.
    """

    def rank(name: str) -> tuple[float, str]:
        weight = weights[name]
        return (log(uniform(f"{key}/{name}")) / weight if weight > 0 else float("-inf"), name)

    return sorted(weights, key=rank, reverse=True)[:count]


def uniform(key: str) -> float:
    """Return a number above 0 and below 1 that depends on the key alone.

    >>> round(uniform("0/a"), 3) == round(uniform("0/a"), 3)
    True
    """
    digest = hashlib.sha256(key.encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2.0**48


def by_round(pool: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Group prompts by their round, in order of first appearance."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in pool:
        groups.setdefault(str(prompt.round), []).append(prompt)
    return groups
