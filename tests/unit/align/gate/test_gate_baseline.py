"""The fixed anchor, moved by people alone, and the budgets that count from it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from align.data.base_model import SCHEMES
from align.errors import SnapshotError
from align.gate.baseline import baseline_lines, choose_baseline, require_same_tokenizer
from align.gate.budgets import budget_checks, check_budgets
from align.gate.evidence import Evidence
from align.gate.suites.suites import Suite, build_suites
from align.report.explanation.explain import explain
from align.store.ledger.baseline import baseline_moves, baseline_of, move_baseline
from rollouts.errors import UserError
from tests.unit.campaigns import campaign
from tests.unit.decided import BASE, FIRST, SECOND, VALUES, N, campaign_file, decided, keel, right


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """One decided round of two: its candidate is production."""
    return decided(tmp_path, rounds=1)


def suites_of(evidence: Evidence) -> list[Suite]:
    return build_suites(evidence.config, SCHEMES, None)  # type: ignore[arg-type]


def test_budgets_count_from_the_start_until_a_person_says_otherwise(evidence: Evidence) -> None:
    assert baseline_of(evidence.ledger) is None
    assert [evidence.baseline(name) for name in ("general", "first", "second")] == [
        BASE.id, FIRST.id, BASE.id,
    ]  # fmt: skip
    move = move_baseline(evidence.ledger, FIRST.id, " the loss is accepted ")
    assert (move.previous, move.snapshot, move.reason) == (
        BASE.id,
        FIRST.id,
        "the loss is accepted",
    )
    assert move.decisions == 1
    assert baseline_of(evidence.ledger) == evidence.baseline("general") == FIRST.id
    back = move_baseline(evidence.ledger, BASE.id, "it was not")
    assert (back.previous, evidence.baseline("general")) == (FIRST.id, BASE.id)
    assert evidence.baseline("first") == FIRST.id, "a round's suite never counts from before it"
    assert [one.reason for one in baseline_moves(evidence.ledger)] == [
        "the loss is accepted", "it was not",
    ]  # fmt: skip


def test_the_log_only_grows(evidence: Evidence) -> None:
    move_baseline(evidence.ledger, FIRST.id, "why")
    with closing(sqlite3.connect(evidence.folder / "ledger.db")) as outside:
        for change in ("UPDATE anchor_log SET reason = ''", "DELETE FROM anchor_log"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                outside.execute(change)


@pytest.mark.parametrize(
    ("snapshot", "reason", "words"),
    [
        (FIRST.id, "  ", "needs a reason"),
        (SECOND.id, "why", "was never production"),
        ("f" * 64, "why", "is not known"),
        (BASE.id, "why", "count from aaaaaaaaaaaaaaaa already"),
    ],
)
def test_moves_that_are_refused(evidence: Evidence, snapshot: str, reason: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        move_baseline(evidence.ledger, snapshot, reason)
    assert baseline_moves(evidence.ledger) == []


def test_a_verdict_after_the_move_counts_from_the_new_anchor(tmp_path: Path) -> None:
    """Against the start the second candidate loses 32 items, against the first's 30."""
    evidence = decided(tmp_path, rounds=1)
    suites = suites_of(evidence)
    before = evidence.judge("second", SECOND.id, FIRST.id, suites)
    move_baseline(evidence.ledger, FIRST.id, "why")
    after = evidence.judge("second", SECOND.id, FIRST.id, suites)
    assert before.inputs.start["general"] == BASE.id
    assert after.inputs.start["general"] == FIRST.id
    lost = {c.what: c.lost for c in after.checks if c.suite == "general" and "start" in c.also}
    assert lost["value"] == 30


def test_a_move_is_told_of_later_rounds_only(tmp_path: Path) -> None:
    evidence = decided(tmp_path)
    move_baseline(evidence.ledger, FIRST.id, "accepted by the board")
    assert explain(evidence, "second").anchors == ()
    told = replace(explain(evidence, "second"), anchors=tuple(baseline_moves(evidence.ledger)))
    assert "Budgets count from snapshot bbbbbbbbbbbbbbbb since" in "\n".join(told.lines())


# budgets


def test_production_within_its_budget_is_no_news(evidence: Evidence) -> None:
    notes: list[str] = []
    check_budgets(evidence, evidence.config.rounds[1], suites_of(evidence), notes.append)
    assert notes == []
    (found,) = budget_checks(evidence, "second", FIRST.id, suites_of(evidence))
    assert (found.suite, found.lost, found.outcome) == ("general", 2, "passed")


def spent(folder: Path, lost: int, mode: str = "observe") -> Evidence:
    """A production that has lost so many of 200 items of general, of which 16 are its budget."""
    first = {**VALUES[FIRST.id], "general": right(N - lost, first=lost)}
    evidence = decided(folder, {**VALUES, FIRST.id: first}, rounds=0)
    gate = evidence.config.gate.model_copy(update={"mode": "observe"})
    observing = replace(evidence, config=evidence.config.model_copy(update={"gate": gate}))
    attempt = evidence.ledger.begin_round(0, "first", BASE.id)
    evidence.ledger.enter_gating(0, attempt, FIRST.id)
    verdict = observing.judge("first", FIRST.id, BASE.id, suites_of(evidence))
    evidence.ledger.commit_round(0, attempt, "accepted", FIRST.id, verdict.to_dict())
    return observing if mode == "observe" else evidence


