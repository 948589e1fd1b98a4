"""Wrong campaign files and command lines, as users make them: one message each, in Keel's own words.

The table is ``wrong_input.yaml``. ``keel config check`` runs in this process, unless a case names another
command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from align.config.file import parse_campaign
from launch import cli
from rollouts.errors import UserError

VALID = """\
name: small
policy: {model: demo://digits}
store: store
seed: 3

defaults:
  sampling: {group_size: 4, prompts_per_step: 5, max_tokens: 6}
  optimizer: {lr: 3e-4}
  replay: {past: 0.1, general: 0.1, general_prompts: "demo://general?n=40"}
  suite: {items: 30, temperature: 1.0}

rounds:
  - name: first
    prompts: demo://rev?n=60
    rewards: [exact_match]
    steps: 2
  - name: second
    prompts: demo://inc?n=60
    rewards: [exact_match]
    steps: 2

suites:
  - name: general
    prompts: demo://general
    metric: exact_match
    items: 30

gate: {mode: observe}
"""
CASES: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "wrong_input.yaml").read_text()
)
COMMAND = typer.main.get_command(cli.app)
OF_THE_VALIDATION = (
    "Input should", "Extra inputs", "Field required", "String should", "Value error", "unable to parse",
    "valid integer", "valid number", "valid string", "valid boolean", "valid tuple", "valid dictionary",
    "instance of", "after validation", "Tuple should", "Keys should", "pydantic", "function-", "literal[",
    "constrained-", "NoneType", "<unicode string>", "codec can't",
)  # fmt: skip
"""Words of the libraries that read and validate files, which mean nothing to a user."""


def written(case: dict[str, Any]) -> str | None:
    """Return the text of a case's campaign file; None if there is no file."""
    if "text" in case:
        return str(case["text"])
    if "command" in case and "FILE" not in case["command"]:
        return None
    text = VALID
    for old, new in case.get("change", {}).items():
        assert old in text
        text = text.replace(old, new, 1)
    if "rounds" in case:
        text = text.partition("rounds:")[0] + str(case["rounds"])
    return text + str(case.get("append", ""))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the entry point; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["keel", *arguments])
    monkeypatch.setattr("typer.main.get_command", lambda _: COMMAND)  # Building it takes longer.
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", CASES)
def test_one_mistake_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    files = dict(case.get("files", {}))
    if (text := written(case)) is not None:
        files["campaign.yaml"] = text
    for file, content in files.items():
        Path(file).write_text(content)
    command = case.get("command", "config check FILE").replace("FILE", "campaign.yaml").split()
    overrides = [word for override in case.get("set", ()) for word in ("--set", override)]
    code = call(monkeypatch, *command, *overrides)
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert [phrase for phrase in OF_THE_VALIDATION if phrase in error] == []
    before, listed, after = error.partition(" the campaign is not valid\n ")
    assert not listed or len(after.splitlines()) == 1, "more than one finding"
    message = f"{before}{after}"
    assert [part for part in case["says"] if part not in message] == []
    assert {path.name for path in tmp_path.iterdir()} == files.keys()


@pytest.mark.parametrize(
    "content",
    [
        VALID.encode("utf-16"),
        VALID.replace("small", "smäll").encode("latin-1"),
        b"PK\x03\x04\x00\x00",
    ],
    ids=["utf-16", "latin-1", "archive"],
)
def test_bytes_that_are_no_yaml(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_bytes(content)
    assert call(monkeypatch, "config", "check", str(path)) == 2
    error = capsys.readouterr().err
    assert f"error: {path}" in error and "not readable as YAML" in error
    assert [phrase for phrase in OF_THE_VALIDATION if phrase in error] == []


def test_every_mistake_of_a_file_is_listed_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(VALID.replace("steps: 2", "steps: many", 1).replace("lr: 3e-4", "lr: fast"))
    assert call(monkeypatch, "config", "check", str(path)) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"error: {path}: the campaign is not valid",
        "  defaults.optimizer.lr: expected a number above 0 and at most 1, got 'fast' (line 8)",
        "  rounds.0.steps: expected a whole number of at least 1, got 'many' (line 16)",
    ]


def test_a_default_that_a_round_states_itself_is_told_at_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "campaign.yaml"
    own = "    steps: 2\n    optimizer: {lr: slow}\n"
    path.write_text(VALID.replace("    steps: 2\n", own, 1).replace("lr: 3e-4", "lr: fast"))
    assert call(monkeypatch, "config", "check", str(path)) == 2
    error = capsys.readouterr().err
    assert "defaults.optimizer.lr" in error and "got 'fast' (line 8)" in error
    assert "rounds.0.optimizer.lr" in error and "got 'slow' (line 17)" in error
    assert error.count("expected a number") == 2


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (
            {"group_size: 4": "group_size: 0", "steps: 2": "steps: 0"},
            ["defaults.sampling.group_size", "rounds.0.steps", "rounds.1.steps"],
        ),
        (
            {
                "prompts_per_step: 5": "prompts_per_step: x",
                "steps: 2\n  - name": "steps: x\n  - name",
            },
            ["defaults.sampling.prompts_per_step", "rounds.0.steps"],
        ),
    ],
)
def test_mistakes_in_the_same_words_are_all_listed(
    changes: dict[str, str], keys: list[str]
) -> None:
    text = VALID
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(UserError) as caught:
        parse_campaign(text, Path("campaign.yaml"))
    listed = [line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert listed == keys
