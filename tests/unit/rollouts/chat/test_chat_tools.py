"""Tools, calls and results of a row: the chat template writes them, or the row is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from align.config.data import ExamplesConfig
from align.data.examples.load import load_examples
from rewards.library.reward_model import RewardScorer
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


SECOND = {"type": "function", "function": {"name": "ask", "arguments": {"city": "fine"}}}
EPISODE = [
    *RETURNED,
    {"role": "assistant", "content": None, "tool_calls": [SECOND]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "fine"},
]
"""A question, two calls with their results, and an answer."""
OWN = ["<call> weather Paris <eos>", "<call> ask fine <eos>", "fine <eos>"]
"""What the assistant writes in its three turns."""
AROUND = "<tool> sunny <assistant>"
"""A result, between the end of a turn and the beginning of the next."""


def pieces(row: Any) -> tuple[list[str], list[str]]:
    """Sampled and observed runs of a row's completion, as words."""
    edges = [0, *(place for span in row.observed for place in span), len(row.completion_ids)]
    runs = [shown(row.completion_ids[a:b]) for a, b in pairwise(edges)]
    return runs[::2], runs[1::2]


def learnt(tmp_path: Path, material: str, record: dict[str, Any], **fields: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**record, "tools": [WEATHER]}) + "\n")
    config = ExamplesConfig(source=str(path), max_dropped=0.0, **fields)
    made = load_examples(config, material, encoder(), 64, "tools")  # type: ignore[arg-type]
    return made.units[0].rows


@pytest.mark.parametrize(
    "record",
    [
        {"messages": EPISODE},
        {"prompt": EPISODE[:1], "completion": EPISODE[1:]},
        # What the environment said last belongs to no turn of the assistant's.
        {"prompt": EPISODE[:1], "completion": [*EPISODE[1:], {"role": "tool", "content": "sunny"}]},
    ],
    ids=["messages", "completion", "cut"],
)
def test_a_recorded_episode_teaches_the_assistants_tokens_alone(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (row,) = learnt(tmp_path, "demonstrations", record)
    assert shown(row.prompt_ids).endswith("<user> ask <assistant>")
    own, observed = pieces(row)
    assert own == OWN
    assert observed == [AROUND, AROUND]
    assert row.num_sampled == sum(len(text.split()) for text in OWN)


def test_both_sides_of_a_pair_may_be_episodes(tmp_path: Path) -> None:
    other = [*EPISODE[:3], {"role": "assistant", "content": "sunny"}]
    other[1] = EPISODE[3]
    chosen, rejected = learnt(tmp_path, "pairs", {"chosen": EPISODE, "rejected": other})
    assert pieces(chosen) == (OWN, [AROUND, AROUND])
    assert pieces(rejected) == ([OWN[1], "sunny <eos>"], [AROUND])


def test_all_turns_of_a_conversation_are_learnt_where_it_is_asked_for(tmp_path: Path) -> None:
    talk = [*EPISODE, {"role": "user", "content": "ask"}, {"role": "assistant", "content": "Paris"}]
    (row,) = learnt(tmp_path, "demonstrations", {"messages": talk})
    assert (pieces(row), shown(row.completion_ids)) == ((["Paris <eos>"], []), "Paris <eos>")
    (row,) = learnt(tmp_path, "demonstrations", {"messages": talk}, turns="all")
    assert pieces(row) == ([*OWN, "Paris <eos>"], [AROUND, AROUND, "<user> ask <assistant>"])


def test_an_episode_that_is_cut_ends_with_the_assistant(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": EPISODE, "tools": [WEATHER]}) + "\n")
    config = ExamplesConfig(source=str(path), cut=True)
    # Five tokens of the prompt, four of the first turn, and two of the result behind it.
    made = load_examples(config, "demonstrations", encoder(), 11, "tools")
    (row,) = made.units[0].rows
    assert (shown(row.completion_ids), row.observed) == (OWN[0], ())


def test_a_template_that_rewrites_earlier_turns_is_told(tmp_path: Path) -> None:
    """The end of a turn is written no more once many turns follow."""
    end = "{% if m.role == 'assistant' %}<eos> {% endif %}"
    once = (
        "{% if m.role == 'assistant' and (loop.last or messages | length < 5) %}<eos> {% endif %}"
    )
    forgetful = encoder(WHOLE.replace(end, once))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": EPISODE, "tools": [WEATHER]}) + "\n")
    config = ExamplesConfig(source=str(path), max_dropped=0.0)
    with pytest.raises(UserError, match="changes earlier turns once later ones follow"):
        load_examples(config, "demonstrations", forgetful, 64, "tools")


def test_a_reward_model_reads_all_turns_of_an_episode() -> None:
    scorer: Any = SimpleNamespace(_encoder=encoder())
    asked, answered = turns_of(ASKED, "prompt"), turns_of(EPISODE[1:], "completion")
    ids = RewardScorer.encode(scorer, asked, answered)
    runs = f"{OWN[0]} {AROUND} {OWN[1]} {AROUND} {OWN[2]}"
    assert shown(ids) == f"<user> ask <assistant> {runs}"
    assert shown(RewardScorer.encode(scorer, asked, answered[-1:])).endswith(
        "ask <assistant> fine <eos>"
    )