def test_a_spent_budget_is_said_before_the_round(tmp_path: Path) -> None:
    evidence = spent(tmp_path, 16, "enforce")
    with pytest.raises(UserError, match="budget of suite 'general' is spent") as caught:
        check_budgets(evidence, evidence.config.rounds[1], suites_of(evidence), print)
    assert "8.0 of 8.0" in str(caught.value)
    assert "keel gate baseline" in str(caught.value)
    move_baseline(evidence.ledger, FIRST.id, "the loss is accepted")
    check_budgets(evidence, evidence.config.rounds[1], suites_of(evidence), print)


def test_a_budget_that_is_nearly_spent_is_told(tmp_path: Path) -> None:
    evidence, notes = spent(tmp_path, 12, "enforce"), list[str]()
    check_budgets(evidence, evidence.config.rounds[1], suites_of(evidence), notes.append)
    assert notes == [
        "second: general has used 6.0 of 8.0 of its budget; a candidate equal to production would "
        "not pass"
    ]


@pytest.mark.parametrize("gained", [0, 12])
def test_a_gain_uses_no_budget_and_too_few_items_are_named(tmp_path: Path, gained: int) -> None:
    start = {**VALUES[BASE.id], "general": right(N - gained, first=gained)}
    first = {**VALUES[FIRST.id], "general": right(N, first=0)}
    evidence = decided(tmp_path, {**VALUES, BASE.id: start, FIRST.id: first}, rounds=1)
    gate = evidence.config.gate.model_copy(update={"alpha": 1e-15})
    strict = replace(evidence, config=evidence.config.model_copy(update={"gate": gate}))
    notes: list[str] = []
    check_budgets(strict, strict.config.rounds[1], suites_of(strict), notes.append)
    assert notes == [
        "second: general has used 0.0 of 8.0 of its budget; a candidate equal to production would "
        "not pass, since its items are too few to show it"
    ]


def test_an_observing_gate_only_tells(tmp_path: Path) -> None:
    evidence, notes = spent(tmp_path, 40), list[str]()
    check_budgets(evidence, evidence.config.rounds[1], suites_of(evidence), notes.append)
    assert notes[0].startswith("second: general has used 20.0 of 8.0 of its budget")


def test_a_margin_of_all_items_is_refused_by_the_values(evidence: Evidence) -> None:
    """Of a metric whose range nobody knows it shows once production is measured."""
    suites = [replace(suite, margin=1.5, budget=2.0) for suite in suites_of(evidence)]
    with pytest.raises(UserError, match="all its values are 0 or 1"):
        check_budgets(evidence, evidence.config.rounds[1], suites, print)


# what a person chooses


def test_the_chosen_snapshot_must_be_there(evidence: Evidence) -> None:
    for wanted, words in (("", "not known"), ("zz", "not known")):
        with pytest.raises(UserError, match=words):
            choose_baseline(evidence, wanted, "why")
    with pytest.raises(SnapshotError):
        choose_baseline(evidence, FIRST.id[:8], "why")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from align.data.demo.tokenizer import build_tokenizer

    own, other = tmp_path / "own", tmp_path / "other"
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(own)
    require_same_tokenizer(own, own)
    require_same_tokenizer(own, tmp_path)
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="differs from the start's in 1 tokens, such as 'zzz'"):
        require_same_tokenizer(own, other)


def test_the_command_shows_the_log_and_refuses(tmp_path: Path) -> None:
    evidence = decided(tmp_path, rounds=1)
    path = str(campaign_file(tmp_path))
    code, out, _ = keel("gate", "baseline", path)
    assert (code, out.split()) == (0, ["start", BASE.id[:16]])
    code, _, error = keel("gate", "baseline", path, "zzz", "--reason", "why")
    assert (code, "snapshot zzz is not known" in error) == (2, True)
    move_baseline(evidence.ledger, FIRST.id, "why not")
    assert list(baseline_lines(evidence))[1].startswith(f"baseline {FIRST.id[:16]}  since ")
    code, out, _ = keel("gate", "baseline", path, "--json")
    (move,) = json.loads(out)["moves"]
    assert (code, move["snapshot"], move["reason"]) == (0, FIRST.id, "why not")
    _, out, _ = keel("status", path)
    assert f"budgets count from {FIRST.id[:16]}" in out


def test_the_old_name_of_the_command_works_and_says_the_new_one(tmp_path: Path) -> None:
    decided(tmp_path, rounds=1)
    path = str(campaign_file(tmp_path))
    new, old = keel("gate", "baseline", path), keel("gate", "anchor", path)
    assert (old[0], old[1]) == (new[0], new[1])
    assert "note: keel gate anchor is keel gate baseline now" in old[2]
    assert "note:" not in new[2]


def test_a_campaign_without_a_store_has_no_baseline(tmp_path: Path) -> None:
    assert campaign(tmp_path).folder.exists() is False
    code, _, error = keel("gate", "baseline", str(campaign_file(tmp_path)))
    assert (code, "there is no campaign in this store yet" in error) == (2, True)
