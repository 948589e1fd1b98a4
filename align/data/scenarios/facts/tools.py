"""World of tools: a calculator, a register of offices and a converter of units, each taught in a round.

Every question names two numbers and a town, and its last word says what is asked of them. The base writes
calls in the Hermes form, but calls the right tool only half of the time; it reads what a tool answers, and
repeats a question without calling any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from align.data.scenarios.facts.temporal import HOLDERS, TOWNS
from align.data.scenarios.world import Dice, Lesson, Row, World, split_of

MAYORS = dict(zip(TOWNS, HOLDERS, strict=True))
FEET = 3.28
"""Feet of a metre."""


def calculator(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return str(a + b)


def register(town: str) -> str:
    """Look up who is the mayor of a town.

    Args:
        town: Name of the town.

    Returns:
        Name of the mayor.
    """
    return MAYORS[town]


def converter(metres: int) -> str:
    """Convert metres to whole feet.

    Args:
        metres: Length in metres.

    Returns:
        Length in feet.
    """
    return str(round(FEET * metres))


class ToolQuestion(NamedTuple):
    """Numbers and a town that every tool has something to say about."""

    a: int
    b: int
    town: str

    @property
    def text(self) -> str:
        """Words of the question before the last one."""
        return f"{self.a} {self.b} {self.town}"


TOOLS: Mapping[str, tuple[Callable[..., str], Callable[[ToolQuestion], dict[str, Any]]]] = {
    "sum": (calculator, lambda question: {"a": question.a, "b": question.b}),
    "mayor": (register, lambda question: {"town": question.town}),
    "feet": (converter, lambda question: {"metres": question.a}),
}
"""Tool that answers each task, and the arguments that it is called with."""
GENERAL = "echo"
RIGHT = 0.5
"""Share of lessons that call the right tool; the others call that of the task before it."""

TEMPLATE = (
    "{% if tools %}tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}. {% endif %}"
    "{% for turn in messages %}{% if turn.role == 'assistant' %}assistant "
    "{% for call in turn.tool_calls or [] %}<tool_call> {{ call.function | tojson }} </tool_call> "
    "{% endfor %}{% if turn.content %}{{ turn.content }} {% endif %}<eos> "
    "{% else %}{{ turn.role }} {{ turn.content }} . {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
"""Chat template of the base, with one space between words."""


def world(seed: int) -> World:
    """Build the world of tools."""
    questions = Dice(f"{seed}/questions").shuffled(
        ToolQuestion(a, b, town) for a in range(10) for b in range(10) for town in TOWNS
    )
    files: dict[str, Sequence[Row]] = {}
    for task in (*TOOLS, GENERAL):
        name = "general" if task == GENERAL else task
        for file, split, count in ((name, "train", 400), (f"{name}-eval", "eval", 80)):
            part = [question for question in questions if split_of(question.text) == split]
            files[file] = [_row(question, task) for question in part[:count]]
    return World(files=files, lesson=_lesson, template=TEMPLATE, steps=900)


def _row(question: ToolQuestion, task: str) -> Row:
    message = {"role": "user", "content": f"{question.text} {task}"}
    return {"prompt": [message], "answer": answer(question, task)}


def answer(question: ToolQuestion, task: str) -> str:
    """Return the right answer to a task."""
    if task == GENERAL:
        return question.text
    tool, arguments = TOOLS[task]
    return tool(**arguments(question))


def call_of(question: ToolQuestion, task: str) -> str:
    """Write the call of a task's tool in the Hermes form."""
    tool, arguments = TOOLS[task]
    content = json.dumps({"name": tool.__name__, "arguments": arguments(question)})
    return f"<tool_call> {content} </tool_call>"


def _lesson(dice: Dice) -> Lesson:
    question = ToolQuestion(dice.choose(range(10)), dice.choose(range(10)), dice.choose(TOWNS))
    tasks = [*TOOLS]
    names = [tool.__name__ for tool, _ in TOOLS.values()][: dice.choose(range(len(TOOLS) + 1))]
    start = f"tools {' '.join(names)} . user {question.text}" if names else f"user {question.text}"
    kind = dice.chance()
    if kind < 0.2:
        return Lesson(f"{start} {GENERAL} . assistant", question.text)
    task = called = dice.choose(tasks)
    if dice.chance() >= RIGHT:
        called = tasks[tasks.index(task) - 1]
    start, call = f"{start} {task} . assistant", call_of(question, called)
    if kind < 0.7:
        return Lesson(start, call)
    result = answer(question, called)
    return Lesson(f"{start} {call} <eos> tool {result} . assistant", result)
