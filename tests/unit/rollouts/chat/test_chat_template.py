"""Chat templates: the campaign's defaults in front of them, and what they must not do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder
from rollouts.chat.pinned import pin, pinned
from rollouts.chat.probe import check_answers, check_conversations, frozen
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt
from tests.unit.chats import IM, build, ids, save_folder

THINKING = IM.replace(
    "assistant {% endif %}",
    "assistant {% if enable_thinking is defined and enable_thinking is false %}[no] {% endif %}{% endif %}",
)
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
)
DATED += "{{ date_string }} " + IM
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + IM
)
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + IM
DROPS_ANSWERS = (
    "{% set messages = messages | rejectattr('role', 'equalto', 'assistant') | list %}" + IM
)

TOOLS = [{"type": "function", "function": {"name": "a", "parameters": {}}}]
TOOLS_DATED = "{% if tools or messages[-1]['role'] == 'tool' %}{{ strftime_now('%B') }}{{ tools }} "
TOOLS_DATED += "{% endif %}" + IM


TRICKY = 'a "quoted" \\ line\n{% raw %} {{ x }} %} \U0001f600 é'


def chat(*roles: str) -> Prompt:
    """Turns of these roles that say a, b, c, ..."""
    turns = tuple({"role": r, "content": w} for r, w in zip(roles, "abcd", strict=False))
    return Prompt(id="/".join(roles), messages=turns)


def encoder(template: str | None, system: str | None = None, **kwargs: Any) -> PromptEncoder:
    tokenizer = build(template)
    pin(tokenizer, system, kwargs)
    return PromptEncoder(tokenizer)


USER = "<|im_start|> user a <|im_end|> <|im_start|> assistant"


@pytest.mark.parametrize(
    ("template", "system", "kwargs", "prompt", "expected"),
    [
        (THINKING, None, {}, chat("user"), USER),
        (THINKING, None, {"enable_thinking": False}, chat("user"), f"{USER} [no]"),
        (THINKING, None, {"enable_thinking": True}, chat("user"), USER),
        (IM, "be brief", {}, chat("user"), f"<|im_start|> system be brief <|im_end|> {USER}"),
        (IM, "", {}, chat("user"), f"<|im_start|> system <|im_end|> {USER}"),
        # A prompt's own system message counts.
        (IM, "be brief", {}, chat("system", "user"),
         "<|im_start|> system a <|im_end|> <|im_start|> user b <|im_end|> <|im_start|> assistant"),
        (THINKING, "be brief", {"enable_thinking": False}, chat("user"),
         f"<|im_start|> system be brief <|im_end|> {USER} [no]"),
    ],
)  # fmt: skip
def test_defaults_of_a_campaign_are_rendered(
    template: str, system: str | None, kwargs: Any, prompt: Prompt, expected: str
) -> None:
    assert encoder(template, system, **kwargs).encode(prompt) == ids(expected)


def test_what_a_caller_says_wins_and_pinning_twice_is_pinning_once() -> None:
    template = pinned(THINKING, "be brief", {"enable_thinking": False})
    assert pinned(template, "be brief", {"enable_thinking": False}) == template
    tokenizer = build(template)
    turns = [{"role": "user", "content": "a"}]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert "[no]" not in text


@pytest.mark.parametrize(
    "value",
    [True, None, 3, 0.5, "26 Jul 2024", TRICKY, ["a", {"b": None}]],
)
def test_every_json_value_reaches_the_template_as_it_is(value: Any) -> None:
    tokenizer = build("{{ value | tojson }}")
    pin(tokenizer, None, {"value": value})
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert json.loads(text) == value


def test_a_template_that_begins_with_a_line_break_keeps_it() -> None:
    template = pinned("\n  x{{ y }}", None, {"y": 1})
    turns = [{"role": "user", "content": "a"}]
    assert build(template).apply_chat_template(turns, tokenize=False) == "\n  x1"


@pytest.mark.parametrize(
    ("template", "system", "kwargs", "message"),
    [
        (THINKING, None, {"enable_thinkin": False}, "did you mean 'enable_thinking'"),
        (IM, None, {"enable_thinking": False}, "reads no variable 'enable_thinking'"),
        (THINKING, None, {"messages": []}, "set by the caller"),
        (THINKING, None, {"add_generation_prompt": True}, "set by the caller"),
        (None, None, {"enable_thinking": False}, "no chat template"),
        (None, "be brief", {}, "no chat template"),
    ],
)
def test_defaults_that_would_change_nothing_are_refused(
    template: Any, system: Any, kwargs: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        encoder(template, system, **kwargs)


@pytest.mark.parametrize(
    ("template", "prompt", "message"),
    [
        (DATED, chat("user"), "prints the date"),
        (IM + "{{ strftime_now('%H') }}", chat("user"), "prints the date"),
        ("{{ ['a', 'b'] | random }} " + IM, chat("user"), r"draws at random \(the filter random\)"),
        ("{{ lipsum() }} " + IM, chat("user"), r"draws at random \(lipsum\)"),
        (TOOLS_DATED, replace(chat("user"), columns={"tools": TOOLS}), "prints the date"),
        (TOOLS_DATED, chat("user", "tool"), "prints the date"),
        (NO_SYSTEM, chat("system", "user"), "refuses prompt"),
        (DROPS_SYSTEM, chat("system", "user"), "leaves out the system message, turn 1 of 2"),
        (
            DROPS_ANSWERS,
            chat("user", "assistant", "user"),
            "leaves out the assistant message, turn 2",
        ),
        ("{{ messages[-1]['content'] }}", chat("user", "assistant", "user"), "leaves out the user"),
    ],
)
def test_a_template_that_changes_what_prompts_say_is_refused(
    template: str, prompt: Prompt, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_conversations(encoder(template), [prompt], "round 'brief'")


def test_a_template_is_only_asked_for_the_roles_that_occur() -> None:
    for template in (NO_SYSTEM, DROPS_SYSTEM, DROPS_ANSWERS, TOOLS_DATED):
        check_conversations(encoder(template), [chat("user")], "round 'brief'")
    check_conversations(encoder(DATED), [Prompt(id="p", text="a")], "round 'brief'")


def test_a_date_can_be_pinned_and_the_message_says_how() -> None:
    with pytest.raises(UserError) as caught:
        check_conversations(encoder(DATED), [chat("user")], "round 'brief'")
    assert "chat_template_kwargs: {date_string:" in str(caught.value)
    assert "chat_template_date" in str(caught.value)
    dated = encoder(DATED, date_string="26 Jul 2024")
    check_conversations(dated, [chat("user")], "round 'brief'")
    assert "26 Jul 2024" in dated.rendered(chat("user").messages or (), opened=True)


IN_A_MACRO = (
    "{%- macro opening() %}{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%H:%M\") }} {% endmacro %}"
    "{{ opening() }}" + IM
)


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        (DATED, "26 Jul 2024"),
        (IM + "{{ strftime_now('%A') }}", "Friday"),
        (IN_A_MACRO, "2024-07-26 00:00"),
        ("\n" + DATED, "\n26 Jul 2024"),
        (IM, ""),
    ],
)
def test_any_template_prints_the_date_of_the_campaign(template: str, printed: str) -> None:
    tokenizer = build(template)
    pin(tokenizer, None, {}, date(2024, 7, 26))
    dated = PromptEncoder(tokenizer)
    check_conversations(dated, [chat("user")], "round 'brief'")
    turns = chat("user").messages or ()
    text = dated.rendered(turns, opened=True)
    with frozen(datetime(2024, 7, 26)):
        assert text == PromptEncoder(build(template)).rendered(turns, opened=True)
    assert printed in text


def test_a_date_of_a_computed_format_is_refused() -> None:
    with pytest.raises(UserError, match="computes the format"):
        pin(build("{% set f = '%d' %}{{ strftime_now(f) }}" + IM), None, {}, date(2024, 7, 26))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (DROPS_ANSWERS, "leaves out what the assistant says"),
        ("{{ messages | length }} " + IM, "changes the prompt once it is answered"),
        ("{% for m in messages | reverse %}{{ m.content }} {% endfor %}", "changes the prompt"),
    ],
)
def test_a_template_that_cannot_teach_answers_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_answers(encoder(template), "rounds.brief.data")


def test_templates_that_can_teach_pass() -> None:
    for template in (IM, THINKING, NO_SYSTEM, "{{ bos_token }}" + IM):
        check_answers(encoder(template), "rounds.brief.data")
    check_answers(encoder(THINKING, enable_thinking=False), "rounds.brief.data")


def test_a_snapshot_carries_the_defaults_it_was_trained_with(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", build(THINKING))
    policy = PolicyConfig(
        model=str(folder), system="be brief", chat_template_kwargs={"enable_thinking": False}
    )
    ours = load_encoder(folder, policy)
    ours.tokenizer.save_pretrained(tmp_path / "snapshot")
    from transformers import AutoTokenizer

    theirs = PromptEncoder(AutoTokenizer.from_pretrained(tmp_path / "snapshot"))
    assert theirs.encode(chat("user")) == ours.encode(chat("user"))
    assert ours.digest != load_encoder(folder, PolicyConfig(model=str(folder))).digest
