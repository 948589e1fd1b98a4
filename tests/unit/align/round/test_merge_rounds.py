"""Whole rounds with a merge, in this process: what is published, judged, recorded, and gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.campaign import CampaignConfig
from align.config.mergers import MERGERS
from align.data.replay.history import PromptHistory
from align.report.explanation.explain import explain
from align.report.html.page import render
from align.report.records.history import detail
from align.retention.mergers.merge import Merge
from align.round.plan import RoundPlan
from align.store.repairs import MergeOrigin, merge_of, repairs_of
from align.store.snapshots.snapshots import SnapshotStore
from launch.commands.rounds import _detail_lines
from tests.unit.align.round.test_repair_rounds import ScriptedGate
from tests.unit.align.round.test_retention_rounds import LORA, Ran, run, weights
from tests.unit.campaigns import ENFORCE, Watcher, raw_campaign

LINES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "full": (
        {"model": "demo://digits"},
        [
            {"name": "linear", "shares": 0.6},
            {"name": "ties"},
            {"name": "hma", "blocks": 2, "samples": 4, "steps": 2},
        ],
    ),
    "lora": (LORA, [{"name": "slerp"}, {"name": "warp"}, {"name": "dare"}, {"name": "lifealign"}]),
}
"""Policy of a campaign, and the mergers of its rounds in order."""


def merging(folder: Path, merge: Any, **changes: Any) -> CampaignConfig:
    """The small campaign of two rounds with a merge."""
    raw = raw_campaign(folder, **changes)
    raw["defaults"] = {**raw["defaults"], "merge": merge, "checkpoint_every": 1}
    raw["defaults"]["suite"] = {"items": 20, "temperature": 1.0}
    return CampaignConfig.model_validate(raw)


def origins(ran: Ran) -> list[MergeOrigin]:
    """What the candidates of all rounds were merged of, as their reports say."""
    made = [merge_of(record.report) for record in ran.evidence.ledger.rounds()]
    assert all(made)
    return [origin for origin in made if origin is not None]


def merged_again(ran: Ran, name: str, origin: MergeOrigin) -> dict[str, torch.Tensor]:
    """Compute the candidate's weights from the snapshots that its origin names."""
    config = next(spec.merge for spec in ran.config.rounds if spec.name == name)
    assert config is not None
    merge = Merge(
        config=config, base=ran.evidence.base, past=origin.past, anchor=origin.anchor,
        runs=origin.runs, share=origin.share, block_shares=origin.block_shares,
        seed=opened(ran)(origin.of).manifest.provenance.seeds["round"],
    )  # fmt: skip
    return dict(merge.tensors(lambda snapshot: opened(ran)(snapshot).path))


def opened(ran: Ran) -> Any:
    return SnapshotStore(ran.config.folder).open


