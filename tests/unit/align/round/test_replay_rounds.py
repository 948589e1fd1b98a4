"""Two whole rounds under each kind of replay: stopped after a checkpoint, gone on with, and accepted."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from align.config.campaign import CampaignConfig
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.history import PromptHistory
from align.data.stored_answers import load_answers
from align.errors import ArtifactError
from align.report.forecast.check import check_campaign
from align.report.forecast.forecast import forecast
from tests.unit.align.round.test_retention_rounds import run, weights
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Copying, raw_campaign

CASES: dict[str, dict[str, Any]] = {
    "mastery": {"draw": {"name": "mastery", "floor": 0.2}},
    "answers": {"answers": {"share": 0.3, "keep": 0.6, "by": "confidence"}},
    "synthesis": {
        "synthesis": {"count": 6, "shots": 2, "max_tokens": 8, "separator": " ; "},
        "answers": {"share": 0.2, "by": "confidence"},
    },
    "freely": {"synthesis": {"count": 6, "max_tokens": 8}, "buffer": 0},
    "pretraining": {
        "pretraining": {"source": "TEXTS", "weight": 0.1, "rows": 1.5, "tokens": 12, "heldout": 0.3}
    },
}
"""Settings of replay by the name of a test's case."""


def texts(path: Path, count: int = 20) -> str:
    """Write texts of the tiny world's words, no two of which share a run of them."""
    draw = Random(0)
    lines = [" ".join(draw.choices("0123456789", k=9)) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(path)


def campaign_with(folder: Path, replay: dict[str, Any], **changes: Any) -> CampaignConfig:
    """The small campaign with other replay, and a checkpoint after every step."""
    raw = raw_campaign(folder, **changes)
    defaults = raw["defaults"]
    defaults["replay"] |= replay
    if "pretraining" in replay:
        source = texts(folder.parent / "texts.jsonl")
        defaults["replay"]["pretraining"] = {**replay["pretraining"], "source": source}
    return CampaignConfig.model_validate({**raw, "defaults": defaults | {"checkpoint_every": 1}})


@pytest.fixture(scope="module")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two accepted rounds that nothing disturbed. Tests only read it."""
    folder = tmp_path_factory.mktemp("straight")
    config = campaign_with(folder / "straight", CASES[request.param])
    return run(config, Copying(config.folder, folder, ("second", 0)))


@pytest.mark.parametrize("ran", CASES, indirect=True, scope="module")
def test_a_round_that_was_killed_ends_where_an_undisturbed_one_does(
    ran: Ran, request: pytest.FixtureRequest
) -> None:
    """The process is killed between the two steps of the second round."""
    case = request.node.callspec.params["ran"]
    assert isinstance(ran.watcher, Copying)
    resumed = run(campaign_with(ran.watcher.copy_after("second", 0), CASES[case]))
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
    for command in (check_campaign, forecast, run):
        with pytest.raises(ArtifactError, match=r"'third' draws by .*history(.|\n)*replay\.draw"):
            command(config)
    # What the remedy says helps.
    third = raw["rounds"][-1]
    third["replay"] = {**third["replay"], "draw": {"name": "balanced"}}
    mended = CampaignConfig.model_validate(raw)
    check_campaign(mended)
    assert [record.state for record in run(mended).evidence.ledger.rounds()] == ["accepted"] * 3


@pytest.mark.parametrize("ran", ["answers"], indirect=True, scope="module")
def test_the_best_answers_of_the_parent_are_imitated_beside_the_rounds_loss(ran: Ran) -> None:
    assert not any("rehearsal/answers" in line for line in ran.metrics(0, "first"))
    lines = ran.metrics(1, "second")
    assert all(line["rehearsal/answers"] > 0 for line in lines)
    # 20 completions a step, of which 30% are answered rows on top.
    assert all(line["batch/answers_tokens"] > 0 for line in lines)
    groups = load_answers(next(ran.config.folder.glob("replay/answers-*.jsonl")))
    assert len(groups) == ceil(0.6 * 12)
    assert {(g.policy, g.prompt.round, g.prompt.source) for g in groups} == {
        (ran.candidates["first"], "first", "past")
    }
    assert any("8 of 12 answers of the parent" in note for note in ran.watcher.notes)


@pytest.mark.parametrize("ran", ["pretraining"], indirect=True, scope="module")
def test_texts_stay_likely_and_the_held_out_ones_are_measured(ran: Ran) -> None:
    """1.5 windows a step: 1 of at most 11 predicted tokens, then 2."""
    lines = [*ran.metrics(0, "first"), *ran.metrics(1, "second")]
    assert all(line["rehearsal/texts"] > 0 for line in lines)
    tokens = [line["batch/texts_tokens"] for line in lines]
    assert all(few <= 11 < 22 >= many > few for few, many in (tokens[:2], tokens[2:]))
    assert all(line["rehearsal/heldout_texts"] > 0 for line in lines)


@pytest.mark.parametrize("ran", ["synthesis", "freely"], indirect=True, scope="module")
def test_prompts_that_the_parent_wrote_stand_for_stored_ones(ran: Ran) -> None:
    """The parent of the second round is the first: freely or like the stored prompts, it is the owner."""
    paths, first = ran.evidence.store.paths, ran.candidates["first"] or ""
    stored = ReplayBuffer.load(paths.replay(first)).entries["first"]
    (path,) = ran.config.folder.glob("replay/synthetic-*.jsonl")
    (written,) = ReplayBuffer.load(path).entries.values()
    assert 1 < len(written) <= 6 and len(stored) in (0, 12)
    assert {p.id for p in written}.isdisjoint(p.id for p in stored)
    assert {(p.owner, p.round, p.source) for p in written} == {(first, "first", "past")}
    lines = ran.metrics(1, "second")
    assert all(line["rollouts/past"] > 0 and "kl/past/owner" in line for line in lines)
    assert ("rehearsal/answers" in lines[0]) == bool(stored)
