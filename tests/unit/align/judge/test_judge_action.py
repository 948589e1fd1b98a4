"""The GitHub action: its script with the real command line, and its file against the script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.patience import patient
from tests.unit.align.judge.judging import write_suites

ROOT = Path(__file__).parents[4]
ACTION = ROOT / ".github/actions/judge"
KEEL = """
import sys
sys.path[:0] = [{root!r}]
from contextlib import contextmanager
from launch import cli
from launch.cluster import engines
from tests.unit.campaigns import Starter

@contextmanager
def start(*_, **__):
    yield Starter()

engines.engine_starter = start
cli.main()
"""
"""Keel's command line with engines in its own process, in place of those on a cluster."""


def run(tmp_path: Path, items: int = 200, **variables: str) -> tuple[int, dict[str, str], str]:
    """Run the script; exit code, outputs of the step, summary of the run."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "keel.py").write_text(KEEL.format(root=str(ROOT)))
    for name, words in (
        ("keel", f"{sys.executable} {programs}/keel.py"),
        ("python", sys.executable),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    outputs, summary = tmp_path / "outputs", tmp_path / "summary"
    environ = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(outputs),
        "GITHUB_STEP_SUMMARY": str(summary), "XDG_CACHE_HOME": str(tmp_path / "user"),
        "CANDIDATE": "demo://digits", "AGAINST": "demo://digits",
        "SUITES": str(write_suites(tmp_path, items)), "REPORTS": str(tmp_path / "reports"),
        **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ACTION / "judge.sh")], env=environ, capture_output=True, text=True,
        timeout=patient(120), cwd=tmp_path,
    )  # fmt: skip
    lines = outputs.read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines)
    return done.returncode, said, summary.read_text() if summary.exists() else ""


def test_an_accepted_candidate_passes_the_step(tmp_path: Path) -> None:
    code, outputs, summary = run(tmp_path)
    assert code == 0
    assert outputs == {"outcome": "accepted", "accepted": "true", "exit-code": "0"}
    assert summary.startswith("## ✅")
    assert json.loads((tmp_path / "reports/verdict.json").read_text())["accepted"]
    assert (tmp_path / "reports/verdict.xml").is_file()


@pytest.mark.parametrize(
    ("choice", "step"), [("fail", 3), pytest.param("pass", 0, marks=pytest.mark.slow)]
)
def test_too_few_items_fail_the_step_unless_told(tmp_path: Path, choice: str, step: int) -> None:
    code, outputs, _ = run(tmp_path, 20, TOO_FEW_ITEMS=choice)
    assert code == step
    assert outputs == {"outcome": "too_few_items", "accepted": "false", "exit-code": "3"}


def test_options_and_odd_names_are_words_not_commands(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code, outputs, _ = run(
        tmp_path, CANDIDATE=f"$(touch {mark})", OPTIONS=f"--cache\n{tmp_path}/a b\n"
    )
    assert (code, outputs["outcome"], outputs["exit-code"]) == (2, "error", "2")
    assert not mark.exists() and not (tmp_path / "reports/verdict.json").exists()


def test_the_action_hands_every_input_to_the_script() -> None:
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    install, judge = action["runs"]["steps"]
    handed = {**install["env"], **judge["env"]}
    assert {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]} == set(handed.values())
    read = set(re.findall(r"\$\{?([A-Z_]+)", (ACTION / "judge.sh").read_text()))
    assert set(judge["env"]) <= read
    written = set(re.findall(r'echo "([a-z-]+)=', (ACTION / "judge.sh").read_text()))
    assert written == set(action["outputs"])
    assert "${{" not in install["run"] + judge["run"]
