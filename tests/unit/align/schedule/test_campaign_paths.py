"""Paths in a campaign file start from its folder, whatever the current one; those of ``--set`` do not."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.config.file import CampaignFile, load_campaign
from align.round.inputs import load_inputs
from align.schedule.claims import Dues
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger
from launch.cluster.jobs import jobs
from rewards.rubric import build_rubric
from rollouts.errors import UserError
from tests.unit.schedules import START

RAW: dict[str, Any] = {
    "name": "small",
    "policy": {"model": "demo://digits"},
    "defaults": {"replay": {"general_prompts": "data/general.jsonl"}},
    "rounds": [
        {
            "name": "first",
            "prompts": "data/new.jsonl",
            "rewards": ["mine.py:score", {"name": "naive_bayes", "options": {"data": "data/said.jsonl"}}],
            "suite": {"prompts": "data/held.jsonl", "items": 1},
            "steps": 1,
        },
        {
            "name": "second",
            "algorithm": "sft",
            "data": {"source": "data/shown.jsonl", "heldout_source": "data/apart.jsonl"},
            "steps": 1,
        },
        {
            "name": "third",
            "algorithm": {"name": "distill", "teacher": "model:models/teacher"},
            "prompts": "data/new.jsonl",
            "rewards": ["exact_match"],
            "steps": 1,
        },
    ],
    "suites": [
        {"name": "text", "text": "data/text.txt"},
        {
            "name": "task",
            "harness": {
                "task": "t", "include_path": "tasks",
                "data_files": {"test": ["data/a.jsonl", "data/b.jsonl"]},
            },
        },
    ],
}  # fmt: skip
FILES = (
    "data/general.jsonl", "data/new.jsonl", "data/said.jsonl", "data/held.jsonl", "data/shown.jsonl",
    "data/apart.jsonl", "data/text.txt", "data/a.jsonl", "data/b.jsonl", "models/teacher", "tasks",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a campaign and all that it names."""
    folder = tmp_path / "home"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"prompt": "p", "completion": "c"}\n')
    (folder / "mine.py").write_text("def score(completions): return [3.0] * len(completions)\n")
    (folder / "campaign.yaml").write_text(json.dumps(RAW))
    return folder


def load(file: Path, *overrides: str) -> CampaignConfig:
    return load_campaign(file, overrides).config


def paths_of(config: CampaignConfig) -> set[str]:
    """Every path that a campaign would open."""
    first, second, third = config.rounds
    text, task = config.suites
    assert first.prompts and first.suite.prompts and first.replay.general_prompts and second.data
    assert (
        task.harness
        and task.harness.include_path
        and text.text
        and third.algorithm.teacher_snapshot
    )
    return {
        first.prompts.source,
        first.suite.prompts.source,
        first.replay.general_prompts.source,
        first.rewards[1].options["data"],
        second.data.source,
        second.data.heldout_source or "",
        third.algorithm.teacher_snapshot.removeprefix("model:"),
        text.text,
        task.harness.include_path,
        *task.harness.data_files["test"],
    }


@pytest.mark.parametrize("current", [".", "elsewhere", "home", "home/data"])
def test_every_path_starts_from_the_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str
) -> None:
    (tmp_path / current).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / current)
    config = load(home / "campaign.yaml")
    assert {str(Path(path).resolve()) for path in paths_of(config)} == {
        str((home / name).resolve()) for name in FILES
    }
    assert config.folder.resolve() == home / "runs" / "small"
    assert config.ledger_url.endswith("home/runs/small/ledger.db") or current.startswith("home")
    rubric = build_rubric(config.rounds[0].rewards[:1])
    rubric.close()


def test_a_campaign_means_the_same_from_everywhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of a store, and what a campaign is compared by, name no folder of a machine."""
    contents = []
    for folder in (home, tmp_path, home / "data"):
        monkeypatch.chdir(folder)
        contents.append(load(home / "campaign.yaml").content())
    assert contents[0] == contents[1] == contents[2]
    assert str(tmp_path) not in json.dumps(contents)
    assert "home" not in json.dumps(contents)
    assert contents[0] == CampaignConfig.model_validate(RAW).content()


def test_what_is_shown_of_a_path_is_short(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages name it as somebody in the current folder would."""
    monkeypatch.chdir(tmp_path)
    config = load(home / "campaign.yaml")
    assert str(config.folder) == "home/runs/small"
    assert config.suites[0].text == "home/data/text.txt"


