"""Bad input ends in one clear message and exit code 2, before an engine starts or a file is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.data.demo import BASE_MODEL
from align.errors import StoreError
from align.round.inputs import load_inputs
from align.round.session import claim_store
from align.store.changes.settle import settle
from launch.cli import main
from rollouts.errors import UserError
from tests.unit.campaigns import Watcher, campaign, no_engine, raw_campaign, rounds


def refusal(folder: Path, **changes: Any) -> str:
    """The message of a campaign that must be refused without a trace."""
    return refused(campaign(folder, **changes))


def refused(config: CampaignConfig) -> str:
    with pytest.raises(UserError) as caught:
        run_campaign(config, start_engine=no_engine, observer=Watcher())
    assert caught.value.exit_code == 2
    assert not config.folder.exists(), "something was written"
    return str(caught.value)


def model_folder(folder: Path, change: Callable[[Path], object]) -> dict[str, str]:
    """A copy of the demo model with one defect."""
    broken = folder / "model"
    shutil.copytree(BASE_MODEL, broken)
    change(broken)
    return {"model": str(broken)}


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


# the file itself, through the command


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", "sed: unknown key; did you mean 'seed'?"),
        (
            "rounds.0.steps=many",
            "rounds.0.steps: expected a whole number of at least 1, got 'many'",
        ),
        (
            "rounds.0.anchors.past={to: 'round:second', beta: 1}",
            "'round:second' names a round that comes later",
        ),
        ("rounds.0.sampling.group_size=1", "group_size 1; use at least 2"),
    ],
)
def test_a_campaign_that_is_not_valid(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    words: str,
) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(raw_campaign(tmp_path)))
    load_campaign(path)
    monkeypatch.setattr("sys.argv", ["keel", "run", str(path), "--set", override])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert [file.name for file in tmp_path.iterdir()] == ["campaign.yaml"]


# the model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors weights"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "pickled (pytorch_model.bin)",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (edit("config.json", head_dim=48), "head size 48 cannot be sampled on a CPU"),
    ],
    ids=["no-weights", "pickled", "no-tokenizer", "no-config", "bad-config", "head-dim"],
)
def test_a_model_folder_that_cannot_be_served(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    message = refusal(tmp_path, policy=model_folder(tmp_path, change))
    assert words in message
    assert "what to do:" in message
    assert str(tmp_path / "model") in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", "there is no folder './nowhere'"),
        ("demo://digit", "did you mean 'digits'?"),
        ("just-a-word", "there is no folder 'just-a-word'"),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, model: str, words: str) -> None:
    message = refusal(tmp_path, policy={"model": model})
    assert words in message
    if "there is no folder" in words:
        assert f"there is no {Path(model).absolute()}; paths in a campaign file start" in message
        assert "those of a command from the current one" in message


# prompts


def test_an_empty_prompt_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("")
    message = refusal(tmp_path, rounds=rounds({"prompts": str(file)}))
    assert f"{file}: holds no" in message


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"prompt": "sort _ 1', "prompts.jsonl:2"),
        ('["sort"]', "prompts.jsonl:2"),
        ('{"text": "sort"}', "no column 'prompt'"),
        ('{"prompt": "  "}', "the prompt in column 'prompt' is empty"),
        ('{"prompt": 7}', "holds a int, expected text or messages"),
        ('{"prompt": [{"role": "user"}]}', 'write messages as {"role": "user"'),
    ],
)
def test_a_bad_line_of_a_prompt_file_is_named(tmp_path: Path, bad: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "rev _ 1 2 3 4 5 ="}}\n{bad}\n')
    message = refusal(tmp_path, rounds=rounds({"prompts": str(file)}))
    assert words in message
    assert "prompts.jsonl:2" in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.jsonl", "nowhere.jsonl"),
        ("demo://revv", "known: rev"),
        ("demo://rev?m=3", "unknown option 'm'"),
        ("dema://rev", "did you mean 'demo'?"),
    ],
)
def test_a_prompt_source_that_is_not_there(tmp_path: Path, source: str, words: str) -> None:
    assert words in refusal(tmp_path, rounds=rounds({"prompts": source}))


def test_messages_for_a_model_without_a_chat_template(tmp_path: Path) -> None:
    file, held_out = tmp_path / "prompts.jsonl", tmp_path / "eval.jsonl"
    chat = [{"role": "user", "content": "rev"}]
    file.write_text(json.dumps({"prompt": chat, "answer": "1"}))
    held_out.write_text(json.dumps({"prompt": "sort", "answer": "1"}))
    suite = {"prompts": str(held_out), "items": 1}
    message = refusal(tmp_path, rounds=rounds({"prompts": str(file), "suite": suite}))
    assert "the model has no chat template" in message


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    message = refusal(tmp_path, rollouts={"max_model_len": 12})
    assert "has 8 tokens and max_tokens is 6, more than the context of 12" in message
    assert "raise rollouts.max_model_len" in message


def test_a_suite_prompt_longer_than_the_models_own_context(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "rev " * 62, "answer": "1"}))
    suite = {"name": "long", "prompts": str(file), "metric": "exact_match", "items": 1}
    message = refusal(tmp_path, suites=[suite])
    assert "more than the context of 64" in message
    assert "'long'" in message


def test_a_text_suite_with_windows_longer_than_the_context(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("rev _ 1 2 3 4 5 = " * 200)
    message = refusal(tmp_path, suites=[{"name": "story", "text": str(file), "window": 100}])
    assert "set its window to 63 or less" in message


# rewards


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        (None, "exact_mach", "did you mean 'exact_match'?"),
        (None, "no.such.module:reward", "cannot import 'no.such.module'"),
        (None, "missing.py:reward", "cannot import 'missing.py'"),
        ("def other(completions): return []", "rewards.py:reward", "no 'reward' in it"),
        ("def reward(texts): return []", "rewards.py:reward", "missing the argument 'completions'"),
        ("def reward(completions: return []", "rewards.py:reward", "SyntaxError"),
        ("raise SystemExit(0)", "rewards.py:reward", "SystemExit"),
        ("reward = 3", "rewards.py:reward", "not a function"),
        ("def reward(completions, label): return []", "rewards.py:reward", "label"),
    ],
)
def test_a_reward_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if code is not None:
        (tmp_path / "rewards.py").write_text(code)
    message = refusal(tmp_path, rounds=rounds({"rewards": [name]}))
    assert words in message
    assert "round" in message, "the message does not say where"


def test_an_option_a_reward_does_not_take(tmp_path: Path) -> None:
    reward = {"name": "length", "options": {"targett": 3}}
    message = refusal(tmp_path, rounds=rounds({"rewards": [reward]}))
    assert "rounds.0.rewards" in message
    assert "targett" in message


# suites


def test_a_suite_that_shares_items_with_training(tmp_path: Path) -> None:
    file = tmp_path / "leak.jsonl"
    lines = [{"prompt": "rev _ 1 2 3 4 5 =", "answer": "5 4 3 2 1"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    held_out = {"prompts": "demo://rev?split=eval", "items": 10}
    suite = {"name": "leak", "prompts": str(file), "metric": "exact_match", "items": 1}
    message = refusal(
        tmp_path, rounds=rounds({"prompts": str(file), "suite": held_out}), suites=[suite]
    )
    assert "suite 'leak' shares 1 of its 1 items with the training prompts of round" in message
    assert "hold these prompts out" in message


def test_a_suite_with_fewer_items_than_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text(json.dumps({"prompt": "rev _ 1 2 3 4 5 =", "answer": "5 4 3 2 1"}))
    suite = {"name": "few", "prompts": str(file), "metric": "exact_match", "items": 2}
    assert "set items to 1 or less" in refusal(tmp_path, suites=[suite])


def test_a_round_on_a_file_needs_held_out_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "rev _ 1 2 3 4 5 =", "answer": "5 4 3 2 1"}))
    message = refusal(tmp_path, rounds=rounds({"prompts": str(file)}))
    assert "has no prompts to be measured on" in message


# the store


def begin(config: CampaignConfig) -> None:
    """Make the store of a first run that stopped before its first round."""
    with claim_store(settle(config), load_inputs(config)):
        pass


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the database's shared memory and log, which a mere look may renew."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith(("-shm", "-wal"))
    }


def test_a_store_of_another_campaign_is_left_alone(tmp_path: Path) -> None:
    begin(campaign(tmp_path))
    before = contents(tmp_path / "store")
    with pytest.raises(StoreError) as caught:
        run_campaign(campaign(tmp_path, name="other"), start_engine=no_engine, observer=Watcher())
    assert caught.value.exit_code == 2
    for word in ("holds the campaign 'small', not 'other'", "set store to another"):
        assert word in str(caught.value)
    after = contents(tmp_path / "store")
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if not k.endswith(".db")} == {
        k: v for k, v in before.items() if not k.endswith(".db")
    }


def test_a_store_that_is_no_ledger(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "ledger.db").write_text("this is no database, and longer than a page header" * 100)
    with pytest.raises(UserError) as caught:
        run_campaign(campaign(tmp_path), start_engine=no_engine, observer=Watcher())
    assert str(store) in str(caught.value)
    assert [file.name for file in store.iterdir()] == ["ledger.db"]


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file stands where the folder should be")
    with pytest.raises(UserError) as caught:
        run_campaign(campaign(tmp_path), start_engine=no_engine, observer=Watcher())
    assert "store" in str(caught.value)
