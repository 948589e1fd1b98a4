"""The guide says what there is: every page is walked as a reader would, and the site is built.

Engines are small transformers models in this process and rounds have one step, so that `keel run` and
all that looks at a finished campaign really runs. What listens, or needs a cluster, is only parsed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from align.algorithms import ALGORITHMS
from align.config.campaign import CampaignConfig, overlay
from align.config.file import load_campaign
from align.gate.evidence import stored_evidence
from align.judge.suites_file import load_suites_file
from align.round.inputs import load_inputs
from launch.cli import app
from rollouts.errors import UserError
from tests.patience import patient
from tests.unit.commands import (
    Block,
    assert_parses,
    blocks,
    command_of,
    keel_words,
    program_words,
    shell_lines,
    walk,
)
from tests.unit.hf_engine import HFEngine

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
MOST_LINES = 110
"""A page answers one question."""

ONLY_PARSED = {
    "demo build", "doctor", "feedback serve", "jobs list", "jobs logs", "jobs status", "jobs stop",
    "schedule run", "serve", "submit",
}  # fmt: skip
"""They listen, train, need a cluster, or ask the machine."""
ONLY_PARSED_WITH = {"--address", "--api-key-env", "--crds", "--watch", "--policy"}
MEANT = {"ROUND": lambda: "first", "OTHER": lambda: "second", "SNAPSHOT": lambda: newest_snapshot()}
"""Replacements that a reader makes for the guide's placeholders."""
THEIR_OWN = re.compile(
    "No such file|reads '.*', which does not exist|there is no folder 'path/to"
    "|there is no file or folder 'catalogue'"
)
"""Inputs that a reader has and the guide has not, with the reason."""

FINISHED: dict[str, Any] = {
    "name": "campaign",
    "policy": {"model": "demo://digits"},
    "defaults": {
        "sampling": {"group_size": 8, "prompts_per_step": 4, "max_tokens": 6},
        "replay": {"general_prompts": "demo://general"},
    },
    "rounds": [
        {"name": "first", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1},
        {"name": "second", "prompts": "demo://inc", "rewards": ["exact_match"], "steps": 1},
    ],
    "suites": [{"name": "general", "prompts": "demo://general", "metric": "exact_match"}],
}


def shortened(text: str) -> str:
    """A campaign that takes a second, whose rounds are accepted whatever comes of them."""
    if "\nrounds:" not in text:
        return text
    raw = yaml.safe_load(text)
    for spec in raw["rounds"]:
        spec["steps"] = 1
    raw["defaults"] = overlay(raw.get("defaults", {}), {"suite": {"items": 20}})
    for suite in raw.get("suites", []):
        suite["items"] = 20
    raw["gate"] = {**raw.get("gate", {}), "mode": "observe"}
    return yaml.safe_dump(raw, sort_keys=False)


@contextlib.contextmanager
def in_process(*_: Any, **__: Any) -> Iterator[Callable[..., HFEngine]]:
    """Stands in for `launch.cluster.engines.engine_starter`."""
    yield lambda config, model, context: HFEngine(model)


def newest_snapshot() -> str:
    """Id of the last accepted one of the campaign that ran."""
    evidence = stored_evidence(load_campaign(Path("campaign.yaml")).config)
    return list(evidence.accepted("policy").values())[-1]


def run(words: list[str]) -> str:
    """Run a command in this process and folder, or only read its words; return its output."""
    words = [MEANT[word]() if word in MEANT else word for word in words]
    assert_parses(words)
    if command_of(words)[0] in ONLY_PARSED or ONLY_PARSED_WITH & set(words):
        return ""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"keel {' '.join(words)}: {result.exception}\n{result.output}"
    return result.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has a campaign that ran."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "campaign.yaml").write_text(shortened(yaml.safe_dump(FINISHED, sort_keys=False)))
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr("launch.cluster.engines.engine_starter", in_process)
        run(["run", "campaign.yaml"])
    return folder


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_reader_can_do_what_a_page_says(
    name: str, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr("launch.cluster.engines.engine_starter", in_process)
    walk(PAGES[name], folder, run=run, change=shortened)
    for block in blocks(PAGES[name]):
        if block.kind == "yaml":
            check_inputs(block, folder)


def check_inputs(block: Block, folder: Path) -> None:
    """Check the inputs as a run does before it starts: sources exist, and prompts fit the model."""
    if block.title is None:
        config = CampaignConfig.model_validate(completed(yaml.safe_load(block.text)))
    elif "rounds" not in yaml.safe_load(block.text):
        load_suites_file(folder / block.title)
        return
    else:
        config = load_campaign(folder / block.title).config
    try:
        load_inputs(config).close()
    except UserError as error:
        assert THEIR_OWN.search(str(error)), error


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_piece_of_a_campaign_is_valid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGES[name]):
        if block.kind == "python" and block.title is not None:
            (tmp_path / block.title).write_text(block.text)
        if block.kind == "yaml":
            CampaignConfig.model_validate(completed(yaml.safe_load(block.text)))


