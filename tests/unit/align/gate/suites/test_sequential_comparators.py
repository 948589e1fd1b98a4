"""Comparators of suites that stop early: chosen before the first look, unchanged by measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.data.base_model import SCHEMES
from align.gate.budgets import check_budgets
from align.gate.checks import Against
from align.gate.evidence import Evidence
from align.gate.statistics.sequential import stopping
from align.gate.suites.looks import first, in_order, looks
from align.gate.suites.suites import Suite, build_suites
from align.report.explanation.explain import explain
from rollouts.errors import UserError
from tests.unit.decided import VALUES, N, decided, raw
from tests.unit.ledgers import BASE, FIRST, SECOND


def suites_of(evidence: Evidence) -> list[Suite]:
    return build_suites(evidence.config, SCHEMES, None)  # type: ignore[arg-type]


def early_of(evidence: Evidence) -> list[Suite]:
    return [stopping(suite) for suite in suites_of(evidence)]


def judged(
    evidence: Evidence, compared: Mapping[str, Mapping[Against, str]], items: dict[str, Any]
) -> dict[str, str]:
    """Return whom the verdict on the second round calls best."""
    suites = early_of(evidence)
    verdict = evidence.judge("second", SECOND.id, FIRST.id, suites, items=items, compared=compared)
    assert verdict.inputs.items == items
    return dict(verdict.inputs.best)


def test_the_best_of_a_verdict_is_the_one_that_was_measured_against(tmp_path: Path) -> None:
    """By all items the base is the best of general: 200 right, and 198 after the first round."""
    evidence = decided(tmp_path, rounds=1)
    compared = evidence.comparator_snapshots("second", early_of(evidence), FIRST.id)
    assert compared["general"] == {"parent": FIRST.id, "best": BASE.id, "start": BASE.id}
    assert compared["second"] == {"parent": FIRST.id}
    chosen = {**compared, "general": {**compared["general"], "best": FIRST.id}}
    items = {name: dict.fromkeys(of.values(), 66) for name, of in chosen.items()}
    assert judged(evidence, chosen, items)["general"] == FIRST.id


@pytest.mark.parametrize(
    "change",
    [
        {"general": {FIRST.id: 66}},
        {"general": {FIRST.id: 66, BASE.id: 66, SECOND.id: 66}},
        {"general": {}},
        {"unknown": {FIRST.id: 66}},
    ],
)
def test_items_name_exactly_the_comparators(change: dict[str, Any], tmp_path: Path) -> None:
    evidence = decided(tmp_path, rounds=1)
    compared = evidence.comparator_snapshots("second", early_of(evidence), FIRST.id)
    items = {name: dict.fromkeys(of.values(), 66) for name, of in compared.items()}
    with pytest.raises(ValueError, match="measured"):
        judged(evidence, compared, items | change)


def store_of(folder: Path, base: Sequence[int], accepted: Sequence[int]) -> Evidence:
    """Return a store with an accepted round, and wrong answers to general at these places of its order."""
    config = CampaignConfig.model_validate(raw(folder))
    general = build_suites(config, SCHEMES, None)[0]  # type: ignore[arg-type]
    order = in_order("general", general.item_ids)
    wrong = {snapshot: {order[place] for place in places} for snapshot, places in
             ((BASE.id, base), (FIRST.id, accepted), (SECOND.id, ()))}  # fmt: skip
    values = {
        s: {**of, "general": [float(index not in wrong[s]) for index in range(N)]}
        for s, of in VALUES.items()
    }
    return decided(folder, values, rounds=1)


def best_of(evidence: Evidence, suite: Suite) -> str:
    return evidence.comparator_snapshots("second", [suite], FIRST.id)[suite.name]["best"]


def general_of(evidence: Evidence) -> Suite:
    return next(suite for suite in early_of(evidence) if suite.name == "general")


def test_a_campaign_that_turns_to_sequential_seeks_the_best_on_all_items(tmp_path: Path) -> None:
    """Of all items the base has 199 right and the accepted one 198; of the first one 0 and 1."""
    evidence = store_of(tmp_path, (0,), (100, 101))
    assert best_of(evidence, general_of(evidence)) == BASE.id


def test_a_suite_that_no_verdict_knows_seeks_it_on_the_first_look(tmp_path: Path) -> None:
    """Of the first item the base has more right, of the first look the accepted one, of all the base."""
    evidence = store_of(tmp_path, (1, 2), (0, 100, 101, 102))
    known = general_of(evidence)
    appended = replace(known, samples=2)
    counts = looks("general", known.item_ids)
    for count in (
        counts[0],
        counts[2],
        N,
    ):  # As a candidate asks for more, or one that crashed did.
        for snapshot in (BASE.id, FIRST.id):
            part = first(evidence.load(snapshot, [known])["general"], count)
            evidence.save(snapshot, {"general": replace(part, suite_hash=appended.hash)})
        assert best_of(evidence, appended) == FIRST.id
    assert best_of(evidence, known) == BASE.id


def cut(evidence: Evidence, snapshot: str, count: int, lost: int = 0) -> None:
    """Leave the first ``count`` items of general in the store, of which the first ``lost`` are wrong."""
    suite = general_of(evidence)
    part = first(evidence.load(snapshot, [suite])[suite.name], count)
    values = (*(0.0,) * lost, *part.values[lost:])
    record = evidence.ledger.find_evaluation(snapshot, suite.hash)
    assert record is not None
    evidence.replace(record, replace(part, values=values), "was cut")


def test_what_stopped_early_is_no_best_of_a_suite_that_is_measured_whole(tmp_path: Path) -> None:
    """The accepted one has all of its 33 items right, the base 199 of 200."""
    evidence = store_of(tmp_path, (0,), (100, 101))
    cut(evidence, FIRST.id, 33)
    fixed = next(suite for suite in suites_of(evidence) if suite.name == "general")
    assert best_of(evidence, fixed) == BASE.id


@pytest.mark.parametrize(
    ("items", "lost", "refused"),
    [
        (33, 3, False),  # 9.1 of 8.0 points, which may be chance
        (33, 33, True),
        (N, 17, True),  # 8.5 of 8.0 points of the whole suite
    ],
)
def test_a_budget_is_spent_by_what_is_certain(
    items: int, lost: int, refused: bool, tmp_path: Path
) -> None:
    evidence, notes = store_of(tmp_path, (), ()), list[str]()
    cut(evidence, FIRST.id, items, lost)
    arguments = (evidence, evidence.config.rounds[1], early_of(evidence), notes.append)
    if refused:
        with pytest.raises(UserError, match="budget of suite 'general' is spent"):
            check_budgets(*arguments)
        return
    check_budgets(*arguments)
    assert len(notes) == 1 and notes[0].startswith("second: general has used")


def test_a_story_is_of_the_items_that_a_check_was_drawn_from(tmp_path: Path) -> None:
    """The parent has all 200 items, the candidate 100; against the parent it stopped after 66."""
    evidence = decided(tmp_path, rounds=1)
    suites = early_of(evidence)
    compared = evidence.comparator_snapshots("second", suites, FIRST.id)
    items = {name: dict.fromkeys(of.values(), 66) for name, of in compared.items()}
    items["general"][BASE.id] = 100
    cut(evidence, SECOND.id, 100)
    verdict = evidence.judge("second", SECOND.id, FIRST.id, suites, items=items, compared=compared)
    ledger = evidence.ledger
    attempt = ledger.begin_round(1, "second", FIRST.id)
    ledger.enter_gating(1, attempt, SECOND.id)
    ledger.commit_round(1, attempt, "rejected", SECOND.id, verdict.to_dict())
    story = next(story for story in explain(evidence, "second").suites if story.suite == "general")
    checks = [compared.check for compared in story.comparisons]
    assert {check.snapshot: check.n for check in checks} == {FIRST.id: 66, BASE.id: 100}
    against_parent = next(check for check in checks if check.snapshot == FIRST.id)
    assert len(story.lost) == against_parent.lost > 0
    assert story.alarm is not None
