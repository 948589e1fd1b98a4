"""Prompts that a policy writes: frames of texts and chats, cutting, and a diverse choice."""

from __future__ import annotations

from typing import Any

import pytest

from align.config.campaign import ReplayConfig
from align.config.replay.synthesis import SynthesisConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.replay.synthesis import Frame, cleaned, diverse, features_of, shown
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def encoder() -> PromptEncoder:
    return PromptEncoder(build_tokenizer())


def chat(*turns: tuple[str, str]) -> Prompt:
    return Prompt(id="c", messages=tuple({"role": role, "content": text} for role, text in turns))


def test_a_text_begins_at_nothing_or_behind_its_shots() -> None:
    frame = Frame.like(Prompt(id="a", text="rev"), encoder())
    assert frame.asking([], "\n", "x").text == "<eos>"
    assert frame.asking(["a", "b"], "\n", "x").text == "a\nb\n"
    assert frame.prompt("1 2").text == "1 2"


def test_a_chat_is_written_in_the_users_turn() -> None:
    chats = encoder()
    chats.tokenizer.chat_template = TEMPLATE
    frame = Frame.like(chat(("system", "be brief"), ("user", "hi")), chats)
    assert frame.asking(["hi"], "\n", "x").text == "<system> be brief <eos> <user> hi\n"
    assert frame.stops == ("<eos>",)
    assert frame.prompt("ho").messages == chat(("system", "be brief"), ("user", "ho")).messages


def test_shots_are_single_questions_drawn_by_the_key() -> None:
    config = SynthesisConfig(count=5, shots=2)
    prompts = [Prompt(id=str(i), text=f"q{i}") for i in range(6)]
    prompts.append(chat(("user", "a"), ("assistant", "b"), ("user", "c")))
    lists = shown(prompts, config, "k")
    assert len(lists) == 10 and lists == shown(prompts, config, "k") != shown(prompts, config, "l")
    assert all(len(set(shots)) == 2 and "c" not in shots for shots in lists)
    assert shown([], config, "k") == [[]] * 10


@pytest.mark.parametrize(
    ("text", "end", "prompt"),
    [
        (" rev 1 2 ", None, "rev 1 2"),
        ("one\n\ntwo", None, "one"),
        ("\n\none\n\ntwo", None, "one"),
        ("rev 1 2 = 2 1", "=", "rev 1 2 ="),
        ("rev 1 2", "=", None),
        ("= 2 1", "=", None),
        ("  ", None, None),
    ],
)
def test_what_was_written_is_cut_to_a_prompt(
    text: str, end: str | None, prompt: str | None
) -> None:
    assert cleaned(text, SynthesisConfig(end=end)) == prompt


def test_the_choice_is_diverse_by_hand() -> None:
    """From {1,2} the distances are 1/3, 1 and 1: the first of the farthest; then {5} is at 1 from all."""
    features: list[Any] = [{1, 2}, {1, 2, 3}, {7, 8}, {5}]
    assert diverse(features, 3) == [0, 2, 3]
    assert diverse(features, 9) == [0, 2, 3, 1]
    assert diverse([], 3) == diverse(features, 0) == []
    assert features_of([4, 5, 4]) == {4, 5, (4, 5), (5, 4)}


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({"rewards": True, "samples_per_prompt": 2}, "replay.rewards scores them"),
        ({"draw": "mastery"}, "replay.draw mastery scores them; use draw age"),
        ({"answers": {}}, "replay.answers by reward scores them"),
        ({"answers": {"by": "confidence"}, "draw": "age"}, None),
        ({"synthesis": {"shots": -1}}, "greater than or equal to 0"),
        ({"synthesis": {"separator": ""}}, "at least 1 character"),
        ({"buffer": 0, "general_answers": "stored"}, "raise buffer"),
        ({"buffer": 0}, None),
    ],
)
def test_prompts_without_columns_are_not_scored(
    replay: dict[str, Any], message: str | None
) -> None:
    settings = {"synthesis": {}, **replay}
    if message is None:
        assert ReplayConfig.model_validate(settings).synthesis == SynthesisConfig()
        return
    with pytest.raises(ValueError, match=message):
        ReplayConfig.model_validate(settings)
