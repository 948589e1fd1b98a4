"""Campaigns that change while they run: whole rounds in this process, with a real model and store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.data.demo.world import demo_prompts
from align.report.forecast.forecast import forecast
from align.store.changes.amend import drop
from align.store.ledger.amendments import amendments_of
from rewards.failures import RewardFailure
from rollouts.errors import RunError, UserError
from tests.unit.align.round.test_round import Ran, run
from tests.unit.campaigns import Watcher, no_engine, raw_campaign

RAISES = "def bad(completions, **_):\n    raise RuntimeError('not today')\n"
SCORES = "def bad(completions, **_):\n    return [float(len(c) % 3) for c in completions]\n"


def raw(folder: Path, *rounds: dict[str, Any], **changes: Any) -> dict[str, Any]:
    base = raw_campaign(folder, **changes)
    base["rounds"] = [base["rounds"][0] | {"steps": 1}, *rounds]
    return base


def states(ran: Ran) -> dict[str, str]:
    return {record.name: record.state for record in ran.evidence.ledger.rounds()}


@pytest.fixture(scope="module")
def one_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one accepted round; to be copied."""
    folder = tmp_path_factory.mktemp("one")
    run(CampaignConfig.model_validate(raw(folder)))
    return folder


@pytest.fixture
def folder(one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `one_round`, and the current folder."""
    shutil.copytree(one_round, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def appended(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "prompts": "demo://inc?n=60",
        "rewards": ["exact_match"],
        "steps": 1,
    } | values


def failed(folder: Path) -> dict[str, Any]:
    """A round appended to the campaign that failed."""
    (folder / "mine.py").write_text(RAISES)
    bad = appended("bad", rewards=["mine.py:bad"])
    with pytest.raises((RewardFailure, RunError)):
        run(CampaignConfig.model_validate(raw(folder, bad)))
    return bad


def test_a_bad_round_is_mended_and_runs(folder: Path) -> None:
    bad = failed(folder)
    mended = CampaignConfig.model_validate(
        raw(folder, bad | {"rewards": ["exact_match"], "steps": 2})
    )
    ran = run(mended)
    assert states(ran) == {"first": "accepted", "bad": "accepted"}
    assert "the campaign file was amended: rounds.bad.steps: 1 -> 2" in ran.watcher.notes
    assert [step for step in ran.watcher.steps if step[0] == "bad"] == [("bad", 0), ("bad", 1)]


def test_a_bad_round_is_mended_in_its_reward_file(folder: Path) -> None:
    bad = failed(folder)
    (folder / "mine.py").write_text(SCORES)
    ran = run(CampaignConfig.model_validate(raw(folder, bad)))
    assert states(ran)["bad"] == "accepted"
    assert any("mine.py: code" in note for note in ran.watcher.notes)
    # And once more after its verdict: noticed, written down, in nobody's way.
    (folder / "mine.py").write_text(SCORES + "\n# a remark\n")
    again = run(CampaignConfig.model_validate(raw(folder, bad, appended("third"))))
    assert states(again)["third"] == "accepted"
    changes = [entry.changes for entry in amendments_of(again.evidence.ledger)]
    assert any(change[0].startswith("mine.py: code") for change in changes[-1:])


def test_a_bad_round_is_dropped_and_the_campaign_goes_on(folder: Path) -> None:
    bad = failed(folder)
    both = CampaignConfig.model_validate(raw(folder, bad, appended("good")))
    drop(both, "bad", reason="it raises")
    assert [one.name for one in forecast(both).to_run] == ["good"]
    ran = run(both)
    assert states(ran) == {"first": "accepted", "good": "accepted"}
    again, recorded = ran.evidence.recompute("good")
    assert again.to_json() == recorded.to_json()
    # Nothing is left to do, with the dropped round in the file and without it.
    for config in (both, CampaignConfig.model_validate(raw(folder, appended("good")))):
        assert forecast(config).to_run == ()


def test_a_bad_round_is_replaced_by_one_of_another_name(folder: Path) -> None:
    failed(folder)
    ran = run(CampaignConfig.model_validate(raw(folder, appended("better"), appended("last"))))
    assert states(ran) == {"first": "accepted", "better": "accepted", "last": "accepted"}
    assert [r.index for r in ran.evidence.ledger.rounds()] == [0, 2, 3]
    again, recorded = ran.evidence.recompute("last")
    assert again.to_json() == recorded.to_json()


def test_suites_and_the_gate_change_for_rounds_to_come(folder: Path) -> None:
    watch = {"name": "counting", "prompts": "demo://general?n=30", "metric": "exact_match",
             "items": 30, "role": "watch"}  # fmt: skip
    changed = raw(folder, appended("second"))
    changed["suites"] = [{**changed["suites"][0], "margin": 0.5, "budget": 0.6}, watch]
    changed["gate"] = {"mode": "observe", "campaign_rounds": 3}
    changed["defaults"]["optimizer"] = {"lr": 1e-4}
    ran = run(CampaignConfig.model_validate(changed))
    assert states(ran) == {"first": "accepted", "second": "accepted"}
    verdict = ran.watcher.verdicts["second"].verdict
    rules = {rule.name: rule for rule in verdict.inputs.suites}
    assert (rules["general"].margin, rules["counting"].role) == (0.5, "watch")
    assert ran.evidence.matrix().rows[0].scores[1] is not None, "the base was measured on it"
    for name in ("first", "second"):
        again, recorded = ran.evidence.recompute(name)
        assert again.to_json() == recorded.to_json()
    # 10 declared, one taken: .045 is left for two, and the rule for three gives a third of .05.
    assert verdict.inputs.level == pytest.approx(0.05 / 3)


def test_an_interrupted_round_that_was_edited_starts_over(folder: Path) -> None:
    second = appended("second", steps=3, checkpoint_every=1)
    stopped = CampaignConfig.model_validate(raw(folder, second))
    with pytest.raises(KeyboardInterrupt):
        run(stopped, Watcher(stop_at=("second", 1), error=KeyboardInterrupt))
    edited = CampaignConfig.model_validate(raw(folder, second | {"optimizer": {"lr": 5e-4}}))
    ran = run(edited)
    assert [step for _, step in ran.watcher.steps] == [0, 1, 2]
    assert any("the round starts over" in note for note in ran.watcher.notes)


def test_a_round_goes_on_from_its_checkpoint_where_only_a_suite_was_added(folder: Path) -> None:
    second = appended("second", steps=3, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(CampaignConfig.model_validate(raw(folder, second)),
            Watcher(stop_at=("second", 1), error=KeyboardInterrupt))  # fmt: skip
    changed = raw(folder, second)
    changed["suites"].append({"name": "counting", "prompts": "demo://general?n=30", "items": 30,
                              "metric": "exact_match", "role": "watch"})  # fmt: skip
    ran = run(CampaignConfig.model_validate(changed))
    assert [step for _, step in ran.watcher.steps] == [2]


def write_rows(path: Path, source: str) -> None:
    rows = [{"prompt": p.text, "answer": p.columns["answer"]} for p in demo_prompts(source)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("gone", ["rows.jsonl", "held.jsonl"])
def test_a_file_that_is_gone_after_the_verdict_stops_no_later_round(
    folder: Path, gone: str
) -> None:
    write_rows(folder / "rows.jsonl", "demo://inc?n=60")
    write_rows(folder / "held.jsonl", "demo://inc?n=30&split=eval")
    own = appended("own", prompts="rows.jsonl", suite={"prompts": "held.jsonl", "items": 30})
    run(CampaignConfig.model_validate(raw(folder, own)))
    (folder / gone).unlink()
    later = CampaignConfig.model_validate(
        raw(folder, own, appended("later", prompts="demo://sort?n=60"))
    )
    assert [one.name for one in forecast(later).to_run] == ["later"]
    ran = run(later)
    assert states(ran)["later"] == "accepted"
    if gone == "rows.jsonl":
        assert "own" in {rule.name for rule in ran.watcher.verdicts["later"].verdict.inputs.suites}
    else:
        assert "own" in ran.watcher.verdicts["later"].verdict.inputs.left_out
        assert any(gone in note for note in ran.watcher.notes)
    with pytest.raises(UserError, match=gone):
        missing = appended(
            "next", prompts="rows.jsonl", suite={"prompts": "held.jsonl", "items": 30}
        )
        shutil.rmtree(folder / "store")
        from align.campaign import run_campaign

        run_campaign(
            CampaignConfig.model_validate(raw(folder, missing)), start_engine=no_engine,
            observer=Watcher(),
        )  # fmt: skip


def dpo(name: str, data: dict[str, str], **values: Any) -> dict[str, Any]:
    algorithm = {"name": "dpo", "pairs": "file"}
    return {"name": name, "data": data, "algorithm": algorithm, "steps": 1, **values}


def write_pairs(path: Path, source: str) -> None:
    rows = [
        {
            "prompt": p.text,
            "chosen": p.columns["answer"],
            "rejected": p.columns["answer"][::-1] + "1",
        }
        for p in demo_prompts(source)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pairs_that_are_gone_leave_held_out_ones_to_measure(folder: Path) -> None:
    """Later rounds are still held to them, and may hold out prompts of their own."""
    write_pairs(folder / "pairs.jsonl", "demo://inc?n=60")
    write_pairs(folder / "held.jsonl", "demo://inc?n=30&split=eval")
    write_rows(folder / "rows.jsonl", "demo://sort?n=90")
    own = dpo("own", {"source": "pairs.jsonl", "heldout_source": "held.jsonl"})
    run(CampaignConfig.model_validate(raw(folder, own)))
    (folder / "pairs.jsonl").unlink()
    prompts = {"source": "rows.jsonl", "heldout": 0.3}
    later = appended("later", prompts=prompts, suite={"items": 20})
    config = CampaignConfig.model_validate(raw(folder, own, later))
    assert [one.name for one in forecast(config).to_run] == ["later"]
    ran = run(config)
    assert states(ran)["later"] == "accepted"
    assert "own" in {rule.name for rule in ran.watcher.verdicts["later"].verdict.inputs.suites}


def test_a_dropped_round_that_stands_in_the_file_is_named(folder: Path) -> None:
    bad = failed(folder)
    config = CampaignConfig.model_validate(raw(folder, bad))
    drop(config, "bad", reason="it raises")
    ran = run(CampaignConfig.model_validate(raw(folder, bad | {"rewards": ["exact_match"]})))
    assert "bad" not in states(ran)
    assert any("bad was dropped" in note and "not run" in note for note in ran.watcher.notes)


def test_a_round_that_gave_up_its_place_leaves_no_checkpoint(folder: Path) -> None:
    second = appended("second", steps=3, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(CampaignConfig.model_validate(raw(folder, second)),
            Watcher(stop_at=("second", 1), error=KeyboardInterrupt))  # fmt: skip
    assert list((folder / "store").glob("rounds/01-second/checkpoint*"))
    ran = run(CampaignConfig.model_validate(raw(folder, second | {"name": "renamed", "steps": 1})))
    assert states(ran)["renamed"] == "accepted"
    assert not list((folder / "store").glob("rounds/*/checkpoint*"))
    assert list((folder / "store").glob("rounds/01-second/attempt-1/metrics.jsonl"))


def test_the_next_index_skips_places_that_were_given_up(folder: Path) -> None:
    bad = failed(folder)
    drop(CampaignConfig.model_validate(raw(folder, bad)), "bad", reason="it raises")
    ran = run(CampaignConfig.model_validate(raw(folder)))
    assert ran.evidence.due_index() == 2
    coming = run(CampaignConfig.model_validate(raw(folder, appended("next"))))
    assert [record.index for record in coming.evidence.ledger.rounds()] == [0, 2]
