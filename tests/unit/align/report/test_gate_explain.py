"""A verdict told in sentences, and the rounds as they are listed, shown and compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.gate.checks import Check, check
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.statistics.significance import mcnemar_exact, tango_noninferiority
from align.gate.suites.suites import SuiteRule
from align.report.explanation.counterfactual import would_change
from align.report.explanation.explain import Explanation, SuiteStory, explain, prompt_texts
from align.report.records.history import detail, diff, entries
from align.store.run_folder import RoundFolder
from rollouts.errors import UserError
from tests.unit.decided import BASE, FIRST, SECOND, N, campaign_file, decided, keel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two decided rounds; nothing below writes to it."""
    folder = tmp_path_factory.mktemp("decided")
    decided(folder)
    campaign_file(folder)
    return folder


@pytest.fixture(scope="module")
def evidence(folder: Path) -> Evidence:
    from align.config.file import load_campaign
    from align.gate.evidence import stored_evidence

    return stored_evidence(load_campaign(folder / "campaign.yaml").config)


def story(told: Explanation, suite: str) -> SuiteStory:
    (found,) = [one for one in told.suites if one.suite == suite]
    return found


def test_an_accepted_round(evidence: Evidence) -> None:
    told = explain(evidence, "first")
    assert (told.outcome, told.look, told.campaign_rounds) == ("accepted", 1, 2)
    assert told.alpha_here == pytest.approx(0.025)
    assert told.alpha_spent == pytest.approx(0.025)
    general = story(told, "general")
    (one,) = general.comparisons
    check = one.check
    assert (check.against, *check.also) == ("parent", "best", "start")
    assert (check.lost, check.won, check.difference) == (2, 0, -0.01)
    assert one.chance == mcnemar_exact(2, 0)
    # One point lost of a budget of eight.
    assert one.budget_used == pytest.approx(0.01 / 0.08)
    assert check.outcome == "passed"


def test_a_rejected_round(evidence: Evidence) -> None:
    told = explain(evidence, "second")
    assert (told.outcome, told.accepted, told.look) == ("rejected", False, 2)
    assert told.alpha_spent == pytest.approx(0.05)
    parent, start = story(told, "general").comparisons
    assert (parent.check.against, parent.check.also) == ("parent", ())
    assert (parent.check.lost, parent.check.won, parent.budget_used) == (30, 0, None)
    assert (start.check.against, start.check.also, start.check.lost) == ("best", ("start",), 32)
    assert start.budget_used == pytest.approx(0.16 / 0.08)
    assert story(told, "second").role == "target"


def test_items_lost_and_won_have_their_prompts(evidence: Evidence) -> None:
    told = story(explain(evidence, "second"), "first")
    lost, won = ({item.id for item in items} for items in (told.lost, told.won))
    texts = prompt_texts(evidence.config, "first")
    ids = list(texts)
    assert lost == set(ids[:5])
    assert won == set(ids[100:105])
    assert {(item.before, item.after) for item in told.lost} == {(1.0, 0.0)}
    assert all(item.prompt == texts[item.id] and item.prompt for item in (*told.lost, *told.won))


def test_an_alarm_is_raised_only_for_a_real_loss(evidence: Evidence) -> None:
    told = explain(evidence, "second")
    general, first, second = (story(told, name).alarm for name in ("general", "first", "second"))
    assert general is not None and general < 1e-6
    assert first is not None and first > 0.4
    assert second is None, "a target is no guard"


def test_prompts_that_are_not_at_hand_are_left_out(evidence: Evidence) -> None:
    raw = evidence.config.model_dump(mode="json")
    raw["suites"][0]["prompts"]["source"] = "gone.jsonl"
    config = type(evidence.config).model_validate(raw)
    assert prompt_texts(config, "general") == {}
    raw["suites"][0]["prompts"]["source"] = "owner/dataset"
    assert prompt_texts(type(config).model_validate(raw), "general") == {}
    assert prompt_texts(config, "nothing") == {}
    moved = replace(evidence, config=config)
    assert {item.prompt for item in story(explain(moved, "second"), "general").lost} == {None}


# what would have changed it


