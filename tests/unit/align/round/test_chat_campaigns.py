"""Campaigns on chat models with something in the way: ``keel config check`` says it, writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.gate import SuiteConfig
from align.gate.suites.harness.suite import load_harness
from align.report.forecast.check import unheard, untemplated
from align.round.inputs import load_inputs
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt
from tests.unit.align.learner.test_model_changes import campaign
from tests.unit.chats import IDS, IM, build, save_folder
from tests.unit.decided import keel
from tests.unit.rollouts.chat.test_chat_template import (
    DATED,
    DROPS_ANSWERS,
    DROPS_SYSTEM,
    NO_SYSTEM,
    THINKING,
)

CHANGES_PROMPT = "{{ messages | length | replace('1', 'a') | replace('2', 'b') }} " + IM


def check(tmp_path: Path, policy: Any = None, **changes: Any) -> tuple[int, str, str]:
    """Run the command on a campaign file; nothing may be written."""
    config = campaign(tmp_path, **(policy or {}))
    content = config.model_dump(mode="json", exclude_defaults=True)
    content["policy"]["model"] = str(tmp_path / "model")
    content["rounds"][0] |= changes
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(content))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = keel("config", "check", str(file))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    return result


@pytest.mark.parametrize(
    ("template", "policy", "message"),
    [
        (None, {}, "has no chat template"),
        (DATED, {}, "prints the date"),
        (NO_SYSTEM, {"system": "be brief"}, "no system"),
        (DROPS_SYSTEM, {"system": "be brief"}, "leaves out the system message"),
        (IM, {"chat_template_kwargs": {"enable_thinking": False}}, "'enable_thinking'"),
        (IM, {"chat_template_kwargs": {"messages": []}}, "set by the caller"),
        ("{{ messages[0]['content'] | nosuchfilter }}", {}, "nosuchfilter"),
        ("{% for m in messages %}", {}, "chat template"),
    ],
)
def test_a_template_in_the_way_is_one_message(
    tmp_path: Path, template: Any, policy: Any, message: str
) -> None:
    save_folder(tmp_path / "model", build(template))
    code, _, error = check(tmp_path, policy)
    assert code == 2, error
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (DROPS_ANSWERS, "leaves out what the assistant says"),
        (CHANGES_PROMPT, "changes the prompt once it is answered"),
        (DATED, "prints the date"),
    ],
)
@pytest.mark.parametrize(
    "algorithm",
    ["sft", {"name": "dpo", "pairs": "file"}, {"name": "kto", "ratings": "file"}, "reward_model"],
)
def test_a_template_that_spoils_examples_is_one_message(
    tmp_path: Path, template: str, algorithm: Any, message: str
) -> None:
    save_folder(tmp_path / "model", build(template))
    turns = [{"role": "user", "content": "a"}]
    rows = [
        {
            "prompt": turns,
            "completion": "b",
            "label": True,
            "chosen": f"b {'c ' * i}",
            "rejected": "d",
        }
        for i in range(40)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    changes = {"prompts": None, "rewards": [], "data": {"source": str(data)}, "suite": {}}
    code, _, error = check(tmp_path, algorithm=algorithm, **changes)
    assert code == 2 and message in error, error


@pytest.mark.parametrize(
    ("template", "policy"),
    [
        (IM, {}),
        (IM, {"system": "be brief"}),
        (NO_SYSTEM, {}),
        (THINKING, {"chat_template_kwargs": {"enable_thinking": False}}),
        (DATED, {"chat_template_kwargs": {"date_string": "26 Jul 2024"}}),
        ({"default": IM, "tool_use": IM}, {}),
    ],
)
def test_templates_that_serve_are_taken(tmp_path: Path, template: Any, policy: Any) -> None:
    save_folder(tmp_path / "model", build(template))
    load_inputs(campaign(tmp_path, **policy)).close()


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"eos_token_id": "</s>"}', "eos_token_id is"), ("{", "is not JSON")],
)
def test_a_generation_config_that_cannot_be_read_is_one_message(
    tmp_path: Path, content: str, message: str
) -> None:
    save_folder(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(content)
    code, _, error = check(tmp_path)
    assert code == 2 and message in error, error


def test_every_reader_of_a_campaign_ends_answers_alike(tmp_path: Path) -> None:
    """Prompts of the round, of the gate and of the general pool are asked with the same ends."""
    save_folder(tmp_path / "model", build(eos="<|endoftext|>"), {"eos_token_id": [4, 5]})
    inputs = load_inputs(campaign(tmp_path))
    assert set(inputs.encoder.eos_ids) == {IDS["<|endoftext|>"], IDS["<|im_end|>"]}
    for suite in inputs.suites:
        assert suite.sampling is not None
        asked = inputs.encoder.ended(suite.sampling)
        assert asked.stop_token_ids == (IDS["<|im_end|>"],)
    inputs.close()


@pytest.mark.parametrize("is_chat", [True, False])
def test_chat_settings_of_a_campaign_without_chats_are_named(tmp_path: Path, is_chat: bool) -> None:
    save_folder(tmp_path / "model")
    config = campaign(tmp_path, system="be brief")
    inputs = load_inputs(config)
    text = Prompt(id="p", text="a")
    if not is_chat:
        suites = [replace(suite, prompts=(text,)) for suite in inputs.suites]
        inputs = replace(inputs, prompts={"brief": [text]}, suites=suites)
    assert [line.partition(":")[0] for line in unheard(config, inputs)] == ["policy.system"] * (
        not is_chat
    )
    inputs.close()


@pytest.mark.parametrize(
    ("text", "template", "is_told"),
    [("a", IM, True), ("a", None, False), ("<|im_start|> user a <|im_end|>", IM, False)],
    ids=["plain", "no template", "rendered already"],
)
def test_texts_beside_a_chat_template_are_named(
    tmp_path: Path, text: str, template: str | None, is_told: bool
) -> None:
    save_folder(tmp_path / "model", build(IM))
    config = campaign(tmp_path)
    inputs = load_inputs(config)
    assert untemplated(config, inputs) == []
    encoder = PromptEncoder(build(template))
    asked = replace(inputs, prompts={"brief": [Prompt(id="p", text=text)]}, encoder=encoder)
    lines = untemplated(config, asked)
    assert [line.partition(":")[0] for line in lines] == ["round brief"] * is_told
    inputs.close()


def test_a_harness_task_in_chats_is_held_to_the_same(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "docs.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 3)
    (tmp_path / "task.yaml").write_text(
        "task: words\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: ['c'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    harness = {
        "task": "words", "include_path": str(tmp_path), "chat_template": True,
        "data_files": {"test": str(tmp_path / "docs.jsonl")},
    }  # fmt: skip
    suite = SuiteConfig.model_validate({"name": "words", "items": 1, "harness": harness})
    with pytest.raises(UserError, match="prints the date"):
        load_harness(suite, "suites.0", PromptEncoder(build(DATED)), 64)
    assert load_harness(suite, "suites.0", PromptEncoder(build(IM)), 64).items
