"""``keel init``: what it writes passes the check for its model and data, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from align.config.file import load_campaign, parse_campaign
from align.gate.power.underpowered import foresee
from align.round.inputs import load_inputs
from launch.cli import app
from launch.starter import Sizes, Wishes, campaign_text
from rollouts.engines import ENGINES
from rollouts.errors import UserError
from tests.unit.chats import build, save_folder

DIGITS = [f"{a}{b}{c}" for a in range(10) for b in range(10) for c in range(10)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spaced(text: str) -> str:
    return " ".join(text)


def asked(text: str) -> str:
    """A prompt in the words of the tiny world."""
    return f"rev _ {spaced(text)} ="


def write_prompts(name: str, count: int = 1000) -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": asked(text), "answer": spaced(text[::-1])} for text in DIGITS[:count]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def init(*arguments: str) -> str:
    ran = CliRunner().invoke(app, ["init", *arguments])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def check(file: str) -> None:
    """Check the campaign as ``keel config check`` does; an equal candidate passes more often than not."""
    ran = CliRunner().invoke(app, ["config", "check", file])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert "valid" in ran.stdout


def test_without_a_word_it_is_the_tiny_world() -> None:
    assert "campaign.yaml: written; next: keel plan campaign.yaml" in init()
    check("campaign.yaml")
    config = load_campaign(Path("campaign.yaml")).config
    assert (config.name, config.folder) == ("campaign", Path("runs/campaign"))
    assert [reward.name for reward in config.rounds[0].rewards] == ["exact_match"]


def test_without_vllm_it_names_a_backend_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    init("with.yaml")
    assert "backend" not in Path("with.yaml").read_text()
    monkeypatch.setattr(ENGINES["vllm"], "module", "a_package_that_is_not_there")
    init("without.yaml")
    check("without.yaml")
    assert load_campaign(Path("without.yaml")).config.rollouts.backend == "transformers"


def test_ones_own_prompts_and_reward() -> None:
    write_prompts("data/mine.jsonl")
    Path("score.py").write_text(
        "def nearly(completions, answer): return [0.5] * len(completions)\n"
    )
    init(
        "first.yaml",
        "--prompts",
        "data/mine.jsonl",
        "--reward",
        "score.py:nearly",
        "--reward",
        "length",
    )
    check("first.yaml")
    (spec,) = load_campaign(Path("first.yaml")).config.rounds
    assert spec.prompts is not None
    assert (spec.prompts.source, spec.prompts.heldout) == ("data/mine.jsonl", 0.1)
    assert [reward.name for reward in spec.rewards] == ["score.py:nearly", "length"]


def test_paths_are_restated_from_the_files_folder() -> None:
    """Paths are given from the current folder and written from the file's."""
    write_prompts("data/mine.jsonl")
    Path("deep/er").mkdir(parents=True)
    init(
        "deep/er/one.yaml",
        "--prompts",
        "data/mine.jsonl",
        "--reward",
        "exact_match",
        "--store",
        "runs/x",
    )
    text = Path("deep/er/one.yaml").read_text()
    assert "../../data/mine.jsonl" in text and "../../runs/x" in text
    check("deep/er/one.yaml")
    assert load_campaign(Path("deep/er/one.yaml")).config.folder == Path("runs/x")


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "kto", "reward_model"])
def test_examples_of_a_file(algorithm: str) -> None:
    rows = [
        {"prompt": asked(text), "completion": spaced(text[::-1]), "label": number % 3 > 0}
        if algorithm in ("sft", "kto")
        else {"prompt": asked(text), "chosen": spaced(text[::-1]), "rejected": spaced("0" + text)}
        for number, text in enumerate(DIGITS)
    ]
    Path("said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    init("taught.yaml", "--prompts", "said.jsonl", "--algorithm", algorithm, "--heldout", "0.2")
    check("taught.yaml")


def test_what_is_written_says_what_it_means() -> None:
    init("one.yaml")
    lines = Path("one.yaml").read_text().splitlines()
    assert sum("#" in line for line in lines) >= 8
    assert max(map(len, lines)) <= 110


def test_the_margin_is_one_that_the_items_can_test() -> None:
    write_prompts("few.jsonl", 300)
    write_prompts("many.jsonl", 1000)
    margins = []
    for name in ("few", "many"):
        init(f"{name}.yaml", "--prompts", f"{name}.jsonl", "--reward", "exact_match")
        config = load_campaign(Path(f"{name}.yaml")).config
        inputs = load_inputs(config)
        plan = foresee(config, inputs.suites, None)
        inputs.close()
        assert all(suite.joint > 0.5 for suite in plan.suites)
        margins.append(config.rounds[0].suite.margin)
    assert margins[0] > margins[1]


def test_a_model_that_vllm_refuses_is_given_another_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_prompts("data.jsonl")
    save_folder(Path("model"), build(chat=None), head_dim=16)
    options = ("--model", "model", "--prompts", "data.jsonl", "--reward", "exact_match")
    with pytest.raises(UserError, match="head size 16"):
        init(*options)
    init(*options, "--backend", "transformers")
    assert load_campaign(Path("campaign.yaml")).config.rollouts.backend == "transformers"
    check("campaign.yaml")


def test_a_file_that_is_there_stays() -> None:
    Path("campaign.yaml").write_text("mine")
    with pytest.raises(UserError, match="left as it is"):
        init()
    assert Path("campaign.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "there is no folder"),
        (["--prompts", "nowhere.jsonl", "--reward", "length"], "nowhere.jsonl"),
        (["--reward", "lenght"], "did you mean 'length'"),
        (["--reward", "nowhere.py:f"], "nowhere.py"),
        (["--algorithm", "grop"], "did you mean 'grpo'"),
        (["elsewhere/campaign.yaml"], "no such folder"),
        (["--backend", "transformer"], "did you mean 'transformers'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(
    folder: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        init(*arguments)
    assert message in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["2024", "0x1f", "12.5", "null", "true", "1e3"])
def test_a_name_that_yaml_reads_as_something_else_stays_a_name(name: str) -> None:
    write_prompts("data.jsonl", 200)
    wishes = Wishes(
        model="demo://digits",
        source="data.jsonl",
        rewards=("exact_match",),
        algorithm="grpo",
        heldout=0.1,
        store=None,
    )
    file = Path(f"{name}.yaml")
    assert parse_campaign(campaign_text(file, wishes, Sizes()), file).config.name == name


@pytest.mark.parametrize("rendered", [False, True])
def test_texts_for_a_chat_model_become_chats(rendered: bool) -> None:
    save_folder(Path("model"), build())
    texts = [f"user {spaced(text)}" for text in DIGITS[:400]]
    if rendered:
        texts = [f"<|im_start|> {text} <|im_end|> <|im_start|> assistant" for text in texts]
    rows = [json.dumps({"prompt": text, "answer": "a"}) + "\n" for text in texts]
    Path("data.jsonl").write_text("".join(rows))
    told = init("--model", "model", "--prompts", "data.jsonl", "--reward", "exact_match")
    assert ("user's message" in told) is not rendered
    (spec,) = load_campaign(Path("campaign.yaml")).config.rounds
    assert spec.prompts is not None and spec.prompts.chat is not rendered


def test_a_mistake_is_told_by_the_name_of_the_file() -> None:
    with pytest.raises(UserError) as caught:
        init("mine.yaml", "--algorithm", "grop")
    assert caught.value.where == "mine.yaml"


def test_a_folder_that_takes_no_file_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root may write anywhere, so the refusals are made up; the second comes when all is checked."""
    monkeypatch.setattr("launch.starter.os.access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written"):
        init("mine.yaml", "--model", "./nowhere")


def test_a_file_that_cannot_be_written_after_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts("data.jsonl")
    plain = Path.open

    def refuse(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "x":
            raise OSError(30, "Read-only file system")
        return plain(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot be written") as caught:
        init("mine.yaml", "--prompts", "data.jsonl", "--reward", "exact_match")
    assert caught.value.where == "mine.yaml"


def test_a_reward_that_raises_is_told(folder: Path) -> None:
    """The message is that of the check, which calls every reward on a row."""
    write_prompts("data.jsonl")
    Path("broken.py").write_text("def f(completions, answer): raise ValueError('no such luck')\n")
    with pytest.raises(UserError, match="no such luck"):
        init("--prompts", "data.jsonl", "--reward", "broken.py:f")
    assert list(folder.glob("*.yaml")) == []


def test_too_few_prompts_for_a_verdict_are_told(folder: Path) -> None:
    write_prompts("three.jsonl", 3)
    with pytest.raises(UserError):
        init("--prompts", "three.jsonl", "--reward", "exact_match")
    assert [file.name for file in folder.iterdir()] == ["three.jsonl"]