def completed(piece: Mapping[str, Any]) -> dict[str, Any]:
    """A campaign around a piece of one: keys of a round go into the first."""
    whole = {key: value for key, value in piece.items() if key in CampaignConfig.model_fields}
    own = {key: value for key, value in piece.items() if key not in whole}
    filled = overlay(FINISHED, whole)
    first, *others = filled["rounds"]
    return {**filled, "rounds": [overlay(first, own), *others]}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_are_short_and_name_what_exists(name: str) -> None:
    text = PAGES[name]
    assert len(text.splitlines()) <= MOST_LINES
    for path in re.findall(r"`((?:configs|benchmarks|launch|align|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    targets = [line.split()[1] for line in shell_lines(text) if line.startswith("make ")]
    for target in targets:
        assert re.search(rf"^{target}\b.*:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_most_commands_are_run_not_only_parsed() -> None:
    shown = [
        words for text in PAGES.values() for words in map(keel_words, shell_lines(text)) if words
    ]
    parsed = [
        words
        for words in shown
        if command_of(words)[0] in ONLY_PARSED or ONLY_PARSED_WITH & set(words)
    ]
    assert len(shown) > 30
    assert len(parsed) < len(shown) / 2


def test_commands_in_sentences_exist_with_their_options() -> None:
    """Sentences are those of every page, docstring and message; a group's name may stand alone."""
    rooms = ("docs", "align", "launch", "rewards", "rollouts")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix in (".md", ".py")]
    spoken = [
        (path.name, span)
        for path in (*files, ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for span in re.findall(r"(?<!`)`{1,2}keel ([a-z0-9][^`{\n]*)", path.read_text())
    ]
    assert len(spoken) > 100
    for name, span in spoken:
        words = span.split()
        _, command, left = command_of(words, whole=False)
        options = {word.split("=")[0] for word in left if word.startswith("--")}
        known = {option for parameter in command.params for option in parameter.opts}
        assert options <= known, f"{name}: keel {span}"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_commands_of_others_are_spelt_as_they_take_them(name: str) -> None:
    """Words are what bash reads; subcommands and options are those of `ray`, of our extras and our own
    files."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for line in shell_lines(PAGES[name]):
        read = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        assert read.returncode == 0, read.stderr
        program, *words = program_words(line)
        if program == "ray":
            from ray.scripts.scripts import cli

            cli.commands[words[0]].make_context(words[0], words[1:])
        elif program == "pip":
            (wanted,) = re.findall(r"keel-align\[(.*)\]", line)
            assert set(wanted.split(",")) <= set(extras), line
        for word in words:
            if word.split("/")[0] in ("launch", "configs", "benchmarks", "align", "docs"):
                assert (ROOT / word).exists(), line


def test_every_key_of_a_campaign_has_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    hooks = importlib.import_module("hooks")
    for model in [*hooks.blocks(), *ALGORITHMS.values()]:
        for name in model.model_fields:
            assert hooks._meaning(model, name) or (
                name == "name" and model in ALGORITHMS.values()
            ), f"{model.__name__}.{name} has no docstring"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Strict: links, anchors and the table of contents are checked."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=patient(240),
    )
    assert built.returncode == 0, built.stderr
    for name in PAGES:
        html = (tmp_path / "site" / name).with_suffix(".html").read_text()
        assert 'class="arithmatex"' not in html, f"{name}: an equation was not drawn"
    for page in ("campaign", "algorithms", "rewards", "commands"):
        assert "<table>" in (tmp_path / "site" / "reference" / f"{page}.html").read_text()
