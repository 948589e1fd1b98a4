"""The README's campaign, reward, commands and files exist and work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from align.config.campaign import CampaignConfig
from tests.unit.campaigns import raw_campaign, rounds
from tests.unit.commands import assert_parses, blocks, keel_words, shell_lines

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = [(block.kind, block.text) for block in blocks(README)]
SHELL = shell_lines(README)


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|SECTION|BLOCK|TIME)\b", README)


def test_the_campaign_is_valid() -> None:
    text, *more = [text for kind, text in BLOCKS if kind == "yaml" and "rounds:" in text]
    assert more
    for piece in more:
        rounds = yaml.safe_load(piece)["rounds"]
        CampaignConfig.model_validate({"name": "a", "policy": {"model": "m"}, "rounds": rounds})
    config = CampaignConfig.model_validate(yaml.safe_load(text.replace("1e-4", "1.0e-4")))
    assert config.defaults.anchors == CampaignConfig.model_fields["defaults"].default.anchors


def test_the_reward_works(tmp_path: Path) -> None:
    from rewards.registry import load_reward

    (text,) = [text for kind, text in BLOCKS if kind == "python" and "def polite" in text]
    (tmp_path / "polite.py").write_text(text)
    polite = load_reward(f"{tmp_path / 'polite.py'}:polite")
    assert polite(
        completions=["yes please", "no"], prompts=["", ""], completion_ids=[[1], [1]]
    ) == [1.0, 0.0]


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "python" and "import align" in text]
    changes = {"rounds": rounds({"name": "sort"}), "rollouts": {"backend": "transformers"}}
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw_campaign(tmp_path, **changes)))
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {})
    assert "sort" in capsys.readouterr().out


@pytest.mark.parametrize("words", [w for w in map(keel_words, SHELL) if w], ids=" ".join)
def test_every_keel_command_exists(words: list[str]) -> None:
    assert_parses(words)


@pytest.mark.parametrize("target", [line.split()[1] for line in SHELL if line.startswith("make ")])
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}\b.*:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_every_linked_or_named_file_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:configs|benchmarks|align)/[\w./]+)`", README
    )
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_ci_runs_the_readmes_test_command() -> None:
    assert re.search(r"^(exec )?make test$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
