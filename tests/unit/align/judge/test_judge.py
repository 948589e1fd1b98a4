"""Judging folders: the verdict, the pairing, what is measured once, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.gate.measurement.evaluate import ItemResults
from align.judge.suites_file import MEASURED_WHOLE
from tests.unit.align.judge.judging import changed_model, copied_model, judged, write_suites
from tests.unit.campaigns import Starter

BASE = "demo://digits"


def test_a_copy_of_the_incumbent_is_accepted(tmp_path: Path) -> None:
    suites = write_suites(tmp_path)
    judgement = judged(copied_model(tmp_path / "copy"), BASE, suites, tmp_path / "cache")
    assert (judgement.exit_code, judgement.verdict.outcome) == (0, "accepted")
    (check,) = [c for c in judgement.verdict.checks if c.what == "value"]
    assert (check.lost, check.won, check.n, check.alpha) == (0, 0, 200, 0.05)
    assert judgement.candidate.id == judgement.incumbent.id


def test_a_file_that_stops_early_is_measured_whole_and_says_so(tmp_path: Path) -> None:
    early = {"campaign_rounds": 1, "stopping": "sequential"}
    suites = write_suites(tmp_path, gate=early)
    judgement = judged(copied_model(tmp_path / "copy"), BASE, suites, tmp_path / "cache")
    (check,) = [c for c in judgement.verdict.checks if c.what == "value"]
    assert (check.test, check.n) == ("tango", 200)
    assert MEASURED_WHOLE in judgement.notes
    plain = judged(BASE, BASE, write_suites(tmp_path), tmp_path / "cache")
    assert MEASURED_WHOLE not in plain.notes


def test_a_damaged_model_is_rejected(tmp_path: Path) -> None:
    suites = write_suites(tmp_path)
    damaged = changed_model(tmp_path / "damaged", torch.zeros_like)
    judgement = judged(damaged, BASE, suites, tmp_path / "cache")
    assert (judgement.exit_code, judgement.verdict.outcome) == (1, "rejected")
    assert any("against the incumbent" in reason for reason in judgement.reasons)
    assert not any("parent" in reason for reason in judgement.reasons)


def test_few_items_cannot_tell(tmp_path: Path) -> None:
    suites = write_suites(tmp_path, 20)
    judgement = judged(copied_model(tmp_path / "copy"), BASE, suites, tmp_path / "cache")
    assert (judgement.exit_code, judgement.verdict.outcome) == (3, "too_few_items")


def test_the_incumbent_is_measured_once(tmp_path: Path) -> None:
    suites, starter = write_suites(tmp_path), Starter()
    damaged = changed_model(tmp_path / "damaged", torch.zeros_like)
    first = judged(damaged, BASE, suites, tmp_path / "cache", starter=starter)
    assert len(starter.engines) == 2 and all(engine.closed for engine in starter.engines)
    other = changed_model(tmp_path / "other", lambda tensor: tensor * 1.001)
    second = judged(other, BASE, suites, tmp_path / "cache", starter=starter)
    assert len(starter.engines) == 3
    assert (first.incumbent.reused, second.incumbent.reused) == ((), ("general",))
    assert first.incumbent_results == second.incumbent_results


@pytest.mark.parametrize("changed", ["vllm", "torch", "device"])
def test_an_incumbent_measured_by_other_engines_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    suites, root = write_suites(tmp_path, 40), tmp_path / "cache"
    judged(BASE, BASE, suites, root)
    assert judged(BASE, BASE, suites, root).incumbent.reused == ("general",)
    if changed == "device":
        monkeypatch.setattr("align.judge.models.local.resolve_device", lambda _: "cuda")
    else:
        monkeypatch.setattr("align.judge.models.local.versions", lambda: {changed: "0"})
    monkeypatch.setattr("align.judge.models.local.check_served", lambda *_, **__: None)
    assert judged(BASE, BASE, suites, root).incumbent.reused == ()


def test_results_say_what_measured_them_and_a_verdict_that_it_was_something_else(
    tmp_path: Path,
) -> None:
    suites, root = write_suites(tmp_path), tmp_path / "cache"
    first = judged(
        BASE, BASE, suites, root, starter=Starter(about=lambda: {"vllm": "1.0", "device": "cpu"})
    )
    assert not first.reasons
    (file,) = root.glob("*/general-*.parquet")
    assert ItemResults.load(file).measured_by == {"vllm": "1.0", "device": "cpu"}
    copy = changed_model(tmp_path / "copy", lambda tensor: tensor * 1.001)
    newer = Starter(about=lambda: {"vllm": "2.0", "device": "cuda"})
    second = judged(copy, BASE, suites, root, starter=newer)
    assert second.exit_code == 0 and second.incumbent.reused == ("general",)
    (note,) = second.reasons
    assert "the incumbent was measured by vLLM 1.0 on cpu on general" in note
    assert "the candidate by vLLM 2.0 on cuda" in note
