"""`configs/self-distil.yaml`, shortened: a round that learns to read, and one that internalises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher

ROOT = Path(__file__).parents[4]
CONFIG = ROOT / "configs/self-distil.yaml"


def shortened(folder: Path) -> CampaignConfig:
    """The file with few items, the steps that show it, and a gate that only observes."""
    raw: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    raw["store"] = str(folder / "store")
    raw["gate"]["mode"] = "observe"
    for spec, steps in zip(raw["rounds"], (20, 8), strict=True):
        spec |= {"steps": steps, "optimizer": {"lr": 4e-4}}
    for suite in (raw["defaults"]["suite"], *raw["suites"]):
        suite["items"] = 50
    data = raw["rounds"][0]["data"]
    data["source"] = str(CONFIG.parent / data["source"])
    return CampaignConfig.model_validate(raw)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    config = shortened(tmp_path_factory.mktemp("distilled"))
    starter, watcher = Starter(), Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def test_the_policy_learns_what_only_its_teacher_has_read(distilled: Ran) -> None:
    """No reward is learnt from: the samples get right because the demonstrations are."""
    steps = distilled.metrics(1, "internalise")
    assert steps[-1]["loss/policy"] < 0.5 * steps[0]["loss/policy"]
    matrix = {row.name: dict(zip(distilled.evidence.matrix().suites, row.scores, strict=True))
              for row in distilled.evidence.matrix().rows}  # fmt: skip
    assert matrix["internalise"]["internalise"] > matrix["base"]["internalise"] + 0.15
    assert matrix["internalise"]["general"] > 0.75
    # Reading alone answers no question.
    assert matrix["read"]["internalise"] <= matrix["base"]["internalise"] + 0.05


def test_a_demonstration_of_the_reading_round_tells_nothing_of_the_task() -> None:
    """Its digits are drawn at random, so that what the second round learns it has from its own."""
    import json

    from align.data.demo.world import LENGTH, OPS

    lines = (CONFIG.parent / "self-distil/reading.jsonl").read_text().splitlines()
    right = 0
    for line in lines:
        row = json.loads(line)
        words = row["prompt"].split()
        assert words[:LENGTH] == row["completion"].split()
        digits = tuple(map(int, words[-LENGTH - 1 : -1]))
        right += OPS[words[LENGTH]](digits) == tuple(map(int, words[:LENGTH]))
    assert right <= len(lines) * 0.01