def checked(before: list[float], after: list[float], **changes: Any) -> Check:
    rule = SuiteRule(
        name="s", kind="items", role="gate", margin=0.1, budget=0.2, target_of=None, hash="h"
    )
    measured = [
        ItemResults(
            suite="s",
            suite_hash="h",
            snapshot=snapshot,
            item_ids=tuple(map(str, range(len(values)))),
            values=tuple(values),
            statuses=("scored",) * len(values),
            finishes=("stop",) * len(values),
        )
        for snapshot, values in (("new", after), ("old", before))
    ]
    options: dict[str, Any] = {"role": "retention", "against": "parent", "margin": 0.1} | changes
    return check(rule, *measured, alpha=0.05, **options)


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["retention", "target"]))
def test_the_number_of_items_is_the_smallest_that_turns_it(lost: int, won: int, role: str) -> None:
    n = 150
    before = [1.0] * lost + [0.0] * won + [1.0] * (n - lost - won)
    after = [0.0] * lost + [1.0] * won + [1.0] * (n - lost - won)
    margin = 0.1 if role == "retention" else 0.0
    found = checked(before, after, role=role, margin=margin)
    words = would_change(found)
    if found.needed is not None:
        assert words.startswith(f"about {found.needed} items")
        return
    (number,) = map(int, re.findall(r"(\d+) more items?", words))
    passed = found.outcome == "passed"
    assert ("failed" in words) == passed

    def passes(turned: int) -> bool:
        if passed:
            down, up = lost + turned, min(won, n - lost - turned)
        else:
            down, up = max(0, lost - turned), won + max(0, turned - lost)
        return tango_noninferiority(down, up, n, margin).p <= 0.05

    assert passes(number) != passed
    assert passes(number - 1) == passed


def test_a_score_says_how_far_its_mean_was_away() -> None:
    before = [0.1 * (index % 10) for index in range(60)]
    after = [value - 0.3 - 0.02 * (index % 3) for index, value in enumerate(before)]
    found = checked(before, after)
    assert found.outcome == "regressed"
    words = would_change(found)
    # The lower end must reach -0.1, and its distance from 0 is the margin that would have done.
    higher, margin = map(float, re.findall(r"\d\.\d+", words))
    assert higher == pytest.approx(-0.1 - found.interval[0], rel=1e-2)
    assert margin == pytest.approx(-found.interval[0], rel=1e-2)
    better = checked(after, before)
    # It gained .32; among 60 items one may have lost all of the 1.24 that values lie within.
    assert would_change(better).startswith("it would have failed with a mean lower by 0.34")


def test_a_target_that_gained_too_little_is_told_no_margin() -> None:
    before = [0.1 * (index % 10) for index in range(60)]
    found = checked(
        before, [v - 0.01 * (i % 3) for i, v in enumerate(before)], role="target", margin=0.0
    )
    assert found.outcome == "not_improved"
    assert "margin" not in would_change(found)


# the rounds


def test_the_list_of_rounds(evidence: Evidence) -> None:
    first, second = entries(evidence)
    assert (first.name, first.state, first.verdict) == ("first", "accepted", "accepted")
    assert (first.parent, first.candidate) == (BASE.id, FIRST.id)
    assert (second.state, second.parent, second.candidate) == ("rejected", FIRST.id, SECOND.id)
    # The clock went on by ten seconds each time it was looked at.
    assert first.seconds == 10.0


def test_one_round_in_short(evidence: Evidence) -> None:
    found = detail(evidence, "first")
    assert found.steps == 2
    assert found.tokens == {"new": 50, "past": 7}
    (mean,) = [metric for metric in found.metrics if metric.name == "reward/mean"]
    assert (mean.first, mean.last, mean.mean, mean.steps) == (0.25, 0.75, 0.5, 2)
    assert [metric.name for metric in found.named("drift/")] == ["drift/K_new"]


def test_an_attempt_that_went_on_replaces_what_it_did_again(tmp_path: Path) -> None:
    for attempt, lines in ((1, ["0 1", "1 1"]), (2, ["1 2"]), (10, ["1 3", "2 3"])):
        path = tmp_path / f"attempt-{attempt}" / "metrics.jsonl"
        path.parent.mkdir()
        rows = [dict(zip(("step", "loss"), map(int, line.split()), strict=True)) for line in lines]
        path.write_text("\n".join(map(json.dumps, rows)) + '\n[1]\n{"loss": 1}\n{"step": 9, "lo')
    assert RoundFolder(tmp_path).steps() == {0: {"loss": 1.0}, 1: {"loss": 3.0}, 2: {"loss": 3.0}}
    assert RoundFolder(tmp_path / "nowhere").steps() == {}


