"""Text classification: topic, tone and purpose of the same short messages."""

from __future__ import annotations

from align.data.scenarios.questions import Question, world_of
from align.data.scenarios.world import Dice, World

CUES = {
    "topic": {
        "sports": "match goal coach league player team",
        "money": "bank stock market profit loan price",
        "science": "planet cell theory atom probe fossil",
        "travel": "hotel flight beach ticket island train",
    },
    "tone": {
        "good": "great lovely superb happy bright pleasant",
        "bad": "awful poor sad dreadful broken boring",
        "mixed": "fair average plain usual middling so-so",
    },
    "purpose": {
        "ask": "why how where whether which when",
        "order": "send deliver reserve buy pay book",
        "report": "saw heard found noticed read learnt",
    },
    "register": {
        "formal": "hereby sincerely regarding kindly whom",
        "casual": "hey gonna yeah dude cheers",
    },
}
"""Words that decide each class, by task; the base knows registers, and a round trains each other task."""


class Classification:
    """Family of three classifications; every message has cues to each."""

    tasks = ("topic", "tone", "purpose")
    general = ("register",)

    def draw(self, dice: Dice) -> Question:
        """Draw a message of eight words: two cues to each of its classes, in random order."""
        answers: dict[str, str] = {}
        words: list[str] = []
        for task, classes in CUES.items():
            answers[task] = dice.choose([*classes])
            words += dice.sample(classes[answers[task]].split(), 2)
        return Question(" ".join(dice.shuffled(words)), answers)


def world(seed: int) -> World:
    """Build the world of text classification."""
    return world_of(Classification(), seed)
