"""Calls as models write them: read, or data with a reason."""

from __future__ import annotations

import json
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.episodes.environment import ToolCall
from rollouts.episodes.parsers import ParsedTurn, TurnTokens, UnreadCall, build_parser
from rollouts.episodes.parsers.hermes import HermesParser
from rollouts.episodes.parsers.vllm import vllm_parser_names
from rollouts.episodes.tools import Tools
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from tests.unit.acting import SCHEMAS, call, encoder, ids, schema


def read(text: str, before: str = "") -> ParsedTurn:
    parser = HermesParser(encoder().decode)
    return parser.parse(TurnTokens(text, ids(text), ids(before)), SCHEMAS)


def test_calls_in_order_beside_the_text() -> None:
    turn = read(f"First {call('add', a=1, b=2)}\n{call('tell', text='</think> x')}")
    assert turn.calls == (
        ToolCall("add", {"a": 1, "b": 2}),
        ToolCall("tell", {"text": "</think> x"}),
    )
    assert turn.content == "First"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}',
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>',
        '<tool_call>{"name": "add", "parameters": {"a": 1, "b": 2}}</tool_call>',
        f"<think><tool_call>x</tool_call></think>{call('add', a=1, b=2)}",
    ],
)
def test_forms_that_models_write(text: str) -> None:
    assert read(text).calls == (ToolCall("add", {"a": 1, "b": 2}),)


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        ("", "unknown", "not JSON"),
        ('{"name": "add", "arguments": {"a": 1', "unknown", "not JSON"),
        ("[" * 100_000, "unknown", "not JSON"),
        ("[1]", "unknown", "no object"),
        ('{"arguments": {}}', "unknown", "needs a name"),
        ('{"name": ["add"], "arguments": {}}', "unknown", "needs a name"),
        ('{"name": "add", "arguments": [1, 2]}', "add", "are a list"),
        ('{"name": "add", "arguments": "1 2"}', "add", "not JSON"),
        ('{"name": "add", "arguments": {"a": NaN}}', "add", "handed on"),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', "add", "handed on"),
        ('{"name": "\\ud800", "arguments": {}}', "?", "handed on"),
        ('{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}", "unknown", "not JSON"),
    ],
)
def test_a_call_that_does_not_parse_is_data_with_a_reason(
    body: str, name: str, reason: str
) -> None:
    (unread,) = read(f"<tool_call>{body}</tool_call>").calls
    assert isinstance(unread, UnreadCall) and unread.name == name and reason in unread.reason


@pytest.mark.parametrize("mark", ["<tool_call>", "</tool_call>", "</tool_call>\n<tool_call>{}"])
@pytest.mark.parametrize("ending", ["\n</tool_call>", ""])
def test_a_mark_within_an_argument_is_its_text(mark: str, ending: str) -> None:
    made = call("tell", text=f'a "{mark}" b').removesuffix("\n</tool_call>") + ending
    turn = read(f"First {made}{call('add', a=1, b=2)} last")
    assert turn.calls == (
        ToolCall("tell", {"text": f'a "{mark}" b'}),
        ToolCall("add", {"a": 1, "b": 2}),
    )
    assert turn.content == "First  last"


def test_a_thought_makes_no_call() -> None:
    made = ToolCall("add", {"a": 1, "b": 2})
    thought = f"Maybe {call('tell', text='x')}\n</think>\n\n{call('add', a=1, b=2)}"
    assert read("<think>\n" + thought).calls == (made,)
    assert read(thought, before="<|im_start|>assistant\n<think>\n").calls == (made,)
    assert read("<think>\n" + call("add", a=1, b=2)).calls == ()


@given(st.text(alphabet=st.sampled_from('<tool_call>/{}":,[]\\ andme1\n'), max_size=80))
def test_no_text_is_too_much_for_the_parser(said: str) -> None:
    for text in (said, f"<tool_call>{said}</tool_call>"):
        assert all(isinstance(each, ToolCall | UnreadCall) for each in read(text).calls)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (ToolCall("add", {"a": 1, "b": 2}), None),
        (ToolCall("add", {"a": 1}), "'b' is a required property"),
        (ToolCall("add", {"a": "1", "b": 2}), "a: '1' is not of type 'integer'"),
        (ToolCall("subtract", {}), "Tool subtract not found. Tools: add, tell."),
        (UnreadCall("add", "no reason"), "no reason"),
    ],
)
def test_faults_of_calls(made: ToolCall | UnreadCall, fault: str | None) -> None:
    found = Tools(SCHEMAS).fault(made)
    assert found == fault if fault is None else fault in str(found)


def test_a_reference_that_leads_nowhere_leaves_the_word_to_the_tool() -> None:
    outside = {"name": "see", "parameters": {"$ref": "https://example.com/schema.json"}}
    assert Tools([{"type": "function", "function": outside}]).fault(ToolCall("see", {})) is None


@pytest.mark.parametrize(
    ("schemas", "reason"),
    [([schema("add"), schema("add")], "two tools"), ([schema("add", a="whole")], "no JSON schema")],
)
def test_tools_that_no_call_can_name_are_refused(
    schemas: list[dict[str, object]], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        Tools(schemas)


def test_the_tokenizers_own_template_reads_calls() -> None:
    from trl.chat_template_utils import qwen3_template

    tokenizer = copy(encoder().tokenizer)
    tokenizer.response_template = qwen3_template
    parser = build_parser("auto", PromptEncoder(tokenizer))
    text = f"Well {call('add', a=1, b=2)}"
    prompt = ids("<|im_start|>assistant\n")
    assert parser.parse(TurnTokens(text, ids(text), prompt), SCHEMAS).calls == (
        ToolCall("add", {"a": 1, "b": 2}),
    )
    (unread,) = parser.parse(TurnTokens("", ids("<tool_call>\n{x"), prompt), SCHEMAS).calls
    assert isinstance(unread, UnreadCall)


def test_a_parser_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match="hermez") as refusal:
        build_parser("hermez", encoder())
    assert "did you mean 'hermes'" in str(refusal.value.remedy)
    with pytest.raises(UserError, match="response template"):
        build_parser("template", encoder())
    assert not vllm_parser_names() or "llama3_json" in vllm_parser_names()


def test_a_call_is_json_as_it_was_written() -> None:
    arguments = {"text": "né", "list": [1, None, {"x": 2.5}]}
    body = json.dumps({"name": "tell", "arguments": arguments}, ensure_ascii=False)
    assert read(f"<tool_call>{body}</tool_call>").calls == (ToolCall("tell", arguments),)
