"""``keel judge``: exit codes, files, JSON, and one clear message for what cannot be judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from launch import cli
from launch.cluster import engines
from rollouts.errors import RunError
from tests.unit.align.judge.judging import changed_model, copied_model, raw_suites, write_suites
from tests.unit.campaigns import Starter, raw_campaign

BASE = "demo://digits"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch) -> Starter:
    """Engines in this process, in place of those on a cluster."""
    starter = Starter()

    @contextmanager
    def start(*_: Any, **__: Any) -> Iterator[Starter]:
        yield starter

    monkeypatch.setattr(engines, "engine_starter", start)
    return starter


@pytest.fixture
def keel(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    starter: Starter,
) -> Run:
    """Run the entry point in this process; exit code, standard output, standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keel", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capsys.readouterr()
        return int(caught.value.code or 0), out, error

    return call


def damaged(folder: Path) -> str:
    return str(changed_model(folder, torch.zeros_like))


def same(folder: Path) -> str:
    return str(copied_model(folder))


@pytest.mark.parametrize(
    ("model", "items", "code", "outcome"),
    [(same, 200, 0, "accepted"), (damaged, 200, 1, "rejected"), (same, 20, 3, "too_few_items")],
    ids=["accepted", "rejected", "too few"],
)
def test_exit_code_json_and_files_say_the_same(
    keel: Run, tmp_path: Path, model: Callable[[Path], str], items: int, code: int, outcome: str
) -> None:
    suites = write_suites(tmp_path, items)
    candidate = model(tmp_path / "candidate")
    markdown, junit = tmp_path / "verdict.md", tmp_path / "verdict.xml"
    done, out, error = keel(
        "judge", candidate, "--against", BASE, "--suites", str(suites), "--json",
        "--markdown", str(markdown), "--junit", str(junit),
    )  # fmt: skip
    assert done == code, error
    said = json.loads(out)
    assert (said["outcome"], said["exit_code"], said["accepted"]) == (outcome, code, code == 0)
    (suite,) = said["suites"]
    assert (suite["suite"], suite["items"]) == ("general", items)
    assert said["incumbent"]["reused"] == []
    root = ElementTree.parse(junit).getroot()
    wrong = {"rejected": "failures", "too_few_items": "errors"}.get(outcome)
    assert (int(root.attrib["failures"]) > 0) == (wrong == "failures")
    assert (int(root.attrib["errors"]) > 0) == (wrong == "errors")
    text = markdown.read_text()
    assert text.startswith({0: "## ✅", 1: "## ❌", 3: "## ⚠️"}[code])
    assert all(line.count("|") == text.splitlines()[2].count("|") for line in _table(text))
    assert ("Items that the candidate lost" in text) == (outcome == "rejected")


def _table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_screen_says_verdict_level_and_reason(keel: Run, tmp_path: Path) -> None:
    suites, candidate = write_suites(tmp_path), damaged(tmp_path / "candidate")
    code, out, _ = keel("judge", candidate, "--against", BASE, "--suites", str(suites))
    assert code == 1
    assert out.startswith(f"{candidate} against {BASE}: rejected\n")
    assert "alpha 0.05 over 1 decisions: 0.05 each" in out
    assert "lost against the incumbent" in out


def test_the_second_candidate_costs_one_measurement(
    keel: Run, tmp_path: Path, starter: Starter
) -> None:
    suites = str(write_suites(tmp_path))
    for number, name in enumerate(("first", "second")):
        model = changed_model(tmp_path / name, lambda t, n=number: t * (1 + 0.001 * n + 0.0005))
        code, out, _ = keel("judge", str(model), "--against", BASE, "--suites", suites, "--json")
        assert code == 0
    assert json.loads(out)["incumbent"]["reused"] == ["general"]
    assert len(starter.engines) == 3
    assert list((tmp_path / "user/keel/judge").glob("*/general-*.parquet"))


