"""The tokens that end an answer: one set, and one end on every learned answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.data import PromptsConfig
from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder
from align.data.examples import ExamplesConfig, load_examples
from rollouts.chat.endings import extra_endings, generation_endings, turn_end
from rollouts.collect import collect
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder, load_prompts
from rollouts.types import Prompt, Sampling
from tests.unit.chats import IDS, IM, build, ids, save_folder, words

IM_END, END = IDS["<|im_end|>"], IDS["<|endoftext|>"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [4, 5]}}, (4, 5)),
        ({"generation_config.json": {"eos_token_id": 5}}, (5,)),
        ({"generation_config.json": {"eos_token_id": [5, 5, 4]}}, (5, 4)),
        ({"generation_config.json": {"eos_token_id": None}}, ()),
        # Where the generation config names none, transformers asks nobody else.
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 5}}, ()),
        ({"config.json": {"eos_token_id": [4, 5]}}, (4, 5)),
        ({"config.json": {"text_config": {"eos_token_id": 5}}}, (5,)),
        ({}, ()),
    ],
)
def test_endings_are_found_where_transformers_finds_them(
    tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert generation_endings(tmp_path) == expected


@pytest.mark.parametrize("value", ["</s>", [4, "5"], -1, True, {"id": 4}])
def test_an_ending_that_is_no_token_id_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="eos_token_id is"):
        generation_endings(tmp_path)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (IM, IM_END),
        (IM.replace("<|im_end|>\n", "<|im_end|>\n<|endoftext|>"), IM_END),
        (IM.replace("<|im_end|>\n", "\n<|endoftext|>"), END),
        (IM.replace(" <|im_end|>\n", "\n"), None),
        ("{{ raise_exception('never') }}", None),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            None,
        ),
        (None, None),
    ],
)
def test_what_the_template_ends_a_turn_with(template: str | None, expected: int | None) -> None:
    assert turn_end(build(template)) == expected


def test_of_several_tokens_behind_an_answer_a_named_one_ends_it() -> None:
    """A template may close an answer's text before it ends the turn."""
    tokenizer = build(IM.replace("<|im_end|>", "</s> <|im_end|>"))
    assert turn_end(tokenizer, [IM_END, END]) == IM_END
    assert turn_end(tokenizer, [END]) == IDS["</s>"]
    assert extra_endings(Path("nowhere"), tokenizer) == ()


@pytest.mark.parametrize(
    ("eos", "generation", "expected"),
    [
        ("<|endoftext|>", [4, 5], (END, IM_END)),
        ("<|im_end|>", [5], (IM_END, END)),
        ("<|im_end|>", None, (IM_END,)),
        (None, [4], (IM_END,)),
        # Ids that no answer can hold are left out.
        ("<|im_end|>", [4, 151645], (IM_END,)),
        # Nobody names what the template writes behind an answer.
        ("<|endoftext|>", None, (END, IM_END)),
    ],
)
def test_the_endings_of_a_model_folder(
    tmp_path: Path, eos: str | None, generation: Any, expected: tuple[int, ...]
) -> None:
    folder = save_folder(tmp_path, build(eos=eos), {"eos_token_id": generation})
    assert load_encoder(folder, PolicyConfig(model=str(folder))).eos_ids == expected


def test_a_model_without_any_ending_is_told(tmp_path: Path, caplog: Any) -> None:
    tokenizer = build(None, eos=None)
    assert extra_endings(tmp_path, tokenizer) == ()
    assert "names a token that ends an answer" in caplog.text


def learned(encoder: PromptEncoder, tmp_path: Path, row: dict[str, Any]) -> str:
    """The words that a demonstration teaches."""
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(row))
    config = ExamplesConfig(source=str(source))
    (unit,) = load_examples(config, "demonstrations", encoder, 40, "taste").units
    return words(unit.rows[0].completion_ids)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT_ROW = {"prompt": [said("user", "a")], "completion": [said("assistant", "b")]}
TURNS_ROW = {
    "prompt": [said("user", "a")],
    "completion": [said("assistant", "b"), said("user", "c"), said("assistant", "d")],
}
TEXT_ROW = {"prompt": "a", "completion": " b"}
RENDERED_ROW = {"prompt": "<|im_start|> user a <|im_end|>", "completion": " b <|im_end|> \n"}


