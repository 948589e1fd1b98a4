"""Campaigns on chat models with something in the way: ``keel config check`` says it, writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.gate import SuiteConfig
from align.data.replay.buffer import ReplayBuffer
from align.gate.suites.harness.suite import load_harness
from align.report.forecast.check import unheard, untemplated
from align.round.inputs import load_inputs
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt
from tests.unit.align.learner.test_model_changes import campaign
from tests.unit.chats import IDS, IM, build, save_folder, words
from tests.unit.decided import keel
from tests.unit.rollouts.chat.test_chat_template import (
    DATED,
    DROPS_ANSWERS,
    DROPS_SYSTEM,
    NO_SYSTEM,
    THINKING,
)

CHANGES_PROMPT = "{{ messages | length | replace('1', 'a') | replace('2', 'b') }} " + IM


TURN = "<|im_start|> user a <|im_end|> <|im_start|> assistant"


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
    ("template", "policy", "written"),
    [
        (IM, {}, TURN),
        (IM, {"system": "be brief"}, f"<|im_start|> system be brief <|im_end|> {TURN}"),
        (NO_SYSTEM, {}, TURN),
        (THINKING, {"chat_template_kwargs": {"enable_thinking": False}}, f"{TURN} [no]"),
        (
            DATED,
            {"chat_template_kwargs": {"date_string": "26 Jul 2024"}},
            f"<unk> <unk> <unk> {TURN}",
        ),
        ({"default": IM, "tool_use": IM}, {}, TURN),
    ],
)
def test_templates_that_serve_are_taken(
    tmp_path: Path, template: Any, policy: Any, written: str
) -> None:
    """A question is written as the template and the policy's settings have it."""
    save_folder(tmp_path / "model", build(template))
    inputs = load_inputs(campaign(tmp_path, **policy))
    inputs.close()
    question = Prompt(id="q", messages=({"role": "user", "content": "a"},))
    assert words(inputs.encoder.encode(question)) == written


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
    acting = tuple(spec.model_copy(update={"tools": ("t.py:f",)}) for spec in config.rounds)
    assert untemplated(config.model_copy(update={"rounds": acting}), asked) == []
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


# chat settings of rounds and suites


def raw(tmp_path: Path, policy: Any = None, suite: Any = None, **changes: Any) -> CampaignConfig:
    """Return the campaign with other settings of its round, and with a suite of its own."""
    content = campaign(tmp_path, **(policy or {})).model_dump(mode="json", exclude_defaults=True)
    content["policy"]["model"] = str(tmp_path / "model")
    content["rounds"][0] |= changes
    if suite is not None:
        source = {"source": str(tmp_path / "eval.jsonl")}
        content["suites"] = [
            {"name": "other", "prompts": source, "metric": "exact_match", "items": 8, **suite}
        ]
    return CampaignConfig.model_validate(content)


def read(config: CampaignConfig) -> dict[str, str]:
    """Return how the first prompt of the round, of its suite and of the other suite is rendered."""
    inputs = load_inputs(config)
    inputs.close()
    pools = {"train": inputs.prompts["brief"], **{s.name: s.pool for s in inputs.suites}}
    return {name: words(inputs.encoder.encode(pool[0])) for name, pool in pools.items()}