def test_overrides_start_from_the_current_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "new.jsonl").write_text('{"prompt": "mine"}\n')
    (tmp_path / "other.py").write_text("def score(completions): return [1.0] * len(completions)\n")
    config = load(
        home / "campaign.yaml",
        "rounds.first.prompts=data/new.jsonl",
        "rounds.first.rewards=[{name: other.py:score}]",
        "store=runs/mine",
        "ledger=sqlite:///mine.db",
    )
    assert config.rounds[0].prompts is not None
    assert config.rounds[0].prompts.source == "data/new.jsonl"
    assert config.rounds[0].rewards[0].name == "other.py:score"
    assert config.folder == Path("runs/mine")
    assert config.ledger_url == "sqlite:///mine.db"
    assert config.suites[0].text == "home/data/text.txt"


def test_names_that_are_no_files_stay_as_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(
        home / "campaign.yaml",
        "policy.model=org/model-1.5B",
        "rounds.first.prompts=org/prompts",
        "suites.text={name: judged, prompts: demo://general, metric: {name: exact_match}}",
    )
    assert config.rounds[0].prompts is not None
    assert (config.policy.model, config.rounds[0].prompts.source) == (
        "org/model-1.5B",
        "org/prompts",
    )


def test_absolute_paths_and_the_environment_stay_as_they_are(home: Path, tmp_path: Path) -> None:
    raw = {**RAW, "store": str(tmp_path / "store"), "ledger": "env:MY_LEDGER"}
    (home / "campaign.yaml").write_text(json.dumps(raw))
    config = load(home / "campaign.yaml")
    assert config.folder == tmp_path / "store"
    assert config.ledger == "env:MY_LEDGER"


def test_a_store_that_an_earlier_version_began_is_found_with_a_note(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "small").mkdir(parents=True)
    file = load_campaign(home / "campaign.yaml")
    assert file.config.folder == Path("runs/small")
    (note,) = file.notes
    assert "runs/small is taken from the current folder" in note and "../runs/small" in note
    (home / "runs" / "small").mkdir(parents=True)
    file = load_campaign(home / "campaign.yaml")
    assert (file.config.folder, file.notes) == (Path("home/runs/small"), ())


def test_data_beside_the_current_folder_is_found_with_a_note(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (home / "data" / "text.txt").rename(tmp_path / "text.txt")
    file = with_text(home, "text.txt")
    assert file.config.suites[0].text == "text.txt"
    assert any("text.txt is taken from the current folder" in note for note in file.notes)


def test_a_missing_file_is_named_where_it_should_lie(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (home / "data" / "new.jsonl").unlink()
    first = {**RAW["rounds"][0], "rewards": ["exact_match"]}
    raw = {**RAW, "suites": [], "rounds": [first]}
    (home / "campaign.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        load_inputs(load(home / "campaign.yaml"))
    assert caught.value.where == "rounds.first.prompts: home/data/new.jsonl"


def with_text(home: Path, text: str) -> CampaignFile:
    raw = {**RAW, "suites": [{"name": "text", "text": text}, RAW["suites"][1]]}
    (home / "campaign.yaml").write_text(json.dumps(raw))
    return load_campaign(home / "campaign.yaml")


def test_a_copy_and_a_pickle_keep_both(home: Path) -> None:
    config = load(home / "campaign.yaml")
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):  # noqa: S301
        assert paths_of(other) == paths_of(config)
        assert other.content() == config.content()


def test_rounds_that_fell_due_find_their_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger has them as the campaign file states them."""
    monkeypatch.chdir(tmp_path)
    config = load(home / "campaign.yaml", "rounds.first.manual=true")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    Dues(ledger.database, config).claim_now("first", START)
    (claim,) = claimed_rounds(ledger.database, config.places)
    assert claim.spec.prompts is not None and claim.spec.prompts.source == "home/data/new.jsonl"
    (bare,) = claimed_rounds(ledger.database)
    assert bare.spec.prompts is not None and bare.spec.prompts.source == "data/new.jsonl"


def test_a_job_is_sent_what_the_file_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = dict(jobs.files_named(RAW, Path("home")))
    assert named["rounds.0.prompts"] == Path("home/data/new.jsonl")
    assert named["rounds.0.rewards.0"] == Path("home/mine.py")
    sent = jobs.working_files(Path("home/campaign.yaml"), [home], RAW)
    assert sent["home"] == home


def test_a_store_in_the_jobs_own_folder_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the campaign lies outside the current folder, and the path that is opened is absolute."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="own folder, which is removed"):
        jobs.check_store(load(home / "campaign.yaml"))