@pytest.mark.parametrize("pad", [None, "<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize(
    ("template", "eos", "extra", "row", "expected"),
    [
        (IM, "<|endoftext|>", [IM_END, END], CHAT_ROW, "b <|im_end|>"),
        (IM, "<|im_end|>", [END], CHAT_ROW, "b <|im_end|>"),
        (IM.replace("<|im_end|>\n", "<|im_end|> <|endoftext|>"), "<|endoftext|>", [IM_END], CHAT_ROW,
         "b <|im_end|>"),
        (IM.replace("<|im_end|>", ""), "<|endoftext|>", [], CHAT_ROW, "b <|endoftext|>"),
        (IM, "<|im_end|>", [], TURNS_ROW,
         "b <|im_end|> <|im_start|> user c <|im_end|> <|im_start|> assistant d <|im_end|>"),
        (None, "<|endoftext|>", [IM_END], TEXT_ROW, "b <|endoftext|>"),
        (None, None, [IM_END], TEXT_ROW, "b <|im_end|>"),
        (None, "<|endoftext|>", [IM_END], RENDERED_ROW, "b <|im_end|>"),
    ],
)  # fmt: skip
def test_a_learned_answer_ends_once_and_with_nothing_behind(
    tmp_path: Path, template: Any, eos: Any, extra: list[int], row: Any, expected: str, pad: Any
) -> None:
    encoder = PromptEncoder(build(template, eos=eos, pad=pad), extra)
    assert learned(encoder, tmp_path, row) == expected


def test_engines_are_asked_to_stop_where_examples_end() -> None:
    encoder = PromptEncoder(build(eos="<|endoftext|>"), [IM_END, END])
    engine = ScriptedEngine(lambda prompt, seed: (ids("b <|im_end|>"), (-1.0, -1.0)))
    sampling = Sampling(max_tokens=2, stop_token_ids=(IDS["c"],))
    (group,) = collect(
        engine, [Prompt(id="p", text="a")], [1], encoder, sampling, seed=0, policy="base"
    )
    assert engine.requests[0].sampling.stop_token_ids == (IDS["c"], IM_END)
    assert group.completions_G[0].finish_reason == "stop"


@pytest.mark.parametrize("text", ["a b", "<s> a b", "<s>a b"])
def test_no_text_begins_with_two_bos(text: str) -> None:
    assert PromptEncoder(build(bos=True)).encode(Prompt(id="p", text=text)) == ids("<s> a b")
    bare = "<s> a b" if text.startswith("<s>") else "a b"
    assert PromptEncoder(build(bos=False)).encode(Prompt(id="p", text=text)) == ids(bare)


@pytest.mark.parametrize("prints", [True, False])
def test_a_chat_has_the_bos_that_its_template_prints(prints: bool) -> None:
    template = "{{ bos_token }} " * prints + IM
    encoder = PromptEncoder(build(template, bos=True))
    prompt = Prompt(id="p", messages=({"role": "user", "content": "a"},))
    rest = "<|im_start|> user a <|im_end|> <|im_start|> assistant"
    assert encoder.encode(prompt) == ids(("<s> " if prints else "") + rest)


TEMPLATED = {"topic": "a", "detail": "c", "completion": " b"}
OPENED = "<|im_start|> user a c <|im_end|> <|im_start|> assistant"


@pytest.mark.parametrize(
    ("template", "fields", "row", "prompt", "answer"),
    [
        (IM, {"template": "{topic} {detail}"}, TEMPLATED, OPENED, "b <|im_end|>"),
        (IM, {"template": "{topic} {detail}", "chat": True}, TEMPLATED, OPENED, "b <|im_end|>"),
        (IM, {"template": "{topic} {detail}", "chat": False}, TEMPLATED, "a c", "b <|im_end|>"),
        (None, {"template": "{topic} {detail}"}, TEMPLATED, "a c", "b <|im_end|>"),
        # Without a template, text stays text unless a chat is asked for.
        (IM, {}, {"prompt": "a c", "completion": " b"}, "a c", "b <|im_end|>"),
        (IM, {"chat": True}, {"prompt": "a c", "completion": " b"}, OPENED, "b <|im_end|>"),
        (IM, {"chat": True}, CHAT_ROW, OPENED.replace(" c", ""), "b <|im_end|>"),
    ],
)
def test_texts_of_a_file_on_a_chat_model(
    tmp_path: Path, template: Any, fields: Any, row: Any, prompt: str, answer: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(row))
    config = ExamplesConfig(source=str(source), **fields)
    encoder = PromptEncoder(build(template))
    (unit,) = load_examples(config, "demonstrations", encoder, 40, "taste").units
    assert (words(unit.rows[0].prompt_ids), words(unit.rows[0].completion_ids)) == (prompt, answer)
    assert unit.prompt is not None and encoder.encode(unit.prompt) == unit.rows[0].prompt_ids


def test_pairs_on_a_chat_model_are_answers_to_one_turn(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"topic": "a", "chosen": "b", "rejected": "c"}))
    config = ExamplesConfig(source=str(source), template="{topic}")
    (unit,) = load_examples(config, "pairs", PromptEncoder(build(IM)), 40, "taste").units
    assert [words(row.completion_ids) for row in unit.rows] == ["b <|im_end|>", "c <|im_end|>"]
    assert {words(row.prompt_ids) for row in unit.rows} == {OPENED.replace(" c", "")}


def test_a_chat_of_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(TEXT_ROW))
    config = ExamplesConfig(source=str(source), chat=True)
    with pytest.raises(UserError, match="no chat template"):
        load_examples(config, "demonstrations", PromptEncoder(build(None)), 40, "taste")


SYSTEM = "<|im_start|> system be brief <|im_end|> "


@pytest.mark.parametrize(
    ("value", "fields", "expected"),
    [
        ("a c", {}, "a c"),
        ("a c", {"chat": True}, OPENED),
        ("a c", {"chat": True, "system": "be brief"}, SYSTEM + OPENED),
        ([said("user", "a c")], {"system": "be brief"}, SYSTEM + OPENED),
        ([said("user", "a c")], {"chat": True}, OPENED),
        ([said("system", "b"), said("user", "a c")], {"system": "be brief"},
         SYSTEM.replace("be brief", "b") + OPENED),
    ],
)  # fmt: skip
def test_prompts_of_a_file_on_a_chat_model(
    tmp_path: Path, value: Any, fields: Any, expected: str
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": value}))
    config = PromptsConfig(source=str(source), **fields)
    (prompt,) = load_prompts(config, {}, "taste", "new")
    assert words(PromptEncoder(build(IM)).encode(prompt)) == expected


def test_a_system_message_of_text_prompts_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": "a"}))
    with pytest.raises(UserError, match="add chat: true"):
        load_prompts(PromptsConfig(source=str(source), system="b"), {}, "taste", "new")