def test_a_round_and_a_suite_have_system_messages_of_their_own(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", build())
    told = read(raw(tmp_path, {"system": "b"}, {"system": "c"}, system="be brief"))
    assert "system be brief" in told["train"] and "system be brief" in told["brief"]
    assert "system c" in told["other"]
    told = read(raw(tmp_path, {"system": "b"}, {}))
    assert all("system b " in text for text in told.values())


def test_a_round_and_a_suite_switch_variables_of_the_template(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", build(THINKING))
    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    sampling = {"max_tokens": 4, "chat_template_kwargs": off}
    told = read(raw(tmp_path, None, {"chat_template_kwargs": on}, sampling=sampling))
    assert told["train"].endswith("[no]") and told["brief"].endswith("[no]")
    assert not told["other"].endswith("[no]")
    told = read(raw(tmp_path, {"chat_template_kwargs": off}, {"chat_template_kwargs": on}))
    assert told["train"].endswith("[no]") and not told["other"].endswith("[no]")


def test_replayed_prompts_keep_their_chat_settings(tmp_path: Path) -> None:
    prompt = Prompt(
        id="p", messages=({"role": "user", "content": "a"},), round="brief",
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    plain = replace(prompt, id="q", chat_template_kwargs={})
    ReplayBuffer({"brief": [prompt, plain]}).save(tmp_path / "replay.jsonl")
    lines = (tmp_path / "replay.jsonl").read_text().splitlines()
    assert ["chat_template_kwargs" in line for line in lines] == [False, True, False]
    assert ReplayBuffer.load(tmp_path / "replay.jsonl").entries["brief"] == (prompt, plain)


@pytest.mark.parametrize(
    ("template", "suite", "changes", "said"),
    [
        (IM, {}, {"sampling": {"max_tokens": 4, "chat_template_kwargs": {"thinking": True}}},
         "reads no variable 'thinking'"),
        (IM, {"chat_template_kwargs": {"thinking": True}}, {}, "reads no variable 'thinking'"),
        (DROPS_SYSTEM, {}, {"system": "be brief"}, "leaves out the system message"),
        (NO_SYSTEM, {"system": "be brief"}, {}, "no system"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_follow_them_is_refused(
    tmp_path: Path, template: str, suite: Any, changes: Any, said: str
) -> None:
    save_folder(tmp_path / "model", build(template))
    with pytest.raises(UserError) as caught:
        load_inputs(raw(tmp_path, None, suite, **changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("of", ["round", "suite"])
def test_prompts_with_system_messages_of_their_own_are_refused(tmp_path: Path, of: str) -> None:
    save_folder(tmp_path / "model", build())
    suite, changes = ({"system": "be"}, {}) if of == "suite" else ({}, {"system": "be"})
    config = raw(tmp_path, None, suite, **changes)
    turns = [{"role": "system", "content": "brief"}, {"role": "user", "content": "a"}]
    rows = "".join(
        json.dumps(
            {"prompt": [turns[0], {"role": "user", "content": f"{'a ' * i}b"}], "answer": "b"}
        )
        + "\n"
        for i in range(8)
    )
    (tmp_path / ("eval.jsonl" if of == "suite" else "train.jsonl")).write_text(rows)
    with pytest.raises(UserError, match="has a system message of its own") as caught:
        load_inputs(config)
    assert "jsonl:1" in caught.value.what


def test_text_prompts_have_no_chat_settings(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", build())
    for changes in ({"system": "be"}, {"sampling": {"chat_template_kwargs": {"a": 1}}}):
        config = raw(tmp_path, **changes)
        (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
        with pytest.raises(UserError, match="the prompts are text") as caught:
            load_inputs(config)
        assert "chat: true" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system": "be", "suite": {"system": "be"}}, "suite.system is for suite.prompts"),
        (
            {"prompts": None, "rewards": [], "algorithm": "sft", "data": "a.jsonl", "system": "be"},
            "system is for prompts that are sampled for",
        ),
    ],
)
def test_chat_settings_without_prompts_are_refused(changes: Any, said: str) -> None:
    base = {"name": "r", "prompts": "a.jsonl", "rewards": ["exact_match"], "steps": 1}
    with pytest.raises(ValueError, match=said):
        RoundConfig.model_validate({**base, **changes})


def test_unset_chat_settings_are_in_no_dump(tmp_path: Path) -> None:
    config = raw(tmp_path, None, {})
    young = ("system", "chat_template_kwargs", "stop")
    content = config.content()
    for values in (content["defaults"], *content["rounds"], *content["suites"]):
        assert not {"system", "chat_template_kwargs"} & set(values)
        assert not set(young) & set(values.get("sampling", {}))
        assert "chat_template_kwargs" not in (values.get("prompts") or {})
    again = raw(tmp_path, None, {}, system="be brief")
    assert again.hash() != config.hash()
    assert CampaignConfig.model_validate(again.model_dump(mode="json")).hash() == again.hash()