def test_two_rounds_side_by_side(evidence: Evidence) -> None:
    found = diff(evidence, "first", "second")
    assert [(c.key, c.first, c.second) for c in found.config] == [
        ("prompts.source", "demo://rev?n=60", "demo://inc?n=60")
    ]
    scores = {s.suite: (s.first, s.second, s.difference) for s in found.scores}
    assert scores["general"] == pytest.approx(((N - 2) / N, (N - 32) / N, -30 / N))
    assert scores["second"] == pytest.approx((4 / N, 150 / N, 146 / N))
    assert diff(evidence, "first", "first").config == ()


# the commands


def test_explain_in_sentences(folder: Path) -> None:
    path = str(folder / "campaign.yaml")
    code, out, _ = keel("gate", "explain", path, "second", "--items", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "second: rejected."
    assert "Decision 2 of 2 declared" in lines[1]
    assert "15.0 points lost against parent (30 lost, 0 won of 200" in out
    assert "200% of its budget against the start is used" in out
    assert "it would have passed with" in out
    assert out.count("  won ") == 4, "two of first, two of the target"
    assert "lost: 28 more" in out


def test_recompute_gives_the_same_verdict(folder: Path) -> None:
    code, out, _ = keel("gate", "recompute", str(folder / "campaign.yaml"), "second")
    assert code == 0
    assert "second: rejected; identical to the ledger" in out


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["gate", "explain", "FILE", "second"], "suites"),
        (["rounds", "show", "FILE", "first"], "metrics"),
        (["rounds", "diff", "FILE", "first", "second"], "scores"),
        (["gate", "plan", "FILE"], "suites"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_json_for_programs(folder: Path, arguments: list[str], key: str) -> None:
    path = str(folder / "campaign.yaml")
    given = [path if word == "FILE" else word for word in arguments]
    code, out, _ = keel(*given, "--json")
    assert code == 0
    assert json.loads(out)[key]


def test_the_rounds_are_listed_shown_and_compared(folder: Path) -> None:
    path = str(folder / "campaign.yaml")
    code, out, _ = keel("rounds", "list", path)
    assert code == 0
    assert "accepted" in out and "rejected" in out and FIRST.id[:12] in out
    code, out, _ = keel("rounds", "list", path, "--json")
    assert [entry["name"] for entry in json.loads(out)] == ["first", "second"]
    code, out, _ = keel("rounds", "show", path, "second")
    assert code == 0
    assert "50 new, 7 past" in out and "reward/exact_match" in out and "drift/K_new" in out
    code, out, _ = keel("rounds", "diff", path, "first", "second")
    assert code == 0
    assert "demo://inc?n=60" in out and "-0.15" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["gate", "explain", "FILE", "frist"],
        ["gate", "recompute", "FILE", "frist"],
        ["rounds", "show", "FILE", "frist"],
        ["rounds", "diff", "FILE", "frist", "second"],
        ["rounds", "diff", "FILE", "second", "frist"],
    ],
    ids=" ".join,
)
def test_an_unknown_round_is_met_with_the_nearest(folder: Path, arguments: list[str]) -> None:
    path = str(folder / "campaign.yaml")
    code, out, error = keel(*(path if word == "FILE" else word for word in arguments))
    assert (code, out) == (2, "")
    assert "'frist'" in error
    assert "did you mean 'first'?" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["gate", "explain", "FILE", "first"],
        ["rounds", "list", "FILE"],
        ["rounds", "show", "FILE", "first"],
        ["rounds", "diff", "FILE", "first", "second"],
    ],
    ids=" ".join,
)
def test_a_store_without_a_campaign(tmp_path: Path, arguments: list[str]) -> None:
    path = str(campaign_file(tmp_path))
    code, out, error = keel(*(path if word == "FILE" else word for word in arguments))
    assert (code, out) == (2, "")
    assert "there is no campaign in this store yet" in error
    assert [file.name for file in tmp_path.iterdir()] == ["campaign.yaml"]


def test_a_round_without_a_verdict(tmp_path: Path) -> None:
    evidence = decided(tmp_path, rounds=1)
    with pytest.raises(UserError, match="round 'second' is planned and has no verdict"):
        explain(evidence, "second")
    code, out, _ = keel("rounds", "show", str(campaign_file(tmp_path)), "second")
    assert code == 0
    assert "second: planned" in out


def test_a_recomputed_verdict_is_json_for_programs(folder: Path) -> None:
    path = str(folder / "campaign.yaml")
    code, out, _ = keel("gate", "recompute", path, "second", "--json")
    told = json.loads(out)
    assert (code, told["identical"], told["verdict"]["outcome"]) == (0, True, "rejected")
