"""Judging folders: the verdict, the pairing, what is measured once, and what is refused."""

from __future__ import annotations

from pathlib import Path

import torch

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
