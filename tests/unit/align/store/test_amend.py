"""A campaign file that changes after its store was begun: what may, what is kept, what is refused."""

from __future__ import annotations

import atexit
import copy
import json
import shutil
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.data.base_model import SCHEMES
from align.errors import StoreError
from align.gate.evidence import stored_evidence
from align.gate.suites.suites import build_suites
from align.gate.verdict import decide_from_files
from align.store.changes.amend import amend, drop
from align.store.changes.compare import compare
from align.store.changes.difference import ConfigChange, differences
from align.store.changes.earlier_versions import as_read
from align.store.changes.locks import Committed, Slot
from align.store.changes.settle import settle
from align.store.ledger.amendments import amendments_of, drops_of
from align.store.ledger.ledger import Ledger
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign
from tests.unit.decided import VALUES, campaign_file, decided, keel, raw, results
from tests.unit.ledgers import BASE, FIRST, SECOND

Edit = Callable[[dict[str, Any]], Any]


@cache
def decided_once() -> Path:
    """A folder with a store whose first round was accepted; to be copied."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    decided(folder, rounds=1)
    return folder


def begun(folder: Path) -> dict[str, Any]:
    """A store whose first round was accepted, whose second failed, and whose third is planned."""
    shutil.copytree(decided_once(), folder, dirs_exist_ok=True)
    campaign = raw(folder)
    campaign["rounds"].append({**campaign["rounds"][0], "name": "third"})
    config = CampaignConfig.model_validate(campaign)
    ledger = Ledger(config.ledger_url)
    ledger.open_campaign(config.name, config.content(), config.hash(), read=as_read)
    attempt = ledger.begin_round(1, "second", ledger.alias("production") or "")
    ledger.commit_round(1, attempt, "failed", None, {"error": "a reward raised"})
    return campaign


def edited(campaign: dict[str, Any], edit: Edit) -> CampaignConfig:
    changed = copy.deepcopy(campaign)
    edit(changed)
    return CampaignConfig.model_validate(changed)


def reopen(config: CampaignConfig, who: str = "ana", reason: str = "") -> list[tuple[str, str]]:
    """Amend the store with a file; its rounds with their states."""
    settled = settle(config)
    settled.check()
    ledger = Ledger(config.ledger_url)
    stated = settled.stated
    ledger.open_campaign(
        stated.name, stated.content(), stated.hash(), read=as_read, who=who, reason=reason
    )
    assert settle(config).comparison.changes == (), "the same file again changes nothing"
    return [(record.name, record.state) for record in ledger.rounds()]


WATCH = {"name": "counting", "prompts": "demo://general?n=30", "metric": "exact_match", "items": 30,
         "role": "watch"}  # fmt: skip

ALLOWED: dict[str, tuple[Edit, list[str]]] = {
    "a failed round is mended": (
        lambda c: c["rounds"][1].update(steps=9),
        ["rounds.second.steps: 2 -> 9"],
    ),
    "a failed round gets another reward": (
        lambda c: c["rounds"][1].update(rewards=["contains"]),
        ["rounds.second.rewards.exact_match: ", "rounds.second.rewards.contains: (absent) -> "],
    ),
    "a watch suite": (lambda c: c["suites"].append(WATCH), ["suites.counting: added"]),
    "a gate suite": (
        lambda c: c["suites"].append({**WATCH, "role": "gate"}),
        ["suites.counting: added"],
    ),
    "a suite goes": (lambda c: c.update(suites=[]), ["suites.general: removed"]),
    "a suite's margin": (
        lambda c: c["suites"][0].update(margin=0.07),
        ["suites.general.margin: 0.05 -> 0.07"],
    ),
    "a suite only watches": (
        lambda c: c["suites"][0].update(role="watch"),
        ['suites.general.role: "gate" -> "watch"'],
    ),
    "the margin of a decided round's suite": (
        lambda c: c["rounds"][0].update(suite={"margin": 0.2}),
        ["rounds.first.suite.margin: 0.1 -> 0.2"],
    ),
    "more declared rounds": (
        lambda c: c["gate"].update(campaign_rounds=20),
        ["gate.campaign_rounds: 2 -> 20"],
    ),
    "another alpha": (lambda c: c["gate"].update(alpha=0.1), ["gate.alpha: 0.05 -> 0.1"]),
    "another total budget": (
        lambda c: c["gate"].update(total_budget=0.3),
        ["gate.total_budget: null -> 0.3"],
    ),
    "the gate observes": (
        lambda c: c["gate"].update(mode="observe"),
        ['gate.mode: "enforce" -> "observe"'],
    ),
    "a default of later rounds": (
        lambda c: c["defaults"].update(optimizer={"lr": 5e-4}),
        ["defaults.optimizer.lr: 0.0003 -> 0.0005"],
    ),
    "another default algorithm": (
        lambda c: c["defaults"].update(algorithm="dr_grpo"),
        [
            'defaults.algorithm.name: "grpo" -> "dr_grpo"',
            'defaults.algorithm.scale: "group"',
            "defaults.algorithm.mean: ",
            "defaults.algorithm.length: ",
        ],
    ),
    "a default that cuts answers": (
        lambda c: c["defaults"]["sampling"].update(max_tokens=9),
        ["defaults.sampling.max_tokens: 6 -> 9"],
    ),
    "an appended round": (
        lambda c: c["rounds"].append({**c["rounds"][0], "name": "fourth"}),
        ["rounds.fourth: added"],
    ),
    "a planned round is renamed": (
        lambda c: c["rounds"][2].update(name="last"),
        ["rounds.third: removed", "rounds.last: added"],
    ),
    "a failed round is removed": (lambda c: c["rounds"].pop(1), ["rounds.second: removed"]),
    "a round before a failed one": (
        lambda c: c["rounds"].insert(1, {**c["rounds"][0], "name": "between"}),
        ["rounds.between: added"],
    ),
    "rounds to come in another order": (
        lambda c: c["rounds"].append(c["rounds"].pop(1)),
        ["rounds: order first, second, third -> first, third, second"],
    ),
}

REFUSED: dict[str, tuple[Edit, list[str]]] = {
    "what a decided round was trained by": (
        lambda c: c["rounds"][0].update(steps=9),
        ["rounds.first.steps: 2 -> 9", "round 'first' was accepted"],
    ),
    "what a decided round asked": (
        lambda c: c["rounds"][0].update(prompts="demo://sort?n=60"),
        ["rounds.first.prompts.source", "round 'first' was accepted"],
    ),
    "what a decided round was measured on": (
        lambda c: c["rounds"][0].update(suite={"items": 30}),
        ["rounds.first.suite.items: 200 -> 30"],
    ),
    "a decided round is removed": (
        lambda c: c["rounds"].pop(0),
        ["rounds.first: removed", "keel rollback"],
    ),
    "a decided round is renamed": (
        lambda c: c["rounds"][0].update(name="uno"),
        ["rounds.first: removed", "it stays in the file under its name"],
    ),
    "a round before a decided one": (
        lambda c: c["rounds"].insert(0, {**c["rounds"][0], "name": "zero"}),
        ["rounds.zero: stands before first", "later rounds come after it"],
    ),
    "a decided round behind one to come": (
        lambda c: c["rounds"].insert(1, c["rounds"].pop(0)),
        ["rounds.second: stands before first"],
    ),
    "another base": (
        lambda c: c["policy"].update(model="elsewhere/model"),
        ["policy.model", "another model is another campaign"],
    ),
    "adapters in place of full weights": (
        lambda c: c["policy"].update(lora={"rank": 4}),
        ["policy.lora", "snapshots of decided rounds were made with it (first)"],
    ),
    "another seed": (lambda c: c.update(seed=3), ["seed: 0 -> 3", "(first)"]),
    "what a judged suite measures": (
        lambda c: c["suites"][0].update(items=100),
        ["suites.general.items: 200 -> 100", "give the changed suite another name"],
    ),
    "another campaign": (
        lambda c: c.update(name="other"),
        ["this store holds the campaign 'small', not 'other'"],
    ),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_no_verdict_rests_on_may_change(kind: str, tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    edit, sentences = ALLOWED[kind]
    config = edited(campaign, edit)
    reopen(config, reason="as was agreed")
    entry = amendments_of(Ledger(config.ledger_url))[-1]
    assert (entry.who, entry.reason, entry.decisions) == ("ana", "as was agreed", 1)
    assert len(entry.changes) == len(sentences), entry.changes
    for change, sentence in zip(entry.changes, sentences, strict=True):
        assert change.startswith(sentence)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_verdict_rests_on_is_refused_alike_everywhere(kind: str, tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    edit, words = REFUSED[kind]
    changed = copy.deepcopy(campaign)
    edit(changed)
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(changed))
    before = (tmp_path / "store" / "ledger.db").read_bytes()
    told = set()
    for command in (["config", "check"], ["plan"], ["run"], ["campaign", "amend", "--reason=x"]):
        code, out, error = keel(*command, str(file))
        assert (code, out) == (2, ""), (command, error)
        for word in words:
            assert word in error, command
        told.add(next(line.strip() for line in error.splitlines() if words[0] in line)[-60:])
    assert len(told) == 1
    assert str(tmp_path / "store") in error
    assert (tmp_path / "store" / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("kind", ALLOWED)
def test_an_old_verdict_is_recomputed_bit_for_bit(kind: str, tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    config = edited(campaign, ALLOWED[kind][0])
    reopen(config)
    again, recorded = stored_evidence(config).recompute("first")
    assert again.to_json() == recorded.to_json()
    assert recorded.inputs.gate.alpha == 0.05


def test_a_decided_round_keeps_the_defaults_that_it_was_trained_by(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    for lr in (5e-4, 7e-4):
        config = edited(campaign, lambda c, lr=lr: c["defaults"].update(optimizer={"lr": lr}))
        reopen(config)
        rates = {r.name: r.optimizer.lr for r in stored_evidence(config).config.rounds}
        assert rates == {"first": 3e-4, "second": lr, "third": lr}
    # The round may say itself what holds for it in any case, and nothing else.
    stated = edited(campaign, lambda c: (
        c["defaults"].update(optimizer={"lr": 7e-4}), c["rounds"][0].update(optimizer={"lr": 3e-4})
    ))  # fmt: skip
    reopen(stated)
    other = edited(campaign, lambda c: (
        c["defaults"].update(optimizer={"lr": 7e-4}), c["rounds"][0].update(optimizer={"lr": 1e-3})
    ))  # fmt: skip
    assert [r.sentence for r in settle(other).comparison.refusals] == [
        "rounds.first.optimizer.lr: 0.0003 -> 0.001"
    ]


def test_a_judged_suite_keeps_the_default_that_cut_its_answers(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    config = edited(campaign, lambda c: c["defaults"]["sampling"].update(max_tokens=9))
    reopen(config)
    (general,) = stored_evidence(config).config.suites
    assert general.max_tokens == 6


def test_a_suite_that_comes_back_measures_what_it_measured(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    reopen(edited(campaign, lambda c: c.update(suites=[])))
    again = edited(campaign, lambda c: c["suites"][0].update(margin=0.06))
    assert settle(again).comparison.refusals == ()
    other = edited(campaign, lambda c: c["suites"][0].update(items=100))
    assert "suites.general.items: 200 -> 100" in settle(other).comparison.refusals[0].line


def test_rounds_that_never_ended_move_as_the_file_says(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    between = {**campaign["rounds"][0], "name": "between"}
    config = edited(campaign, lambda c: c["rounds"].insert(1, between))
    assert reopen(config) == [
        ("first", "accepted"), ("between", "planned"), ("second", "planned"), ("third", "planned"),
    ]  # fmt: skip
    ledger = Ledger(config.ledger_url)
    assert [(d.round, d.index, d.stays) for d in drops_of(ledger.database)] == [
        ("second", 1, False)
    ]
    assert [(r.name, r.state) for r in ledger.attempts() if r.index == 1] == [
        ("second", "planned"), ("second", "dropped"),
    ]  # fmt: skip
    attempt = ledger.begin_round(3, "between", ledger.alias("production") or "")
    assert attempt == 1


def test_before_any_verdict_all_but_the_base_may_change(tmp_path: Path) -> None:
    first = CampaignConfig.model_validate(raw_campaign(tmp_path))
    ledger = Ledger(first.ledger_url)
    ledger.open_campaign(first.name, first.content(), first.hash())
    ledger.record_snapshot(BASE)
    ledger.set_alias_initial("production", BASE.id)
    edits: list[Edit] = [
        lambda c: c.update(seed=5),
        lambda c: c["policy"].update(lora={"rank": 4}),
        lambda c: c["rounds"][0].update(steps=7),
        lambda c: c["rounds"].reverse(),
        lambda c: c["rounds"].pop(0),
    ]
    for edit in edits:
        config = edited(raw_campaign(tmp_path), edit)
        reopen(config)
    model = edited(raw_campaign(tmp_path), lambda c: c["policy"].update(model="elsewhere"))
    assert "policy.model" in settle(model).comparison.refusals[0].line


def test_a_refusal_names_everything_at_once(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    config = edited(campaign, lambda c: (c.update(seed=1), c["rounds"][0].update(steps=5)))
    with pytest.raises(StoreError) as caught:
        settle(config).check()
    assert "seed: 0 -> 1" in str(caught.value)
    assert "rounds.first.steps: 2 -> 5" in str(caught.value)


def test_a_verdict_after_an_amendment_does_not_spend_alpha_again(tmp_path: Path) -> None:
    # 2 declared at .05, one decided: .025 is spent. 6 declared: .025 is left for five.
    campaign = begun(tmp_path)
    config = edited(campaign, lambda c: c["gate"].update(campaign_rounds=6))
    reopen(config)
    evidence = stored_evidence(config)
    assert evidence.amended_level(2) == pytest.approx(0.005)
    suites = build_suites(config, SCHEMES, None)  # type: ignore[arg-type]  # No texts to encode.
    known = [suite for suite in suites if suite.name != "third"]
    evidence.ledger.record_snapshot(SECOND)
    evidence.save(SECOND.id, results(known, SECOND.id, VALUES[SECOND.id]))
    verdict = evidence.judge("second", SECOND.id, FIRST.id, known)
    assert {check.alpha for check in verdict.checks} == {0.005}
    assert "what they took stays spent: 0.005 here" in verdict.reasons[-1]
    again = decide_from_files(verdict.inputs, evidence.locate)
    assert again.to_json() == verdict.to_json()
    assert "amended after 1: 0.005 for the next" in keel("gate", "plan", file_with(tmp_path, campaign,
        lambda c: c["gate"].update(campaign_rounds=6)))[1]  # fmt: skip


# commands


def file_with(folder: Path, campaign: dict[str, Any], edit: Edit = lambda c: None) -> str:
    changed = copy.deepcopy(campaign)
    edit(changed)
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(changed))
    return str(path)


def test_amend_writes_down_who_what_and_why(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    file = file_with(tmp_path, campaign, lambda c: c["suites"].append(WATCH))
    code, out, _ = keel("campaign", "amend", file, "--reason", "to see it", "--dry-run")
    assert (code, out) == (0, "would be amended: suites.counting: added\n")
    assert keel("plan", file)[1].count("would be written down as amended: suites.counting: added")
    assert keel("campaign", "amend", file, "--reason", " ")[0] == 2
    code, out, _ = keel("campaign", "amend", file, "--reason", "to see it")
    assert (code, out) == (0, "amended: suites.counting: added\n")
    assert "nothing to amend" in keel("campaign", "amend", file, "--reason", "again")[1]
    (entry,) = json.loads(keel("campaign", "log", file, "--json")[1])["amendments"][1:]
    assert (entry["reason"], entry["changes"]) == ("to see it", ["suites.counting: added"])
    assert "(to see it): suites.counting: added" in keel("campaign", "log", file)[1]


def test_there_is_nothing_to_amend_before_the_first_run(tmp_path: Path) -> None:
    file = campaign_file(tmp_path)
    code, _, error = keel("campaign", "amend", str(file), "--reason", "x")
    assert code == 2
    assert "there is no campaign in this store yet" in error
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("state", ["failed", "planned", "running", "gating"])
def test_a_round_without_a_verdict_is_dropped(state: str, tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    config = CampaignConfig.model_validate(campaign)
    ledger = Ledger(config.ledger_url)
    name, index = ("third", 2) if state == "planned" else ("second", 1)
    if state in ("running", "gating"):
        attempt = ledger.begin_round(1, "second", ledger.alias("production") or "")
        if state == "gating":
            ledger.enter_gating(1, attempt, BASE.id)
    checkpoint = config.folder / "rounds" / f"{index:02d}-{name}" / "checkpoint" / "step-1"
    staging = config.folder / "staging" / "x"
    for folder in (checkpoint, staging):
        folder.mkdir(parents=True)
    file = file_with(tmp_path, campaign)
    code, out, error = keel("rounds", "drop", file, name, "--reason", "bad data")
    assert code == 0, error
    assert "was dropped" in out
    assert "bad data" in out
    assert not checkpoint.exists()
    assert not staging.exists()
    # The file may still name it, and may leave it out.
    for edit in (lambda c: None, lambda c: c["rounds"].pop(index)):
        left = edited(campaign, edit)
        assert name not in [n for n, _ in reopen(left)]
        assert name not in [spec.name for spec in settle(left).config.rounds]
    assert name not in keel("plan", file)[1]
    listed = json.loads(keel("rounds", "list", file, "--json")[1])
    assert [entry["state"] for entry in listed if entry["name"] == name] == ["dropped"]
    assert keel("rounds", "drop", file, name, "--reason", "again")[0] == 2


def test_a_round_that_only_the_file_knows_is_dropped(tmp_path: Path) -> None:
    """Whatever is wrong with it, the campaign goes on, and the log says that it came and went."""
    campaign = begun(tmp_path)

    def append(content: dict[str, Any]) -> None:
        content["rounds"].append(content["rounds"][-1] | {"name": "fourth", "prompts": "no.jsonl"})

    config = edited(campaign, append)
    assert drop(config, "fourth", reason="no such file").round == "fourth"
    assert "fourth" not in [spec.name for spec in settle(config).config.rounds]
    assert "fourth" not in [name for name, _ in reopen(config)]
    with pytest.raises(UserError, match="no round 'fourth'"):
        drop(config, "fourth", reason="again")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("first", "was accepted, and a verdict is final"),
        ("secnd", "did you mean 'second'"),
    ],
)
def test_a_drop_that_cannot_be(name: str, words: str, tmp_path: Path) -> None:
    config = CampaignConfig.model_validate(begun(tmp_path))
    with pytest.raises(UserError) as caught:
        drop(config, name, reason="x")
    assert words in str(caught.value)
    if name == "first":
        assert "keel rollback" in str(caught.value)


def test_a_store_of_the_version_before_goes_on(tmp_path: Path) -> None:
    campaign = begun(tmp_path)
    with sqlite3.connect(tmp_path / "store" / "ledger.db") as connection:
        for table in ("amendments", "pinned_settings", "round_drops", "code_files"):
            connection.execute(f"DROP TABLE {table}")
    config = edited(campaign, lambda c: c["suites"].append(WATCH))
    assert reopen(config) == [
        ("first", "accepted"), ("second", "failed"), ("third", "planned"),
    ]  # fmt: skip


def test_an_amendment_cannot_be_taken_back(tmp_path: Path) -> None:
    begun(tmp_path)
    with sqlite3.connect(tmp_path / "store" / "ledger.db") as connection:
        for statement in ("UPDATE amendments SET who = ''", "DELETE FROM amendments"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


# the comparison itself


def test_differences_are_by_name() -> None:
    old = {"rounds": [{"name": "a", "x": 1}, {"name": "b", "x": 1}], "betas": [0.9, 0.95]}
    new = {"rounds": [{"name": "c", "x": 1}, {"name": "a", "x": 2}, {"name": "b", "x": 1}],
           "betas": [0.9, 0.99]}  # fmt: skip
    assert [change.sentence for change in differences(old, new)] == [
        "rounds.a.x: 1 -> 2", "rounds.c: added", "betas: [0.9, 0.95] -> [0.9, 0.99]",
    ]  # fmt: skip
    assert [c.sentence for c in differences({"l": [1]}, {"l": [1, 2]})] == ["l: [1] -> [1, 2]"]
    assert ConfigChange(("seed",), 0, 1).sentence == "seed: 0 -> 1"


def test_a_judged_task_of_the_harness_may_take_longer(tmp_path: Path) -> None:
    def content(**harness: Any) -> dict[str, Any]:
        campaign = raw_campaign(tmp_path)
        suite = {"name": "task", "harness": {"task": "sums", **harness}}
        return CampaignConfig.model_validate({**campaign, "suites": [suite]}).content()

    committed = Committed(judged=frozenset({"task"}))
    before = content()
    assert "deadline_s" not in before["suites"][0]["harness"], "older stores have no such key"
    longer = compare(before, content(deadline_s=600), committed)
    assert not longer.refusals and [change.path[-1] for change in longer.changes] == ["deadline_s"]
    assert compare(before, content(num_fewshot=3), committed).refusals


def test_rounds_that_wait_before_a_decided_one_keep_their_place() -> None:
    # A round whose stream was empty was passed, and the one behind it decided.
    slots = (Slot(index=0, name="waits", state="planned", attempts=0),
             Slot(index=1, name="done", state="accepted", attempts=1))  # fmt: skip
    committed = Committed(slots=slots, next_index=2, has_base=True)

    def of(*names: str) -> dict[str, Any]:
        return {"rounds": [{"name": name} for name in names]}

    same = compare(of("waits", "done"), of("waits", "done", "new"), committed)
    assert (same.planned, same.vacated, same.refusals) == (((2, "new"),), (), ())
    later = compare(of("waits", "done"), of("done", "waits"), committed)
    assert later.planned == ((2, "waits"),)
    assert later.refusals == ()


def test_amend_is_the_same_as_the_next_run_would_be(tmp_path: Path) -> None:
    config = edited(begun(tmp_path), lambda c: c["gate"].update(alpha=0.01))
    assert amend(config, reason="stricter") == ("gate.alpha: 0.05 -> 0.01",)
    assert settle(config).comparison.changes == ()