@pytest.fixture(scope="module", params=LINES)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One round of each merger, one after another. Tests only read it."""
    policy, mergers = LINES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    rounds = [
        {**spec, "name": merge["name"], "merge": merge, "steps": 1}
        for spec, merge in zip(raw_campaign(folder)["rounds"] * 2, mergers, strict=False)
    ]
    return run(merging(folder, False, policy=policy, rounds=rounds))


def test_every_merger_has_a_round() -> None:
    assert {merge["name"] for _, mergers in LINES.values() for merge in mergers} == MERGERS.keys()


def test_the_merged_weights_are_the_candidate(line: Ran) -> None:
    for record, origin in zip(line.evidence.ledger.rounds(), origins(line), strict=True):
        assert record.state == "accepted" and origin.merger == record.name
        ours = weights(line, record.candidate)
        expected = merged_again(line, record.name, origin)
        assert all(torch.equal(ours[key], expected[key].float()) for key in ours)
        provenance = opened(line)(record.candidate).manifest.provenance
        assert provenance.extra["merge"]["merger"] == record.name
        assert provenance.parent == record.parent
    assert line.evidence.looks() == len(line.config.rounds)
    again, recorded = line.evidence.recompute(line.config.rounds[-1].name)
    assert again.to_json() == recorded.to_json()


def test_what_was_trained_is_kept_and_not_judged(line: Ran) -> None:
    for record, origin in zip(line.evidence.ledger.rounds(), origins(line), strict=True):
        assert len(origin.runs) == (2 if record.name == "warp" else 1)
        for trained in origin.runs:
            assert trained != record.candidate
            assert opened(line)(trained).manifest.provenance.parent == record.parent
            assert not line.evidence.ledger.evaluations(trained)


def test_mergers_of_rounds_read_all_that_were_accepted(line: Ran) -> None:
    accepted: list[str] = []
    for record, origin in zip(line.evidence.ledger.rounds(), origins(line), strict=True):
        reads = record.name in ("ties", "dare", "lifealign")
        assert origin.past == (tuple(accepted) if reads else ())
        accepted.append(record.candidate or "")


def test_people_are_told(line: Ran) -> None:
    for record, origin in zip(line.evidence.ledger.rounds(), origins(line), strict=True):
        assert detail(line.evidence, record.name).merge == origin
        for lines in (
            explain(line.evidence, record.name).lines(),
            _detail_lines(detail(line.evidence, record.name)),
            line.watcher.notes,
        ):
            assert any(origin.description in text for text in lines)
    page = render(line.evidence)
    assert all(origin.description in page for origin in origins(line))


class Killer(Watcher):
    """Stops the runner at a step of a further run, or when a note comes."""

    def __init__(self, step: int | None = None, words: str = "-") -> None:
        super().__init__()
        self.step, self.words = step, words

    def note(self, text: str) -> None:
        super().note(text)
        if self.words in text:
            raise KeyboardInterrupt("killed")

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        if plan.origin is not None and plan.origin.rung == "run" and step == self.step:
            raise KeyboardInterrupt("killed")


WARP = {"name": "warp", "share": [0.6, 0.3]}


@pytest.fixture(scope="module")
def warped(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return searched(tmp_path_factory.mktemp("warped"), WARP, [False, True])


def searched(
    folder: Path, merge: Any, passes: list[bool], watcher: Watcher | None = None, **first: Any
) -> Ran:
    """One round whose points the gate passes or refuses as a script says."""
    rounds = [{**raw_campaign(folder)["rounds"][0], **first}]
    config = merging(folder, merge, rounds=rounds, gate=ENFORCE)
    with pytest.MonkeyPatch.context() as patch:
        ScriptedGate(passes).install(patch)
        return run(config, watcher)


def test_runs_begin_alike_and_draw_other_prompts(warped: Ran) -> None:
    (origin,) = origins(warped)
    one, other = (weights(warped, snapshot) for snapshot in origin.runs)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    seeds = [opened(warped)(run).manifest.provenance.seeds["round"] for run in origin.runs]
    assert seeds[0] != seeds[1]
    assert opened(warped)(origin.runs[1]).manifest.provenance.extra["run"]["number"] == 2
    folder = warped.config.folder / "rounds/00-first/attempt-1"
    assert (folder / "run-2/metrics.jsonl").is_file()
    assert "first: run 2 of 2" in warped.watcher.notes


def test_every_point_is_a_look_and_the_first_that_passes_is_taken(warped: Ran) -> None:
    (record,) = warped.evidence.ledger.rounds()
    far, near = repairs_of(record.report)
    assert [step.rung for step in (far, near)] == ["merge", "merge"]
    assert (record.state, record.candidate) == ("accepted", near.candidate)
    assert [step.look for step in (far, near)] == [1, 2] and warped.evidence.looks() == 2
    assert warped.evidence.look_of("first") == 2
    (origin,) = origins(warped)
    assert (origin.share, origin.description) == (
        0.3,
        "warp merge of 2 runs, 0.3 of the way from the parent",
    )


@pytest.mark.parametrize(
    "killer", [Killer(step=0), Killer(words="0.6 of the way")], ids=["in a run", "in the search"]
)
def test_a_killed_merge_ends_where_an_undisturbed_one_does(
    warped: Ran, killer: Killer, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, WARP, [False, True], killer)
    again = searched(tmp_path, WARP, [False, True])
    assert origins(again) == origins(warped)
    (record,), (expected,) = again.evidence.ledger.rounds(), warped.evidence.ledger.rounds()
    assert record.candidate == expected.candidate
    assert [s.look for s in repairs_of(record.report)] == [1, 2]
    if killer.step is not None:
        assert "round first goes on from step 1" in again.watcher.notes


def test_the_whole_way_is_what_was_trained(tmp_path: Path) -> None:
    """The share 1 comes first and passes: nothing is merged, and nothing further is judged."""
    ran = searched(tmp_path, "linear", [True])
    (record,) = ran.evidence.ledger.rounds()
    (origin,) = origins(ran)
    ours, trained = (weights(ran, snapshot) for snapshot in (record.candidate, origin.of))
    assert all(torch.equal(ours[key], trained[key]) for key in ours) and origin.share == 1.0
    assert ran.evidence.looks() == 1 and repairs_of(record.report) == ()


def test_a_search_in_vain_goes_on_to_the_ladder(tmp_path: Path) -> None:
    """Two points lose something, then the ladder distils from the first of them."""
    merge = {"name": "linear", "shares": [0.8, 0.4]}
    ran = searched(tmp_path, merge, [False, False, True], repair={"distil": {"steps": 1}})
    (record,) = ran.evidence.ledger.rounds()
    steps = repairs_of(record.report)
    assert [step.rung for step in steps] == ["merge", "merge", "distil"]
    assert [step.look for step in steps] == [1, 2, 3] and ran.evidence.looks() == 3
    assert record.candidate == steps[2].candidate
    repair = opened(ran)(record.candidate).manifest.provenance.extra["repair"]
    assert repair["of"] == steps[0].candidate
    assert origins(ran)[0].share == 0.8


def test_an_observing_gate_takes_the_first_point_if_none_passes(tmp_path: Path) -> None:
    """A round that destroys the model: no share of the way is good, and 0.9 stands first."""
    raw = raw_campaign(tmp_path)
    rounds = [{**raw["rounds"][0], "steps": 1, "optimizer": {"lr": 0.5}}]
    ran = run(merging(tmp_path, {"name": "linear", "shares": [0.9, 0.8]}, rounds=rounds))
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "accepted" and origins(ran)[0].share == 0.9
    assert (record.report or {})["outcome"] == "rejected"


def test_an_accepted_merge_leaves_artifacts_and_the_history_of_the_round(tmp_path: Path) -> None:
    """The merge itself has no steps and samples nothing: it takes nothing out of the history either."""
    ewc = {"name": "ewc", "lambda": 10.0, "samples": 4}
    ran = run(merging(tmp_path, {"name": "linear", "shares": 0.5}, rounds=[
        {**raw_campaign(tmp_path)["rounds"][0], "retention": ["kl_anchors", ewc], "steps": 1,
         "replay": {"draw": "mastery", "general": 0.0}},
    ]))  # fmt: skip
    path = ran.config.folder / "rounds/00-first/attempt-1/artifacts/ewc.safetensors"
    assert ran.evidence.files.hash_of(path) is not None
    candidate = ran.evidence.ledger.rounds()[0].candidate or ""
    history = PromptHistory.load(ran.evidence.store.paths.prompt_history(candidate))
    assert history.start == 1 and history.known
