"""Tools, calls and results of a row: the chat template writes them, or the row is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from align.config.data import ExamplesConfig
from align.data.examples.load import load_examples
from rollouts.chat.messages import BadMessages, tools_of, turns_of
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder, content_id
from rollouts.types import Prompt

TOOLS = "{% for t in tools or [] %}<tool> {{ t.function.name }} {% endfor %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<call> {{ c.function.name }} {{ c.function.arguments.city }} "
    "{% endfor %}"
)
TURNS = (
    "{% for m in messages %}<MROLE> {% if SHOWN %}{{ m.content }} {% endif %}CALLS"
    "{% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
).replace("MROLE", "{{ m.role }}")
WHOLE = TOOLS + TURNS.replace("CALLS", CALLS).replace("SHOWN", "true")

WORDS = ["<eos>", "<unk>", "<tool>", "<call>", "<user>", "<assistant>", "weather", "ask", "Paris",
         "sunny", "fine"]  # fmt: skip
IDS = {word: number for number, word in enumerate(WORDS)}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
ASKED = [{"role": "user", "content": "ask"}]
CALLED = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RETURNED = [*CALLED, {"role": "tool", "content": "sunny"}]


def encoder(template: str = WHOLE) -> PromptEncoder:
    backend = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer)


def prompt(messages: list[Any], **columns: Any) -> Prompt:
    turns = turns_of(messages, "prompt")
    return Prompt(id=content_id(turns), messages=turns, columns=columns, location="p.jsonl:7")


def shown(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[i] for i in ids)


def test_a_template_gets_tools_calls_and_results() -> None:
    ids = encoder().encode(prompt(RETURNED, tools=[WEATHER]))
    assert shown(ids) == (
        "<tool> weather <user> ask <assistant> <call> weather Paris <eos> <tool> sunny <assistant>"
    )
    assert encoder().encode(prompt(RETURNED, tools=json.dumps([WEATHER]))) == ids
    assert shown(encoder().encode(prompt(ASKED))) == "<user> ask <assistant>"
    assert shown(encoder().encode(prompt(ASKED, tools=None))) == "<user> ask <assistant>"


@pytest.mark.parametrize(
    ("template", "messages", "columns", "lost"),
    [
        (TURNS.replace("CALLS", CALLS).replace("SHOWN", "true"), ASKED, {"tools": [WEATHER]},
         "the functions in the column 'tools'"),
        (TOOLS + TURNS.replace("CALLS", "").replace("SHOWN", "true"), RETURNED, {},
         "the tool_calls of message 2"),
        (TOOLS + TURNS.replace("CALLS", CALLS).replace("SHOWN", "m.role != 'tool'"), RETURNED, {},
         "what a tool returned in message 3"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused_by_line(
    template: str, messages: list[Any], columns: dict[str, Any], lost: str
) -> None:
    with pytest.raises(UserError) as caught:
        encoder(template).encode(prompt(messages, **columns))
    assert "the chat template refuses p.jsonl:7" in str(caught.value)
    assert f"it leaves out {lost}" in str(caught.value)


def test_arguments_as_text_are_read_and_empty_cells_of_tables_are_left_out() -> None:
    told = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    filled = {**CALL, "function": {"name": "weather", "arguments": {"city": "Paris", "day": None}}}
    for call in (told, filled):
        turns = turns_of([*ASKED, {"role": "assistant", "tool_calls": [call], "name": None}], "x")
        assert turns[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "value", ["nonsense", ["f"], {"name": "f"}, [{"name": 3}], [{"name": b"f"}]]
)
def test_tools_that_are_no_functions(value: Any) -> None:
    with pytest.raises(BadMessages, match="'tools' is no list of functions"):
        tools_of({"tools": value})


def test_a_demonstration_of_a_call_is_learnt_with_its_tools(tmp_path: Any) -> None:
    source = tmp_path / "rows.jsonl"
    row = {"messages": CALLED, "tools": [WEATHER]}
    source.write_text(json.dumps(row) + "\n")
    config = ExamplesConfig(source=str(source))
    (unit,) = load_examples(config, "demonstrations", encoder(), 40, "r").units
    assert shown(unit.rows[0].prompt_ids) == "<tool> weather <user> ask <assistant>"
    assert shown(unit.rows[0].completion_ids) == "<call> weather Paris <eos>"
    with pytest.raises(UserError, match="it leaves out the functions"):
        deaf = encoder(TURNS.replace("CALLS", CALLS).replace("SHOWN", "true"))
        load_examples(config, "demonstrations", deaf, 40, "r")
