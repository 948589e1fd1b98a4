"""Served and exported snapshots answer as the gate measured, not as the base's generation config asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.config.gate import AnswerSampling
from align.report.export.answering import (
    default_line,
    generation_config,
    prepare,
    served_sampling,
    vllm_overrides,
    write_answering,
)
from launch.serving.proxy import with_stops
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt
from tests.unit.chats import IDS, build, ids, save_folder
from tests.unit.rollouts.chat.test_answer_sampling import campaign
from tests.unit.rollouts.chat.test_chat_template import THINKING

BASE = {
    "do_sample": False, "temperature": 0.9, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05,
    "max_new_tokens": 7, "pad_token_id": 5, "bos_token_id": 0, "eos_token_id": [4, 5],
}  # fmt: skip
"""Sampling that no suite was measured with, in a form that transformers refuses to save."""
ENDS = [IDS["<|im_end|>"], IDS["<|endoftext|>"]]
HALF = {"temperature": 0.5, "top_p": 0.9}


def saved(content: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return the settings that are left after transformers has read and written them."""
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    GenerationConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    found: dict[str, Any] = json.loads((tmp_path / "generation_config.json").read_text())
    return {name: value for name, value in found.items() if name != "transformers_version"}


OURS = {"pad_token_id": 5, "bos_token_id": 0, "eos_token_id": [4, 5]}


@pytest.mark.parametrize(
    ("suites", "expected"),
    [
        ({}, {"do_sample": False}),
        (HALF, {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}),
        ({"temperature": 0.5, "top_k": 7, "min_p": 0.1},
         {"do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 7, "min_p": 0.1}),
    ],
)  # fmt: skip
def test_an_exported_folder_samples_as_the_suites_do(
    tmp_path: Path, suites: dict[str, Any], expected: dict[str, Any]
) -> None:
    sampling = served_sampling(campaign(suites, suites))
    assert saved(generation_config(BASE, ENDS, sampling), tmp_path) == {**OURS, **expected}


def test_suites_that_differ_leave_the_policys_own_distribution(tmp_path: Path) -> None:
    config = campaign(HALF)
    assert served_sampling(config) is None
    assert "2 ways" in default_line(config)
    assert vllm_overrides(config) == {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    content = saved(generation_config(BASE, ENDS, None), tmp_path)
    assert (content["do_sample"], content["temperature"], content["top_k"]) == (True, 1.0, 0)


def test_serving_is_what_a_person_chose() -> None:
    config = campaign(HALF, serving={"temperature": 0.2, "stop": ["x"]})
    sampling = served_sampling(config)
    assert sampling is not None and sampling.temperature == 0.2
    assert default_line(config).endswith('as serving says: temperature 0.2, stop ["x"]')
    assert default_line(campaign({})).endswith("as the gate measured: temperature 0")


def chat_campaign(folder: Path, **policy: Any) -> CampaignConfig:
    config = campaign({})
    changed = config.policy.model_copy(update={"model": str(folder), **policy})
    return config.model_copy(update={"policy": changed})


def test_the_server_gets_the_campaigns_template_and_generation_config(tmp_path: Path) -> None:
    model = save_folder(tmp_path / "model", build(THINKING), BASE)
    before = (model / "generation_config.json").read_bytes()
    config = chat_campaign(model, chat_template_kwargs={"enable_thinking": False})
    arguments = write_answering(model, tmp_path / "answering", config)
    named = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert json.loads(named["--override-generation-config"])["temperature"] == 0.0
    written = json.loads(Path(named["--generation-config"], "generation_config.json").read_text())
    assert written == {**OURS, "do_sample": False}
    tokenizer = build(Path(named["--chat-template"]).read_text())
    prompt = Prompt(id="p", messages=({"role": "user", "content": "a"},))
    asked = ids("<|im_start|> user a <|im_end|> <|im_start|> assistant [no]")
    assert PromptEncoder(tokenizer).encode(prompt) == asked
    assert (model / "generation_config.json").read_bytes() == before


def test_a_stop_text_that_is_a_special_token_ends_answers_as_that_token(tmp_path: Path) -> None:
    """The gate stops there; a server that looks for the text would never see it."""
    model = save_folder(tmp_path / "model", build(THINKING), BASE)
    config = chat_campaign(model)
    stop = AnswerSampling(temperature=0.5, stop=("<|im_start|>", "Question:"))
    config = config.model_copy(update={"serving": stop})
    arguments = write_answering(model, tmp_path / "answering", config)
    named = dict(zip(arguments[::2], arguments[1::2], strict=True))
    written = json.loads(Path(named["--generation-config"], "generation_config.json").read_text())
    assert written["eos_token_id"] == [*ENDS, IDS["<|im_start|>"]]
    prepare(model, config)
    exported = json.loads((model / "generation_config.json").read_text())
    assert exported["eos_token_id"] == written["eos_token_id"]


def test_an_exported_folder_chats_with_the_campaigns_defaults(tmp_path: Path) -> None:
    model = save_folder(tmp_path / "model", build(THINKING), BASE)
    config = chat_campaign(
        model, system="be brief", chat_template_kwargs={"enable_thinking": False}
    )
    prepare(model, config)
    prepare(model, config)  # Twice is once.
    from transformers import AutoTokenizer, GenerationConfig

    turns = [{"role": "user", "content": "a"}]
    text = AutoTokenizer.from_pretrained(model).apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    said = "<|im_start|> system be brief <|im_end|> <|im_start|> user a <|im_end|>"
    assert " ".join(text.split()) == f"{said} <|im_start|> assistant [no]"
    read = GenerationConfig.from_pretrained(model)
    assert (read.do_sample, read.eos_token_id) == (False, [4, 5])


@pytest.mark.parametrize(
    ("method", "path", "body", "stops", "expected"),
    [
        ("POST", "/v1/chat/completions", '{"n": 1}', ["x"], {"n": 1, "stop": ["x"]}),
        ("POST", "/v1/completions", '{"n": 1}', ["x"], {"n": 1, "stop": ["x"]}),
        ("POST", "/v1/completions", '{"stop": "y"}', ["x"], {"stop": "y"}),
        ("POST", "/v1/completions", '{"stop": []}', ["x"], {"stop": []}),
        ("POST", "/v1/completions", '{"n": 1}', [], {"n": 1}),
        ("POST", "/v1/embeddings", '{"n": 1}', ["x"], {"n": 1}),
        ("POST", "/v1/completions", "[1]", ["x"], [1]),
    ],
)
def test_requests_without_stop_texts_get_the_campaigns(
    method: str, path: str, body: str, stops: list[str], expected: Any
) -> None:
    assert json.loads(with_stops(method, path, body.encode(), stops)) == expected


def test_a_body_that_is_no_json_is_passed_on() -> None:
    for body in (b"{", b"\xff", b"[" * 100_000):
        assert with_stops("POST", "/v1/completions", body, ["x"]) == body
    assert with_stops("GET", "/v1/completions", b"", ["x"]) == b""
