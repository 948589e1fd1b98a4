"""Verdicts: accepted, rejected or too few items, and the same again from the stored files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.campaign import GateConfig
from align.gate.case import Case, role_of
from align.gate.checks import Check, check
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.suites import SuiteRule
from align.gate.verdict import Verdict, decide, decide_from_files
from rollouts.errors import RunError

N = 1500
GATE = GateConfig(alpha=0.05, campaign_rounds=10)


def rule(name: str, **changes: Any) -> SuiteRule:
    base = SuiteRule(
        name=name,
        kind="items",
        role="gate",
        margin=0.02,
        budget=0.03,
        target_of=None,
        hash=f"hash of {name}",
    )
    return replace(base, **changes)


GENERAL = rule("general")
REVERSE = rule("reverse", target_of="reverse", margin=0.05, budget=0.10)
SORT = rule("sort", target_of="sort", margin=0.05, budget=0.10)
RULES = (GENERAL, REVERSE, SORT)


def results(name: str, snapshot: str, values: Sequence[float]) -> ItemResults:
    return ItemResults(
        suite=name,
        suite_hash=f"hash of {name}",
        snapshot=snapshot,
        item_ids=tuple(f"{name}/{i}" for i in range(len(values))),
        values=tuple(values),
        statuses=("scored",) * len(values),
        finishes=("stop",) * len(values),
    )


def right(n_right: int, n: int = N) -> list[float]:
    """Pass/fail values, the first ``n_right`` passed: two such differ by exactly their count."""
    return [1.0] * n_right + [0.0] * (n - n_right)


def measured(snapshot: str, n: int = N, **n_right: int) -> dict[str, ItemResults]:
    return {name: results(name, snapshot, right(k, n)) for name, k in n_right.items()}


BASE = measured("base", general=1400, reverse=100, sort=120)


def verdict(
    candidate: Mapping[str, ItemResults],
    *,
    target: str = "reverse",
    parent: Mapping[str, ItemResults] = BASE,
    start: Mapping[str, ItemResults] | None = None,
    best: Mapping[str, ItemResults] | None = None,
    **rest: Any,
) -> Verdict:
    settings: dict[str, Any] = {
        "suites": RULES,
        "gate": GATE,
        "accepted_rounds": (),
        **rest,
    }
    return decide(
        Case(
            target=target,
            candidate=candidate,
            parent=parent,
            start=parent if start is None else start,
            best=parent if best is None else best,
            **settings,
        )
    )


def deciding(given: Verdict) -> list[Check]:
    return [c for c in given.checks if c.role != "shown"]


def test_a_better_target_and_an_unharmed_suite_are_accepted() -> None:
    given = verdict(measured("new", general=1398, reverse=900, sort=100))
    assert (given.accepted, given.outcome, given.reasons) == (True, "accepted", ())
    assert [(c.suite, c.role, c.against, c.also) for c in given.checks] == [
        ("general", "retention", "parent", ("best", "start")),
        ("reverse", "target", "parent", ()),
        ("sort", "shown", "parent", ()),
    ]
    assert [c.alpha for c in given.checks] == pytest.approx([0.005] * 3)


def test_the_sentence_of_a_check_can_be_read() -> None:
    lax = GateConfig(alpha=0.05, campaign_rounds=1)
    given = verdict(measured("new", general=1382, reverse=900, sort=120), gate=lax)
    general, reverse, sort = given.checks
    assert general.sentence == (
        "general: 1.2 points lost against parent, best and start "
        "(18 lost, 0 won of 1500; interval -1.8 to -0.8), margin 2.0: passed"
    )
    assert reverse.sentence == (
        "reverse: 53.3 points gained against parent "
        "(0 lost, 800 won of 1500; interval 51.2 to 55.4), must gain more than 0.0: passed"
    )
    assert sort.sentence.startswith("sort: no change against parent (0 lost, 0 won of 1500;")


def test_a_general_suite_that_regressed_rejects() -> None:
    given = verdict(measured("new", general=1350, reverse=900, sort=120))
    assert (given.accepted, given.outcome) == (False, "rejected")
    assert len(given.reasons) == 1
    assert given.reasons[0].startswith("general: 3.3 points lost")
    assert given.reasons[0].endswith("regressed")


def test_a_loss_within_the_margin_that_is_shown_but_not_bounded_rejects() -> None:
    """30 of 1500 lost: the interval lies below 0 and reaches beyond the margin of 2.5 points."""
    suites = (replace(GENERAL, margin=0.025), REVERSE)
    given = verdict(measured("new", general=1370, reverse=900), suites=suites)
    general = given.checks[0]
    assert general.interval[1] < 0 and general.interval[0] < -0.025 < general.difference
    assert (general.outcome, given.outcome) == ("regressed", "rejected")


def test_a_target_that_is_not_better_rejects() -> None:
    given = verdict(measured("new", general=1400, reverse=100, sort=120))
    assert (given.accepted, given.outcome) == (False, "rejected")
    assert given.reasons[0].endswith("not improved")


def test_a_gain_that_chance_could_make_is_too_few_items() -> None:
    given = verdict(measured("new", general=1400, reverse=103, sort=120))
    target = given.checks[1]
    assert (target.outcome, given.outcome) == ("too_few_items", "too_few_items")
    assert target.needed is not None and target.needed > N


def test_the_target_must_gain_more_than_min_gain() -> None:
    gate = GateConfig(min_gain=0.10)
    short = verdict(measured("new", general=1400, reverse=240, sort=0), gate=gate)
    assert short.checks[1].outcome == "not_improved"
    assert verdict(measured("new", general=1400, reverse=400, sort=0), gate=gate).accepted


def test_fifty_items_are_too_few_for_two_points_even_when_none_is_lost() -> None:
    base = measured("base", n=50, general=45, reverse=2)
    given = verdict(measured("new", n=50, general=45, reverse=40), parent=base, suites=RULES[:2])
    general = given.checks[0]
    assert (given.accepted, given.outcome) == (False, "too_few_items")
    assert general.outcome == "too_few_items"
    # Nothing differs, so Tango alone sets the size: z(.995)^2 * .98 / .02 = 325.1
    assert general.needed == 326
    assert "about 326 needed" in given.reasons[0]


def test_the_items_asked_for_are_enough() -> None:
    base = measured("base", n=326, general=300, reverse=2)
    new = measured("new", n=326, general=300, reverse=40)
    assert verdict(new, parent=base, suites=RULES[:2]).accepted


def test_observing_accepts_and_keeps_the_honest_outcome() -> None:
    gate = GateConfig(mode="observe")
    given = verdict(measured("new", general=1300, reverse=900, sort=120), gate=gate)
    assert (given.accepted, given.outcome) == (True, "rejected")
    assert given.reasons[-1] == "accepted all the same: the gate only observes"


def test_small_losses_cannot_add_up_beyond_the_budget() -> None:
    """Each step loses less than the margin; against the start the budget is spent."""
    parent = measured("round 3", general=1372, reverse=100, sort=120)
    new = measured("new", general=1366, reverse=900, sort=120)
    given = verdict(new, parent=parent, start=BASE, best=BASE)
    by_comparator = {c.against: c for c in given.checks if c.suite == "general"}
    assert by_comparator["parent"].outcome == "passed"
    assert by_comparator["best"].outcome == "regressed"
    assert by_comparator["best"].also == ("start",)
    assert not given.accepted
    apart = verdict(new, parent=parent, start=BASE, best=parent)
    start = next(c for c in apart.checks if c.against == "start")
    assert (start.margin, start.outcome) == (0.03, "regressed")


def test_an_earlier_accepted_round_is_held_and_a_rejected_one_is_not() -> None:
    parent = measured("after reverse", general=1400, reverse=1300, sort=120)
    start = {**BASE, "reverse": parent["reverse"]}
    new = measured("new", general=1400, reverse=1000, sort=1200)
    held = verdict(new, target="sort", parent=parent, start=start, accepted_rounds=["reverse"])
    assert (held.accepted, held.outcome) == (False, "rejected")
    assert held.reasons[0].startswith("reverse: 20.0 points lost")
    assert verdict(new, target="sort", parent=parent, start=start).accepted


def test_an_overridden_round_is_only_shown() -> None:
    parent = measured("after reverse", general=1400, reverse=1300, sort=120)
    new = measured("new", general=1400, reverse=1000, sort=1200)
    given = verdict(
        new, target="sort", parent=parent, accepted_rounds=["reverse"], retired=["reverse"]
    )
    assert given.accepted
    assert {c.suite: c.role for c in given.checks}["reverse"] == "shown"


@pytest.mark.parametrize(
    ("suite", "role"),
    [
        (GENERAL, "retention"),
        (replace(GENERAL, role="watch"), "shown"),
        (REVERSE, "retention"),
        (SORT, "target"),
        (rule("later", target_of="later"), "shown"),
    ],
)
def test_roles(suite: SuiteRule, role: str) -> None:
    assert role_of(suite, "sort", ["reverse"]) == role


def test_watched_suites_need_not_be_measured() -> None:
    watch = rule("extra", role="watch")
    given = verdict(measured("new", general=1400, reverse=900, sort=0), suites=(*RULES, watch))
    assert given.accepted


def test_looks_beyond_the_declared_number_are_stricter() -> None:
    new = measured("new", general=1400, reverse=900, sort=120)
    assert verdict(new, looks=3).checks == verdict(new).checks
    late = verdict(new, looks=20)
    assert {c.alpha for c in late.checks} == {0.05 / 20}
    assert late.reasons == ("decision 20 of 10 declared: alpha is spread over 20",)


def test_a_comparator_that_failed_makes_nothing_pass() -> None:
    broken = replace(BASE["general"], statuses=("failed",) * 16 + ("scored",) * (N - 16))
    with pytest.raises(RunError, match="16 of 1500 items of suite 'general' failed for parent"):
        verdict(
            measured("new", general=1400, reverse=900, sort=1), parent={**BASE, "general": broken}
        )


def test_the_candidates_failures_are_told() -> None:
    new = measured("new", general=1400, reverse=900, sort=120)
    failed = ("scored",) * (N - 40) + ("failed",) * 40
    new["general"] = replace(new["general"], statuses=failed)
    general = verdict(new).checks[0]
    assert general.failed == 40
    assert "0 won of 1500, 40 failed;" in general.sentence


def test_missing_results_are_named() -> None:
    with pytest.raises(RunError, match="no results of best on suite 'general'"):
        verdict(measured("new", general=1400, reverse=900, sort=120), best={})
    with pytest.raises(RunError, match="no results of the candidate on suite 'reverse'"):
        verdict(measured("new", general=1400, sort=120))


def test_results_of_another_version_of_a_suite_are_refused() -> None:
    old = {**BASE, "general": replace(BASE["general"], suite_hash="older")}
    with pytest.raises(RunError, match="another version"):
        verdict(measured("new", general=1400, reverse=900, sort=120), parent=old)


def test_a_round_without_a_suite_is_a_defect() -> None:
    with pytest.raises(ValueError, match="no suite measures round 'rotate'"):
        verdict(BASE, target="rotate")


def score_check(
    before: Sequence[float], after: Sequence[float], margin: float = 0.05, **changes: Any
) -> Check:
    return check(
        rule("tone", **changes),
        results("tone", "new", after),
        results("tone", "old", before),
        role="retention",
        against="parent",
        margin=margin,
        alpha=0.05,
    )


def test_scores_are_compared_within_their_range() -> None:
    """60 items leave a collapse of 4% unseen with a chance of .96^60 = .086; 1% was lost besides."""
    before = [0.1 * (i % 7) for i in range(300)]
    after = [b + (0.03 if i % 2 else -0.05) for i, b in enumerate(before)]
    found = score_check(before, after)
    assert (found.test, found.lost, found.won, found.outcome) == ("bounded", 150, 150, "passed")
    assert score_check(before[:60], after[:60]).outcome == "too_few_items"
    assert found.difference == pytest.approx(-0.01)
    assert "0.01 of reward lost against parent" in found.sentence


def test_scores_that_never_changed_pass_only_with_enough_items() -> None:
    """A t test would see no spread and pass any suite; 40 unchanged items show no 5% loss, .95^40 = .13."""
    few, many = (score_check([0.5, 0.25] * n, [0.5, 0.25] * n) for n in (20, 100))
    assert (few.test, few.outcome) == ("bounded", "too_few_items")
    assert few.p == pytest.approx(0.95**40)
    assert many.outcome == "passed"


def test_fewer_than_thirty_scored_items_never_pass() -> None:
    before = [0.5] * 25
    found = score_check(before, [b + 0.001 * (i + 1) for i, b in enumerate(before)], margin=0.5)
    assert (found.outcome, found.needed) == ("too_few_items", 30)


def test_the_items_asked_for_allow_for_the_loss_that_was_measured() -> None:
    """8 lost and 4 won of 400 leave 1 of 2 points: (1.645 + 0.842)^2 * 0.03 / 0.01^2 = 1854.8"""
    before = right(204, 400)
    after = [0.0] * 8 + right(200, 392)
    found = score_check(before, after, margin=0.02)
    assert (found.lost, found.won, found.outcome) == (8, 4, "too_few_items")
    assert found.needed == 1855


@pytest.mark.parametrize(
    ("windows", "outcome"), [(8, "too_few_items"), (58, "too_few_items"), (59, "passed")]
)
def test_windows_of_text_pass_where_rare_damage_would_have_been_seen(
    windows: int, outcome: str
) -> None:
    """Damage to one window in 20 leaves all of 59 as they were with a chance of .95^59 = .048."""
    before = [-1.0 - 0.1 * (i % 8) for i in range(windows)]
    after = [b - 0.001 * (i % 3 - 0.8) for i, b in enumerate(before)]
    found = score_check(before, after, kind="likelihood", margin=0.02)
    assert (found.test, found.outcome) == ("unbounded", outcome)
    assert found.needed in (None, 59)
    assert "nats lost" in found.sentence
    worse = score_check(before, [b - 0.1 for b in after], kind="likelihood", margin=0.02)
    assert worse.outcome == "regressed"


PASS_FAIL = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=80)
SCORES = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=5, max_size=80
)


@given(st.one_of(PASS_FAIL, SCORES))
def test_swapping_candidate_and_comparator_negates_the_difference(
    pairs: list[tuple[float, float]],
) -> None:
    before, after = ([float(v) for v in values] for values in zip(*pairs, strict=True))
    there, back = score_check(before, after), score_check(after, before)
    assert there.difference == -back.difference
    assert (there.lost, there.won) == (back.won, back.lost)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)


@given(st.one_of(PASS_FAIL, SCORES), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_change_a_bit(
    pairs: list[tuple[float, float]], random: Any
) -> None:
    before, after = ([float(v) for v in values] for values in zip(*pairs, strict=True))
    order = list(range(len(pairs)))
    random.shuffle(order)
    straight, shuffled = results("tone", "new", after), results("tone", "new", after)
    shuffled = replace(
        shuffled,
        item_ids=tuple(straight.item_ids[i] for i in order),
        values=tuple(straight.values[i] for i in order),
    )
    old = results("tone", "old", before)
    one, other = (
        check(rule("tone"), new, old, role="retention", against="parent", margin=0.05, alpha=0.05)
        for new in (straight, shuffled)
    )
    assert one == other


@given(st.one_of(PASS_FAIL, SCORES), st.floats(0.001, 0.4), st.floats(0.001, 0.4))
def test_a_larger_margin_never_turns_a_pass_into_a_failure(
    pairs: list[tuple[float, float]], one: float, other: float
) -> None:
    before, after = ([float(v) for v in values] for values in zip(*pairs, strict=True))
    small, large = (score_check(before, after, margin) for margin in sorted((one, other)))
    assert small.outcome != "passed" or large.outcome == "passed"


@given(st.one_of(PASS_FAIL, SCORES), st.floats(0.001, 0.4))
def test_a_pass_is_an_interval_above_the_margin(
    pairs: list[tuple[float, float]], margin: float
) -> None:
    before, after = ([float(v) for v in values] for values in zip(*pairs, strict=True))
    found = score_check(before, after, margin)
    if found.outcome == "passed":
        assert found.interval[0] >= -margin - 1e-6
    elif found.interval[0] > -margin + 1e-6:
        assert found.n < 30 and found.test != "tango"
    if found.needed is not None:
        assert found.needed > found.n


def test_a_verdict_survives_json() -> None:
    for new in (
        measured("new", general=1350, reverse=900, sort=120),
        measured("new", general=1400, reverse=103, sort=120),
    ):
        given = verdict(new, looks=12, retired=["sort"])
        assert Verdict.from_json(given.to_json()) == given
        assert Verdict.from_dict(json.loads(json.dumps(given.to_dict()))) == given
        assert Verdict.from_json(given.to_json()).to_json() == given.to_json()


def stored(folder: Path, *rows: Mapping[str, ItemResults]) -> None:
    for row in rows:
        for result in row.values():
            result.save(folder / result.snapshot / f"{result.suite_hash}.parquet")


def test_a_verdict_follows_from_the_stored_files_bit_for_bit(tmp_path: Path) -> None:
    parent = measured("after reverse", general=1390, reverse=1300, sort=120)
    parent["general"] = results("general", "after reverse", [i % 13 / 13 for i in range(N)])
    start = {**BASE, "reverse": parent["reverse"]}
    start["general"] = results("general", "base", [i % 11 / 11 for i in range(N)])
    new = measured("new", general=1380, reverse=1295, sort=900)
    given = verdict(
        new, target="sort", parent=parent, start=start, best=start, accepted_rounds=["reverse"]
    )
    stored(tmp_path, parent, start, new)
    again = decide_from_files(
        Verdict.from_json(given.to_json()).inputs,
        lambda snapshot, suite_hash: tmp_path / snapshot / f"{suite_hash}.parquet",
    )
    assert again.to_json() == given.to_json()


def test_a_verdict_of_an_earlier_rule_is_drawn_by_it_again(tmp_path: Path) -> None:
    """Scores that rise by .01 with two collapses in 200: a t test calls that shown, as it did then. What
    was recorded then names neither a rule nor the range of a metric."""
    before = {"general": results("general", "base", [0.8] * 200), "sort": BASE["sort"]}
    values = [0.1] * 2 + [0.81] * 198
    new = {"general": results("general", "new", values), "sort": measured("new", sort=900)["sort"]}
    drawn = {"target": "sort", "candidate": new, "parent": before, "start": before, "best": before}
    settings = {"suites": (GENERAL, SORT), "gate": GATE, "accepted_rounds": ()}
    given = decide(Case(**drawn, **settings, decided_by=1))  # type: ignore[arg-type]
    assert {c.suite: c.test for c in given.checks} == {"general": "paired_t", "sort": "tango"}
    recorded = given.to_dict()
    del recorded["inputs"]["decided_by"]
    for suite in recorded["inputs"]["suites"]:
        del suite["value_range"]
        del suite["demands"]["truncation_budget"], suite["demands"]["failure_budget"]
    stored(tmp_path, before, new)
    old = Verdict.from_dict(recorded)
    again = decide_from_files(
        old.inputs, lambda snapshot, suite_hash: tmp_path / snapshot / f"{suite_hash}.parquet"
    )
    assert again == old == given
    assert given.accepted
    now = decide(Case(**drawn, **settings))  # type: ignore[arg-type]
    assert (now.outcome, now.inputs.decided_by) == ("too_few_items", 2)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    new = measured("new", general=1400, reverse=900, sort=120)
    given = verdict(new)
    stored(tmp_path, BASE)
    with pytest.raises(RunError, match="these are results of base on 'general', wanted new"):
        decide_from_files(
            given.inputs, lambda snapshot, suite_hash: tmp_path / "base" / f"{suite_hash}.parquet"
        )


def test_decided_suites_carry_every_number_a_reader_needs() -> None:
    given = verdict(measured("new", general=1398, reverse=900, sort=100))
    for found in deciding(given):
        assert found.n == N
        assert found.snapshot == "base"
        assert found.interval[0] <= found.difference <= found.interval[1]
        assert 0.0 <= found.p <= found.alpha
