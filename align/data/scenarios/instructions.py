"""Instruction tuning: what to do with a short list of words, said in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.data.scenarios.questions import Exercise, world_of
from align.data.scenarios.world import Dice, World, words

WORDS = words("apple brick cloud drum eagle flute grape hill iron jar kite lamp")
INSTRUCTIONS: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "reverse": lambda words: words[::-1],
    "sort": sorted,
    "rotate": lambda words: [*words[1:], words[0]],
    "repeat": lambda words: words,
}
"""Answer to each instruction; the base knows how to repeat, and a round trains each of the others."""


class Instructions:
    """Family of instructions on the same lists."""

    tasks: tuple[str, ...] = ("reverse", "sort", "rotate")
    general: tuple[str, ...] = ("repeat",)

    def draw(self, dice: Dice) -> Exercise:
        """Draw four different words with the answer to every instruction."""
        words = dice.sample(WORDS, 4)
        answers = {name: " ".join(follow(words)) for name, follow in INSTRUCTIONS.items()}
        return Exercise(" ".join(words), answers)


def world(seed: int) -> World:
    """Build the world of instruction tuning."""
    return world_of(Instructions(), seed, steps=900)
