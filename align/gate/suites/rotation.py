"""Choice of the items of a pool that a round is measured on, where a share of a suite rotates.

A suite has places. The first ``1 - share`` of them keep their item for the whole campaign; each of the
others has a queue of its own, and every round a share ``1 - bridge`` of them moves on to its next item,
in turn. So two rounds that follow each other have all fixed places and a ``bridge`` of the
rotating ones in common, and an item only ever stands in its own place: it is sampled with the same seed
whenever it comes up. What a round holds follows from the seed and the round's index alone.

A verdict stays paired: candidate, parent, best and start are all measured on the round's own items, of
which those that came up before are taken from what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from rollouts.errors import UserError
from rollouts.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """A pool of distinct prompts and how rounds go through it."""

    pool: tuple[Prompt, ...]
    num_items: int
    """Places: items of every round."""
    share: float
    """Share of the places whose items change at all."""
    bridge: float
    """Share of those that keeps its item from one round to the next."""

    @property
    def num_rotating(self) -> int:
        """Number of places whose items change at all; at least one."""
        return max(1, round(self.share * self.num_items))

    @property
    def num_renewed(self) -> int:
        """Places with another item than in the round before; at least one."""
        return max(1, round((1.0 - self.bridge) * self.num_rotating))

    def items(self, index: int) -> tuple[Prompt, ...]:
        """Return the items of the round with this index, place by place.

        A place that is through with its queue begins again.
        """
        num_fixed, num_places = self.num_items - self.num_rotating, self.num_rotating
        moves, rest = index * self.num_renewed, self.pool[num_fixed:]
        rotating = []
        for position in range(num_places):
            queue = rest[position::num_places]
            done = max(0, math.ceil((moves - position) / num_places))
            rotating.append(queue[done % len(queue)])
        return (*self.pool[:num_fixed], *rotating)


def rotation_of(
    prompts: Iterable[Prompt], num_items: int, share: float, bridge: float, seed: str
) -> Rotation:
    """Return a rotation through these prompts in an order that the seed alone decides."""

    def rank(prompt: Prompt) -> bytes:
        return sha256(f"{seed}/{prompt.id}".encode()).digest()

    pool = tuple(sorted(prompts, key=rank))
    return Rotation(pool=pool, num_items=num_items, share=share, bridge=bridge)


def prompts_wanted(num_items: int, share: float, bridge: float, rounds: int) -> int:
    """Count the distinct prompts with which no item comes up again after it was left."""
    sizes = Rotation(pool=(), num_items=num_items, share=share, bridge=bridge)
    return num_items + max(sizes.num_rotating, sizes.num_renewed * (rounds - 1))


def check_pool(rotation: Rotation, suite: str, where: str) -> None:
    """Check that there is anything to rotate through.

    Raises:
        UserError: the pool cannot renew its places even once.
    """
    least = rotation.num_items + rotation.num_rotating
    if len(rotation.pool) < least:
        raise UserError(
            f"suite {suite!r} rotates {rotation.num_rotating} of its {rotation.num_items} items and has "
            f"{len(rotation.pool)} prompts, at least {least} are needed",
            where=where,
            remedy="give it more prompts, lower items, or lower rotate.share",
        )
