"""Teachers, critics and what is left of a file: checked before an engine starts, and counted in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.demo import BASE_MODEL
from align.learner.folder.sizes import learner_memory, num_parameters
from align.learner.teachers.companions import tokens_of
from align.round.companion_models import check_memory
from align.round.inputs import load_inputs
from rollouts.errors import UserError
from tests.unit.campaigns import Watcher, campaign, no_engine, raw_campaign, rounds

JUDGE = {"algorithm": "reward_model", "data": "pairs.jsonl", "prompts": None, "rewards": []}
NAMED: dict[str, Callable[[str], dict[str, Any]]] = {
    "teacher": lambda folder: {"name": "distill", "teacher": f"model:{folder}"},
    "critic.model": lambda folder: {"name": "ppo", "critic": {"model": folder}},
}
"""Algorithms that have a model beside the policy, by the model's key."""


def refusal(config: CampaignConfig) -> str:
    with pytest.raises(UserError) as caught:
        run_campaign(config, start_engine=no_engine, observer=Watcher())
    assert not config.folder.exists(), "something was written"
    return str(caught.value)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def renamed(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["x"] = content["model"]["vocab"].pop("rev")
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model.safetensors"), "no *.safetensors weights"),
        (without("config.json"), "no config.json"),
        (without("tokenizer.json"), "no tokenizer"),
        (renamed, "only one of them has the token 'rev' as 13"),
    ],
)
def test_a_folder_that_is_no_model_beside_the_policy(
    tmp_path: Path, key: str, change: Callable[[Path], object], words: str
) -> None:
    folder = copytree(BASE_MODEL, tmp_path / "model")
    change(folder)
    algorithm = NAMED[key](str(folder))
    assert words in refusal(campaign(tmp_path, rounds=rounds({}, {"algorithm": algorithm})))


@pytest.mark.parametrize("key", NAMED)
def test_a_model_that_is_not_there_is_of_a_round(tmp_path: Path, key: str) -> None:
    algorithm = NAMED[key]("/nowhere")
    message = refusal(campaign(tmp_path, rounds=rounds({}, {"algorithm": algorithm})))
    assert f"rounds.round1.algorithm.{key}: there is no model folder '/nowhere'" in message


@pytest.mark.parametrize("key", NAMED)
def test_a_home_folder_and_another_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """``~`` is read as the learner reads it, and tokens are compared, not files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = copytree(BASE_MODEL, tmp_path / "model") / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "decoder": {"type": "Fuse"}}))
    config = campaign(tmp_path, rounds=rounds({"algorithm": NAMED[key]("~/model")}))
    load_inputs(config).close()
    part = key.removesuffix(".model")
    memory = learner_memory(BASE_MODEL, config.policy, config.rounds[0])
    assert getattr(memory, part) >= 4 * num_parameters(BASE_MODEL)


@pytest.mark.parametrize(
    ("vocabulary", "added"),
    [
        ({"b": 1, "a": 0, "<eos>": 2}, []),
        ({"a": 0, "b": 1}, [{"content": "<eos>", "id": 2}]),
        ([["a", -1.0], ["b", -2.0], ["<eos>", 0]], []),
        ([["a", -1.0], ["b", -2.0]], [{"content": "<eos>", "id": 2, "special": True}]),
    ],
)
def test_tokens_by_hand(tmp_path: Path, vocabulary: Any, added: list[dict[str, Any]]) -> None:
    content = {"model": {"vocab": vocabulary}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokens_of(tmp_path, "here") == {"a": 0, "b": 1, "<eos>": 2}


def test_a_teachers_long_prompt_is_of_a_round(tmp_path: Path) -> None:
    taught = {"name": "distill", "teacher": "parent", "demonstration": "answer"}
    assert "rounds.round0.algorithm.teacher" in refusal(
        campaign(tmp_path, rounds=rounds({"algorithm": taught}), rollouts={"max_model_len": 20})
    )
    taught["demonstration"] = "nothing"
    message = refusal(campaign(tmp_path, rounds=rounds({"algorithm": taught})))
    assert "rounds.round0.algorithm.demonstration: prompt" in message


def test_nothing_left_to_learn_from(tmp_path: Path) -> None:
    rows = [{"prompt": f"rev _ {i} =", "chosen": f"{i}", "rejected": "0 0"} for i in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "algorithm": {"name": "dpo", "pairs": "file"},
        "data": {"source": str(tmp_path / "pairs.jsonl"), "heldout": 0.999999},
        "prompts": None,
        "rewards": [],
    }
    message = refusal(campaign(tmp_path, rounds=rounds(spec)))
    assert "rounds.round0.data.heldout: all 10 examples are held out" in message
    assert "heldout is 0.999999" in message and "lower heldout" in message


# Memory


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm": {"name": "distill", "teacher": "round:first"}}, {"anchors": 3 * 4}),
        ({"algorithm": {"name": "distill", "teacher": "base"}}, {"anchors": 2 * 4}),
        ({"algorithm": {"name": "distill", "teacher": f"model:{BASE_MODEL}"}}, {"teacher": 4}),
        (
            {"algorithm": {"name": "distill", "teacher": "round:first", "follow": 0.1}},
            {"teacher": 4, "anchors": 2 * 4},
        ),
        ({"algorithm": "dpo"}, {"anchors": 3 * 4}),
        (JUDGE, {"reward_model": 16, "weights": 4, "anchors": 0}),
    ],
)
def test_models_beside_the_policy(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    """Bytes a parameter: four of a frozen copy, sixteen of a second model that learns."""
    raw = raw_campaign(tmp_path)
    raw["rounds"][1] |= changes
    config = CampaignConfig.model_validate(raw)
    p = num_parameters(BASE_MODEL)
    found = learner_memory(BASE_MODEL, config.policy, config.rounds[1])
    assert {name: getattr(found, name) / p for name in expected} == expected


def test_a_critic_beside_all_there_is(tmp_path: Path) -> None:
    """Policy, two anchors and critic take 40 bytes a parameter: the critic's 16 alone would fit."""
    config = campaign(tmp_path, rounds=rounds({"algorithm": "ppo"}))
    memory = learner_memory(BASE_MODEL, config.policy, config.rounds[0])
    room = 40 * num_parameters(BASE_MODEL) + 100
    check_memory(memory, 100, room, where="here")
    with pytest.raises(UserError, match="learner and engines need") as caught:
        check_memory(memory, 101, room, where="here")
    assert caught.value.where == "here"
    assert "shared" in str(caught.value.remedy) and "lora" not in str(caught.value.remedy)


def test_a_round_with_a_critic_is_compared_with_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "align.round.companion_models._shared_device", lambda model, config: (1 << 30, 1 << 30)
    )
    message = refusal(campaign(tmp_path, rounds=rounds({"algorithm": "ppo"})))
    assert "rounds.round0.algorithm.critic: learner and engines need 1.0 GiB" in message
    shared = {"name": "ppo", "critic": {"model": "shared"}}
    load_inputs(campaign(tmp_path, rounds=rounds({"algorithm": shared}))).close()
