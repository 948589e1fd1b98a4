"""`configs/stages.yaml`, shortened: pre-training, instructions and two alignments, in one campaign."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.verdict import Verdict
from align.store.snapshots.snapshots import SnapshotStore
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher

ROUNDING = 1e-8
"""Size of a divergence of equal distributions whose two passes add their terms in another order."""

ROOT = Path(__file__).parents[4]
STAGES = ["pretrain", "instruct", "align-pairs", "align-rewards"]
MARGINS = dict(zip(STAGES, (0.05, 0.06, 0.07, 0.08), strict=True))
"""Of each stage's own suite, for the gates of the stages after it."""
OWNER_BETAS = dict(zip(STAGES[1:], (1.0, 2.0, 4.0), strict=True))
"""How strongly each stage holds the prompts of those before it."""


def shortened(folder: Path) -> CampaignConfig:
    """The file with two steps a stage and few items, an anchor and a margin of each stage's own, and a
    gate that only observes: two steps prove nothing to it."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "configs/stages.yaml").read_text())
    raw["store"] = str(folder / "store")
    raw["defaults"]["sampling"] |= {"group_size": 4, "prompts_per_step": 8}
    raw["defaults"]["suite"]["items"] = 20
    raw["suites"][0]["items"] = 20
    raw["gate"]["mode"] = "observe"
    for spec in raw["rounds"]:
        spec["steps"] = 2
        spec["suite"] = {**spec.get("suite", {}), "margin": MARGINS[spec["name"]]}
        if (beta := OWNER_BETAS.get(spec["name"])) is not None:
            spec["anchors"] = {"past": {"to": "owner", "beta": beta}}
            spec["replay"] = {"past": 0.25}
        if (data := spec.get("data")) is not None:
            data = {"source": data} if isinstance(data, str) else data
            spec["data"] = {**data, "source": str(ROOT / "configs" / data["source"])}
    return CampaignConfig.model_validate(raw)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    config = shortened(tmp_path_factory.mktemp("stages"))
    starter, watcher = Starter(), Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def test_every_stage_begins_where_the_one_before_ended(stages: Ran) -> None:
    records = stages.evidence.ledger.rounds()
    assert [(r.name, r.state, r.attempt) for r in records] == [
        (name, "accepted", 1) for name in STAGES
    ]
    candidates = [record.candidate or "" for record in records]
    assert [r.parent for r in records] == [stages.evidence.base, *candidates[:-1]]
    assert len({stages.evidence.base, *candidates}) == 5
    store = SnapshotStore(stages.config.folder)
    for record, candidate in zip(records, candidates, strict=True):
        snapshot = store.open(candidate)
        origin = snapshot.manifest.provenance
        assert snapshot.kind == "model"
        assert (origin.parent, origin.base) == (record.parent, stages.evidence.base)
        assert origin.round == record.name
    assert stages.evidence.ledger.alias("production") == candidates[-1]


def test_every_stage_learns_by_an_algorithm_of_its_own_from_data_of_its_own(stages: Ran) -> None:
    chosen = [(spec.algorithm.name, spec.algorithm.material) for spec in stages.config.rounds]
    assert chosen == [
        ("pretrain", "texts"), ("sft", "demonstrations"), ("dpo", "rollouts"), ("grpo", "rollouts"),
    ]  # fmt: skip
    marks = ("loss/policy", "loss/policy", "pairs/made", "loss/clip_share")
    for index, (name, mark) in enumerate(zip(STAGES, marks, strict=True)):
        steps = stages.metrics(index, name)
        assert len(steps) == 2
        assert all(mark in step for step in steps)
        assert max(step["grad_norm"] for step in steps) > 0.0
    store = SnapshotStore(stages.config.folder)
    records = stages.evidence.ledger.rounds()
    read = [store.open(r.candidate or "").manifest.provenance.data_hashes for r in records]
    assert len({json.dumps(hashes, sort_keys=True) for hashes in read}) == 4


def test_every_stage_is_held_by_anchors_of_its_own(stages: Ran) -> None:
    assert all("kl/past/owner" not in step for step in stages.metrics(0, STAGES[0]))
    for index, name in enumerate(STAGES):
        for step in stages.metrics(index, name):
            assert step["kl/general/base"] >= -ROUNDING
    for index, (name, beta) in enumerate(OWNER_BETAS.items(), start=1):
        for step in stages.metrics(index, name):
            assert step["batch/past_tokens"] > 0
            assert step["beta/past/owner"] == beta


def test_every_stage_has_a_verdict_on_its_own_suite_and_those_before(stages: Ran) -> None:
    for index, record in enumerate(stages.evidence.ledger.rounds()):
        assert record.report is not None
        verdict = Verdict.from_dict(record.report)
        assert verdict.inputs.target == record.name
        rules = {rule.name: rule for rule in verdict.inputs.suites}
        assert {name: rules[name].margin for name in STAGES} == MARGINS
        decided = {one.suite: one.role for one in verdict.checks if one.role != "shown"}
        held = dict.fromkeys(("general", *STAGES[:index]), "retention")
        assert decided == {**held, record.name: "target"}
        again, recorded = stages.evidence.recompute(record.name)
        assert again == recorded
