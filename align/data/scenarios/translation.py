"""Machine translation of one toy language into three, which differ in their words and their word order."""

from __future__ import annotations

from align.data.scenarios.questions import Exercise, world_of
from align.data.scenarios.world import Dice, World, words

NOUNS = words("cat dog bird king child horse tree river")
ADJECTIVES = words("red old small quick calm")
VERBS = words("sees likes finds calls holds")
WORDS = [*NOUNS, *ADJECTIVES, *VERBS]

ENDINGS = {"norsk": "ur", "latino": "o", "nihon": "ka"}
"""Ending that makes a language's word of ours."""


class Translation:
    """Family of target languages; the base repeats a sentence without fault."""

    tasks: tuple[str, ...] = tuple(ENDINGS)
    general: tuple[str, ...] = ("echo",)

    def draw(self, dice: Dice) -> Exercise:
        """Draw a sentence of five words with its translations."""
        subject, other = dice.sample(NOUNS, 2)
        first, second = dice.sample(ADJECTIVES, 2)
        verb = dice.choose(VERBS)
        orders = {
            "norsk": [first, subject, second, other, verb],
            "latino": [subject, first, verb, other, second],
            "nihon": [second, other, first, subject, verb],
        }
        answers = {
            language: " ".join(word + ENDINGS[language] for word in order)
            for language, order in orders.items()
        }
        text = f"{first} {subject} {verb} {second} {other}"
        return Exercise(text, answers | {"echo": text})


def world(seed: int) -> World:
    """Build the world of machine translation."""
    return world_of(Translation(), seed, steps=900)
