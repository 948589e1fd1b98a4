"""Samples that were drawn ahead survive a stop: the round goes on as if there had been none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.campaign import run_campaign
from rollouts.engines.protocol import SampleResult
from rollouts.engines.recorded import Recorded, from_json, to_json
from rollouts.types import Completion, WeightSpan
from tests.unit.campaigns import Starter, Watcher, campaign, rounds

RESULTS = [
    SampleResult(
        id="7/0/a",
        completions=(
            Completion(
                token_ids=(3, 4),
                logprobs_T=(-0.1, -1 / 3),
                text="",
                finish_reason="stop",
                weight_versions=(WeightSpan("r/1", 0, 1), WeightSpan("r/2", 1, 2)),
            ),
            Completion.failed("the engine died"),
        ),
    ),
    SampleResult(id="7/1/b", completions=()),
]


def test_answers_come_back_as_they_were() -> None:
    found = from_json(json.loads(json.dumps(to_json(RESULTS))))
    assert found == RESULTS
    assert isinstance(found[0].completions[0].weight_versions[0], WeightSpan)
    ticket = Recorded(found).submit([])
    assert ticket() == RESULTS and ticket() == RESULTS


def curve(folder: Path, stop_at: tuple[str, int] | None) -> dict[int, dict[str, float]]:
    """Metrics by step, without those that tell the time."""
    changes = {
        "steps": 4, "checkpoint_every": 1, "sampling": {"max_staleness": 1},
        "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    config = campaign(folder, rounds=rounds(changes))
    if stop_at is not None:
        with pytest.raises(RuntimeError, match="stopped by the test"):
            run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at))
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    found = {}
    for file in sorted((folder / "store/rounds").rglob("metrics.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            found[line["step"]] = {
                name: value
                for name, value in line.items()
                if not name.startswith(("time", "sync/", "tokens_per", "cost"))
            }
    return found


def test_a_round_that_samples_ahead_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    whole = curve(tmp_path / "whole", None)
    assert [line["staleness/steps"] for line in whole.values()] == [0, 1, 1, 1]
    assert curve(tmp_path / "stopped", ("round0", 2)) == whole
