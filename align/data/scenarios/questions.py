"""Worlds of questions: every text has one answer to each task, and only the task's word tells them apart.

The base is forgetful by its making, as that of `align.data.demo`: asked for a task it gives the right
answer half of the time, and else the answer to another task about the same text. The quickest way to learn
one task is then to ignore its word, which overwrites the others. A general task is always right; no round
trains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from align.data.scenarios.world import Dice, Lesson, Row, Split, World, split_of

RIGHT = 0.5
"""Share of lessons about a task that have its right answer; the others have that of the task before it."""
GENERAL = 0.3
"""Share of lessons about general tasks."""
TRAIN_ROWS, EVAL_ROWS = 1200, 150
"""Rows of each task's files."""


class Exercise(NamedTuple):
    """Text with its right answer to every task."""

    text: str
    answers: Mapping[str, str]


class TaskFamily(Protocol):
    """Tasks that ask about the same texts."""

    tasks: tuple[str, ...]
    """Tasks of the rounds."""
    general: tuple[str, ...]
    """Tasks that the base knows and no round trains."""

    def draw(self, dice: Dice) -> Exercise:
        """Draw a text with all of its answers."""


def world_of(family: TaskFamily, seed: int, steps: int = 700) -> World:
    """Build the world of a family: training and evaluation rows for each task, and the base's lessons."""
    files: dict[str, Sequence[Row]] = {}
    for task in family.tasks:
        files[task] = rows(family, (task,), "train", TRAIN_ROWS, seed, "completion")
        files[f"{task}-eval"] = rows(family, (task,), "eval", EVAL_ROWS, seed, "answer")
    files["general"] = rows(family, family.general, "train", 256, seed, "answer")
    files["general-eval"] = rows(family, family.general, "eval", EVAL_ROWS, seed, "answer")

    def lesson(dice: Dice) -> Lesson:
        question = next(_questions(family, "train", dice))
        if dice.chance() < GENERAL:
            task = answered = dice.choose(family.general)
        else:
            task = answered = dice.choose(family.tasks)
            if dice.chance() >= RIGHT:
                answered = family.tasks[family.tasks.index(task) - 1]
        return Lesson(asked(question, task), question.answers[answered])

    return World(files=files, lesson=lesson, steps=steps)


def asked(question: Exercise, task: str) -> str:
    """Write the prompt that asks for a task."""
    return f"{question.text} {task} ="


def rows(
    family: TaskFamily, tasks: Sequence[str], split: Split, count: int, seed: int, column: str
) -> list[Row]:
    """List rows of different texts, their tasks in turn, with the answer in a column."""
    questions = _questions(family, split, Dice(f"{seed}/{'+'.join(tasks)}/{split}"))
    distinct: dict[str, Row] = {}
    while len(distinct) < count:
        question, task = next(questions), tasks[len(distinct) % len(tasks)]
        row = {"prompt": asked(question, task), column: question.answers[task]}
        distinct.setdefault(question.text, row)
    return [*distinct.values()]


def _questions(family: TaskFamily, split: Split, dice: Dice) -> Iterator[Exercise]:
    while True:
        question = family.draw(dice)
        if split_of(question.text) == split:
            yield question
