"""Tokens between two turns, worked by hand, and templates that no episode can be rendered with."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import pytest
import trl

from rollouts.chat.pinned import pinned
from rollouts.episodes.observations import (
    UnfitTemplate,
    checked_format,
    observation_format,
    tool_message,
)
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from tests.unit.acting import HERMES, encoder, ids, text
from tests.unit.chats import IM

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def in_chat(template: str | None) -> PromptEncoder:
    """The tokenizer of the tests with another chat template."""
    tokenizer = copy(encoder().tokenizer)
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer)


def test_an_observation_begins_behind_the_end_of_the_turn() -> None:
    form = observation_format(encoder())
    observed = ids("\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n")
    header = ids("<|im_start|>assistant\n")
    answers = [tool_message("add", "5")]
    assert form.tokens(answers) == (*observed, *header)
    # A turn that a stop text ended has no end of its own.
    assert form.tokens(answers, ended=False) == (*ids("<|im_end|>"), *observed, *header)


def test_several_answers_share_a_message() -> None:
    answers = [tool_message("add", "5"), tool_message("tell", "<|im_end|>")]
    observed = observation_format(encoder()).tokens(answers)
    assert observed == ids(
        "\n<|im_start|>user\n<tool_response>\n5\n</tool_response>\n<tool_response>\n<|im_end|>\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


UNFIT = {
    "none": (None, "no chat template"),
    "chat only": (IM, "leaves out"),
    "no tools": (HERMES.replace("if tools", "if false"), "leaves out the functions"),
    "no calls": (HERMES.replace("m.tool_calls or []", "[]"), "leaves out the tool_calls"),
    "no answers": (
        HERMES.replace("{{ m.content }}\n</tool_response>", "</tool_response>"),
        "returned",
    ),
    "counts messages": ("{{ messages | length }} " + HERMES, "written or tokenized otherwise"),
    "rewrites calls": (
        HERMES.replace("{{ m.role }}", "{{ m.role }}{{ ' now' if loop.last }}"),
        "written or tokenized otherwise",
    ),
    "last calls only": (
        HERMES.replace(
            "for call in m.tool_calls or []", "for call in (m.tool_calls if loop.last else [])"
        ),
        "leaves out the tool_calls",
    ),
    "last answer only": (
        HERMES.replace(
            "{{ m.content }}\n</tool", "{{ m.content if loop.last else '...' }}\n</tool"
        ),
        "leaves out or changes an earlier answer",
    ),
    "numbers answers": (
        HERMES.replace("<tool_response>", "<tool_response {{ loop.index }}>"),
        "otherwise after other turns",
    ),
    "raises": (
        HERMES.replace("{{ m.content }}\n</tool", "{{ m.nothing.there }}\n</tool"),
        "raises",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_template_is_refused_with_its_reason(kind: str) -> None:
    template, reason = UNFIT[kind]
    with pytest.raises(UserError) as refusal:
        checked_format(in_chat(template), "rounds.0.tools")
    assert reason in refusal.value.what and refusal.value.where == "rounds.0.tools"
    assert "chat_template.jinja" in str(refusal.value.remedy)


@pytest.mark.parametrize(
    ("policy", "prompt"),
    [({}, {}), ({"enable_thinking": False}, {}), ({}, {"enable_thinking": False})],
)
def test_a_known_template_is_written_by_its_training_variant(
    policy: dict[str, bool], prompt: dict[str, bool]
) -> None:
    """Qwen3 drops an empty thought once an answer follows; variables of policy and prompt count."""
    template = (TEMPLATES / "qwen3.jinja").read_text()
    form = observation_format(in_chat(pinned(template, None, policy)), prompt)
    thought = "<think>\n\n</think>\n\n" if policy or prompt else ""
    answer = "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
    expected = ids(answer + "<|im_start|>assistant\n" + thought)
    assert form.tokens([tool_message("add", "5")]) == expected


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "qwen3_5_think"])
def test_templates_of_models_are_fit(name: str) -> None:
    """Two answers of tools stand in one turn, behind which the assistant's is opened."""
    form = observation_format(in_chat((TEMPLATES / f"{name}.jinja").read_text()))
    observed = text(form.tokens([tool_message("add", "5"), tool_message("tell", "done")]))
    answers = "<tool_response>\n5\n</tool_response>\n<tool_response>\ndone\n</tool_response>"
    assert f"<|im_start|>user\n{answers}<|im_end|>\n" in observed
    assert "<|im_start|>assistant\n" in observed.partition(answers)[2]


def test_a_format_that_cannot_be_had_is_not_kept() -> None:
    unfit = in_chat(IM)
    for _ in range(2):
        with pytest.raises(UnfitTemplate):
            observation_format(unfit)
