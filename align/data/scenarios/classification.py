"""Text classification: topic, tone and rating of texts, generated or real.

Generated messages have cues to each class, so that all tasks ask about the same texts. Real ones are those
of O-LoRA's stream (Wang et al. 2023, arXiv 2310.14152), from a folder of JSON Lines: AG News for topics,
SST-2 for the tone, Amazon reviews for ratings.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from align.data.scenarios.questions import EVAL_ROWS, GENERAL, RIGHT, Exercise, world_of
from align.data.scenarios.world import Dice, Lesson, Row, World

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
    "rating": {
        "one": "broke refund leaks useless returned",
        "three": "works sometimes although except almost",
        "five": "perfect flawless favourite recommend durable",
    },
    "source": {
        "letter": "hereby sincerely regarding kindly whom",
        "chat": "hey gonna yeah dude cheers",
    },
}
"""Words that decide each class, by task; the base knows sources, and a round trains each other task."""


class Classification:
    """Family of three classifications; every message has cues to each."""

    tasks: tuple[str, ...] = ("topic", "tone", "rating")
    general: tuple[str, ...] = ("source",)

    def draw(self, dice: Dice) -> Exercise:
        """Draw a message of eight words: two cues to each of its classes, in random order."""
        answers: dict[str, str] = {}
        words: list[str] = []
        for task, classes in CUES.items():
            answers[task] = dice.choose([*classes])
            words += dice.sample(classes[answers[task]].split(), 2)
        return Exercise(" ".join(dice.shuffled(words)), answers)


def world(seed: int) -> World:
    """Build the world of text classification."""
    return world_of(Classification(), seed)


STREAM = {"topic": "agnews", "tone": "sst2", "rating": "amazon"}
"""Files of the real stream by task."""
SHORTEST, LONGEST = 3, 30
"""Words that a real text has at least, and that are kept of it."""
RUN = 8
"""Words that a text of a suite may not share in a row with a text of the same task's round."""
VOCABULARY = 3000
"""Different words that are kept of real texts: the most frequent."""
TOKEN = re.compile(r"[a-z]+|[!?]")
MARKUP = re.compile(r"Title:|Text:|&lt;.*?&gt;|<.*?>|&[#\w]+;")


def real(folder: Path, seed: int) -> World | None:
    """Build the world of real texts; None where a folder does not have the files.

    The base has read the training texts with the right label half of the time, and knows their sources.
    """
    paths = {
        (task, split): folder / "continual" / f"{file}_{split}.jsonl"
        for task, file in STREAM.items() for split in ("train", "test")
    }  # fmt: skip
    if not all(path.is_file() for path in paths.values()):
        return None
    return _real_world(tuple(paths.items()), seed)


@lru_cache(maxsize=2)
def _real_world(paths: tuple[tuple[tuple[str, str], Path], ...], seed: int) -> World:
    """Build the world from files; seconds of work that a run asks for more than once."""
    rows = {key: _texts(path) for key, path in paths}
    counts = Counter(word for part in rows.values() for text, _ in part for word in text)
    known = {word for word, _ in counts.most_common(VOCABULARY)}
    texts = {
        (task, split): [
            (" ".join(text[:LONGEST]), label)
            for words, label in Dice(f"{seed}/{task}/{split}").shuffled(part)
            if len(text := [word for word in words if word in known]) >= SHORTEST
        ]
        for (task, split), part in rows.items()
    }
    for task in STREAM:
        taught = {run for text, _ in texts[task, "train"] for run in _runs(text)}
        texts[task, "test"] = [t for t in texts[task, "test"] if taught.isdisjoint(_runs(t[0]))]
    labels = {task: sorted({label for _, label in texts[task, "train"]}) for task in STREAM}
    sources = [(text, STREAM[task]) for task in STREAM for text, _ in texts[task, "train"][-100:]]
    questions = [(text, STREAM[task]) for task in STREAM for text, _ in texts[task, "test"][-50:]]
    files: dict[str, Sequence[Row]] = {
        "general": _rows(sources, "source", "answer"),
        "general-eval": _rows(questions, "source", "answer"),
    }
    for task in STREAM:
        files[task] = _rows(texts[task, "train"][:-100], task, "completion")
        files[f"{task}-eval"] = _rows(texts[task, "test"][:EVAL_ROWS], task, "answer")

    def lesson(dice: Dice) -> Lesson:
        task = dice.choose([*STREAM])
        text, label = dice.choose(texts[task, "train"])
        if dice.chance() < GENERAL:
            return Lesson(f"{text} source =", STREAM[task])
        other = dice.choose([each for each in STREAM if each != task])
        answer = label if dice.chance() < RIGHT else dice.choose(labels[other])
        return Lesson(f"{text} {task} =", answer)

    return World(files=files, lesson=lesson, steps=400)


def _texts(path: Path) -> list[tuple[list[str], str]]:
    """Read texts as words in lower case, without the names of their parts, and labels as one word."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        (TOKEN.findall(MARKUP.sub(" ", row["text"]).lower()),
         row["label"].lower().replace(" ", "-"))
        for row in rows
    ]  # fmt: skip


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of words by which the gate tells a text that was trained on."""
    words = text.split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)} | {tuple(words)}


def _rows(pairs: Sequence[tuple[str, str]], task: str, column: str) -> list[Row]:
    """Return rows of different texts."""
    return [{"prompt": f"{text} {task} =", column: label} for text, label in dict(pairs).items()]