def test_an_edited_measurement_is_measured_again(
    keel: Run, tmp_path: Path, starter: Starter
) -> None:
    suites, cache = str(write_suites(tmp_path)), tmp_path / "cache"
    arguments = ("judge", same(tmp_path / "c"), "--against", BASE, "--suites", suites)
    arguments = (*arguments, "--json", "--cache", str(cache))
    first = json.loads(keel(*arguments)[1])
    (file,) = cache.glob("*/general-*.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    zeros = pa.array([0.0] * table.num_rows)
    edited = table.set_column(table.column_names.index("value"), "value", zeros)
    pq.write_table(edited, file)
    again = json.loads(keel(*arguments)[1])
    assert again["suites"] == first["suites"]
    assert again["incumbent"]["reused"] == []


def test_a_campaign_file_gives_its_suites_and_its_gate(keel: Run, tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    gate = {"alpha": 0.04, "campaign_rounds": 2}
    file.write_text(json.dumps(raw_campaign(tmp_path, gate=gate)))
    code, out, _ = keel(
        "judge", same(tmp_path / "c"), "--against", BASE, "--suites", str(file), "--json"
    )
    said = json.loads(out)
    assert [suite["suite"] for suite in said["suites"]] == ["general"]
    assert "alpha 0.04 over 2 decisions: 0.02 each" in said["level"]
    assert code == 3


def test_a_dry_run_says_the_power_and_starts_nothing(
    keel: Run, tmp_path: Path, starter: Starter
) -> None:
    suites = str(write_suites(tmp_path))
    code, out, _ = keel("judge", BASE, "--against", BASE, "--suites", suites, "--dry-run")
    assert code == 0 and not starter.engines
    assert "general: 200 items, margin 5 points, power" in out
    assert "an equal candidate is accepted with a chance of" in out


def test_an_engine_that_fails_is_no_verdict(
    keel: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RunError("the engine is gone")

    monkeypatch.setattr(Starter, "__call__", broken)
    suites = str(write_suites(tmp_path))
    code, out, error = keel("judge", BASE, "--against", BASE, "--suites", suites, "--json")
    assert (code, out) == (4, "") and "error: the engine is gone" in error


def test_suites_of_a_campaign_alone_are_left_out_and_named(keel: Run, tmp_path: Path) -> None:
    general = raw_suites()["suites"][0]
    sealed = {**general, "name": "later", "role": "sealed", "every": 5}
    duel = {**general, "name": "duel", "against": "round:first"}
    suites = str(write_suites(tmp_path, suites=[general, sealed, duel]))
    code, _, error = keel("judge", BASE, "--against", BASE, "--suites", suites)
    assert code == 0
    assert "suite 'later' is left out: sealed" in error
    assert "suite 'duel' is left out: compared with round:first" in error


def test_a_win_rate_is_against_the_incumbent(keel: Run, tmp_path: Path) -> None:
    duel = {**raw_suites(100)["suites"][0], "against": "base", "margin": 0.2, "budget": 0.2}
    suites = str(write_suites(tmp_path, suites=[duel]))
    code, out, error = keel(
        "judge", damaged(tmp_path / "d"), "--against", BASE, "--suites", suites, "--json"
    )
    said = json.loads(out)
    (suite,) = said["suites"]
    assert code in (0, 1) and suite["incumbent"] == 0.5, error
    assert suite["candidate"] < 0.5


def test_gate_plan_takes_a_file_of_suites(keel: Run, tmp_path: Path) -> None:
    suites = str(write_suites(tmp_path))
    code, out, error = keel("gate", "plan", suites, "--json")
    assert code == 0, error
    planned = json.loads(out)
    assert planned["alpha_per_look"] == 0.05
    (suite,) = planned["suites"]
    assert (suite["suite"], suite["n"]) == ("general", 200)
    said = keel("judge", BASE, "--against", BASE, "--suites", suites, "--dry-run")[1]
    assert f"accepted with a chance of {planned['all_pass']:.2f}" in said


def test_gate_plan_says_the_chances_of_a_candidate_with_a_loss(keel: Run, tmp_path: Path) -> None:
    suites = str(write_suites(tmp_path))
    chances = {}
    for loss in ("0", "0.01", "0.05"):
        code, out, error = keel("gate", "plan", suites, "--loss", loss, "--json")
        assert code == 0, error
        planned = json.loads(out)
        chances[loss] = planned["all_pass"]
        assert planned["loss"] == float(loss) and planned["suites"][0]["joint"] == chances[loss]
    assert chances["0"] > chances["0.01"] > chances["0.05"] == pytest.approx(0.05)
    said = keel("gate", "plan", suites, "--loss", "0.05")[1]
    assert "a candidate that lost 0.05" in said and "an equal candidate" not in said


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no candidate": ({}, ["nowhere/at/all", "--against", BASE], "CANDIDATE"),
    "no incumbent": ({}, [BASE, "--against", "./nowhere"], "--against"),
    "no such demo": ({}, ["demo://nothing", "--against", BASE], "CANDIDATE"),
    "unknown key": ({"siutes": []}, [BASE, "--against", BASE], "did you mean 'suites'"),
    "no suites": ({"suites": []}, [BASE, "--against", BASE], "suites"),
    "unknown target": ({}, [BASE, "--against", BASE, "--target", "generel"], "'general'"),
    "no folder to write to": (
        {}, [BASE, "--against", BASE, "--markdown", "no/such/folder/a.md"], "--markdown",
    ),
    "margin of the whole range": (
        {"suites": [{**raw_suites()["suites"][0], "margin": 1.5}]},
        [BASE, "--against", BASE], "margin",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "arguments", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_message_before_anything_starts(
    keel: Run,
    tmp_path: Path,
    starter: Starter,
    changes: dict[str, Any],
    arguments: list[str],
    said: str,
) -> None:
    suites = write_suites(tmp_path, **changes)
    code, out, error = keel("judge", *arguments, "--suites", str(suites))
    assert code == 2, error
    assert said in error and "Traceback" not in error and not out
    assert not starter.engines and not (tmp_path / "user").exists()


@pytest.mark.parametrize("text", ["[1, 2]", "suites: [", "", "suites: {a: 1}"])
def test_a_file_that_is_no_suites_file_is_refused(keel: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "suites.yaml"
    path.write_text(text)
    code, _, error = keel("judge", BASE, "--against", BASE, "--suites", str(path))
    assert code == 2 and str(path) in error and "campaign" not in error


def test_a_campaign_without_suites_is_refused(keel: Run, tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(raw_campaign(tmp_path, suites=[])))
    code, _, error = keel("judge", BASE, "--against", BASE, "--suites", str(file))
    assert code == 2 and "no suites besides those of its rounds" in error


def test_a_target_has_to_be_better(keel: Run, tmp_path: Path) -> None:
    suites = str(write_suites(tmp_path))
    code, out, _ = keel(
        "judge", same(tmp_path / "c"), "--against", BASE, "--suites", suites, "--json",
        "--target", "general",
    )  # fmt: skip
    said = json.loads(out)
    assert (code, said["outcome"]) == (1, "rejected")
    assert said["checks"][0]["outcome"] == "not_improved"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["judge", "dry run"])
@pytest.mark.parametrize("stated", ["in the file", "by --set", "in a campaign"])
def test_few_items_are_refused_before_an_engine_starts_where_that_is_stated(
    keel: Run, tmp_path: Path, starter: Starter, stated: str, dry: tuple[str, ...]
) -> None:
    gate = {"campaign_rounds": 1} | ({} if stated == "by --set" else {"underpowered": "refuse"})
    suites = write_suites(tmp_path, 20, gate=gate)
    if stated == "in a campaign":
        suites.write_text(json.dumps(raw_campaign(tmp_path, gate=gate)))
    words = ("--set", "gate.underpowered=refuse") if stated == "by --set" else ()
    code, _, error = keel(
        "judge", same(tmp_path / "c"), "--against", BASE, "--suites", str(suites), *words, *dry
    )
    assert code == 2, error
    assert "suite 'general' cannot tell" in error and "items" in error
    assert "underpowered: warn" in error and not starter.engines


def test_few_items_are_measured_with_a_warning_unless_refusal_is_stated(
    keel: Run, tmp_path: Path
) -> None:
    suites = write_suites(tmp_path, 20)
    code, _, error = keel(
        "judge", damaged(tmp_path / "d"), "--against", BASE, "--suites", str(suites)
    )
    assert code == 1 and "warning: suite 'general' cannot tell" in error
