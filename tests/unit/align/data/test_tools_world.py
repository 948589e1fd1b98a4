"""The world of tools: calls as the Hermes form has them, and lessons as the chat template writes them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from jinja2 import Environment

from align.data.scenarios.facts import tools
from align.data.scenarios.world import Dice

QUESTION = tools.ToolQuestion(3, 4, "arda")


def test_every_tool_answers_its_task() -> None:
    answers = {task: tools.answer(QUESTION, task) for task in (*tools.TOOLS, tools.GENERAL)}
    assert answers == {
        "sum": "7", "mayor": tools.MAYORS["arda"], "feet": "10", "echo": "3 4 arda"
    }  # fmt: skip


def test_the_campaign_file_brings_a_tool_each_round() -> None:
    raw = yaml.safe_load((Path(__file__).parents[4] / "configs/scenarios/tools.yaml").read_text())
    references = [f"{tools.__name__}:{tool.__name__}" for tool, _ in tools.TOOLS.values()]
    assert [spec["name"] for spec in raw["rounds"]] == [*tools.TOOLS]
    assert [spec["tools"] for spec in raw["rounds"]] == [references[:n] for n in (1, 2, 3)]


def test_calls_are_json_between_marks() -> None:
    call = tools.call_of(QUESTION, "sum")
    body = call.removeprefix("<tool_call> ").removesuffix(" </tool_call>")
    assert json.loads(body) == {"name": "calculator", "arguments": {"a": 3, "b": 4}}


def test_lessons_are_what_the_template_writes() -> None:
    """The base reads in its lessons the words that an episode has."""
    environment = Environment(autoescape=False)
    environment.filters["tojson"] = json.dumps  # As transformers does.
    render = environment.from_string(tools.TEMPLATE).render
    user = {"role": "user", "content": "3 4 arda sum"}
    function = {"name": "calculator", "arguments": {"a": 3, "b": 4}}
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    turns = [user, calling, {"role": "tool", "content": "7"}]
    first = "user 3 4 arda sum . assistant "
    assert render(messages=[user], add_generation_prompt=True) == first
    call = tools.call_of(QUESTION, "sum")
    second = f"{first}{call} <eos> tool 7 . assistant "
    assert render(messages=turns, add_generation_prompt=True) == second
    named = {"function": {"name": "calculator"}}
    listed = render(messages=[user], tools=[named], add_generation_prompt=True)
    assert listed == f"tools calculator . {first}"
    dice, lesson = Dice("lessons"), tools.world(0).lesson
    prompts = {lesson(dice).prompt for _ in range(1500)}
    assert any(prompt.endswith("<eos> tool 7 . assistant") for prompt in prompts)
    assert any(prompt.startswith("tools calculator . user") for prompt in prompts)


def test_half_of_the_lessons_call_another_tool() -> None:
    dice, lesson = Dice("lessons"), tools.world(0).lesson
    calls = [each for each in (lesson(dice) for _ in range(600)) if "<tool_call>" in each.answer]
    right = [tools.TOOLS[each.prompt.split()[-3]][0].__name__ in each.answer for each in calls]
    assert 0.4 < sum(right) / len(right) < 0.6
