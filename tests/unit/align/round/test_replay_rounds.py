"""Two whole rounds under each kind of replay: stopped after a checkpoint, gone on with, and accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.replay.history import PromptHistory
from align.errors import EvidenceError
from tests.unit.align.round.test_retention_rounds import run, weights
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher, raw_campaign

CASES: dict[str, dict[str, Any]] = {
    "mastery": {"draw": {"name": "mastery", "floor": 0.2}},
}
"""Settings of replay by the name of a test's case."""


def campaign_with(folder: Path, replay: dict[str, Any], **changes: Any) -> CampaignConfig:
    """The small campaign with other replay, and a checkpoint after every step."""
    raw = raw_campaign(folder, **changes)
    defaults = raw["defaults"]
    defaults["replay"] |= replay
    return CampaignConfig.model_validate({**raw, "defaults": defaults | {"checkpoint_every": 1}})


@pytest.fixture(scope="module")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two accepted rounds that nothing disturbed. Tests only read it."""
    return run(campaign_with(tmp_path_factory.mktemp("straight"), CASES[request.param]))


@pytest.mark.parametrize("ran", CASES, indirect=True, scope="module")
def test_a_round_that_was_stopped_ends_where_an_undisturbed_one_does(
    ran: Ran, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The second round is stopped between its two steps."""
    case = request.node.callspec.params["ran"]
    config = campaign_with(tmp_path, CASES[case])
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(config, Watcher(("second", 0)))
    resumed = run(config)
    assert any("goes on from step 1" in note for note in resumed.watcher.notes)
    for name, candidate in ran.candidates.items():
        ours, theirs = weights(resumed, resumed.candidates[name]), weights(ran, candidate)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    kept = [sorted(r.config.folder.glob("replay/*.jsonl")) for r in (ran, resumed)]
    assert [path.name for path in kept[0]] == [path.name for path in kept[1]]
    for before, after in zip(*kept, strict=True):
        assert before.read_bytes() == after.read_bytes()
        assert resumed.evidence.files.hash_of(after) is not None


@pytest.mark.parametrize("ran", ["mastery"], indirect=True, scope="module")
def test_scores_of_replayed_samples_choose_prompts_and_go_from_round_to_round(ran: Ran) -> None:
    paths, candidates = ran.evidence.store.paths, ran.candidates
    first, second = (
        PromptHistory.load(paths.prompt_history(candidates[name] or ""))
        for name in ("first", "second")
    )
    assert (first.start, second.start) == (2, 4)
    assert all(sight.score is not None for sight in first.known.values())
    lines = ran.metrics(1, "second")
    later = {name for name, sight in second.known.items() if sight.step >= 2}
    assert any(name.startswith("rev/") for name in later)
    assert [line["replay/first"] for line in lines] == [line["rollouts/past"] for line in lines]
    # Scores do not teach: past rows have no advantage, so KL alone moves them.
    import pyarrow.parquet as pq

    table = pq.read_table(next(ran.config.folder.glob("rounds/01*/attempt-1/rollouts/*.parquet")))
    rows = [row for row in table.to_pylist() if row["source"] == "past"]
    assert rows and all(row["advantage"] is None for row in rows)
    assert all(row["status"] == "scored" for row in rows)


@pytest.mark.parametrize("ran", ["mastery"], indirect=True, scope="module")
def test_a_history_that_was_changed_stops_the_next_round(ran: Ran, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(ran.config.folder, tmp_path / "store")
    raw = json.loads(ran.config.model_dump_json())
    raw |= {"store": str(tmp_path / "store")}
    raw["rounds"].append({**raw["rounds"][0], "name": "third", "steps": 1})
    config = CampaignConfig.model_validate(raw)
    path = config.folder / "replay" / f"history-{(ran.candidates['second'] or '')[:16]}.jsonl"
    path.write_text(path.read_text().replace('"score": 0', '"score": 1'))
    with pytest.raises(EvidenceError, match=r"history-(.|\n)*replay\.draw"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())
