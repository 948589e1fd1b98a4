"""What a suite asks besides its mean: cut answers, missing scores, items that must not fail, clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from align.config.campaign import GateConfig
from align.gate.case import Case
from align.gate.checks import Against, Check, check
from align.gate.measurement.evaluate import ItemResults
from align.gate.reward_models import check_rule
from align.gate.statistics.significance import exact_interval
from align.gate.statistics.worst_case import worst_case_interval, worst_case_p
from align.gate.strict import rate_checks, tolerance_checks
from align.gate.suites.demands import Demands
from align.gate.suites.suites import SuiteRule
from align.gate.verdict import Verdict, decide, margin_against
from align.report.explanation.counterfactual import would_change

N = 400
ASKED = Demands(truncation_margin=0.05, failure_margin=0.02, best_margin=0.08)


def rule(**changes: Any) -> SuiteRule:
    base = SuiteRule(
        name="s", kind="items", role="gate", margin=0.05, budget=0.08, target_of=None, hash="h",
        demands=ASKED,
    )  # fmt: skip
    return replace(base, **changes)


def results(snapshot: str, values: Sequence[float], **changes: Any) -> ItemResults:
    n = len(values)
    base = ItemResults(
        suite="s", suite_hash="h", snapshot=snapshot, item_ids=tuple(map(str, range(n))),
        values=tuple(values), statuses=("scored",) * n, finishes=("stop",) * n,
    )  # fmt: skip
    return replace(base, **changes)


def cut(first: int, n: int = N) -> dict[str, Any]:
    return {"finishes": ("length",) * first + ("stop",) * (n - first)}


def rates(new: ItemResults, old: ItemResults) -> dict[str, Check]:
    return {found.what: found for found in rate_checks(rule(), new, {"parent": old}, alpha=0.05)}


def test_answers_that_are_cut_are_a_loss_of_their_own() -> None:
    """40 of 400 more are cut: 10 points, where 5 are allowed; all are still right."""
    old, new = results("old", [1.0] * N), results("new", [1.0] * N, **cut(40))
    found = rates(new, old)
    assert found["truncation"].outcome == "regressed"
    assert (found["truncation"].lost, found["truncation"].difference) == (40, -0.1)
    assert found["truncation"].sentence.startswith(
        "s: 10.0 points of answers that end by themselves lost against parent (40 lost, 0 won of 400;"
    )
    assert found["failure"].outcome == "passed"
    assert rates(old, new)["truncation"].outcome == "passed", "fewer are no loss"


def test_a_few_cut_answers_are_no_loss() -> None:
    old, new = results("old", [1.0] * N, **cut(4)), results("new", [1.0] * N, **cut(8))
    assert rates(new, old)["truncation"].outcome == "passed"


def test_answers_that_no_metric_can_read_are_a_loss() -> None:
    statuses = ("abstained",) * 20 + ("scored",) * (N - 20)
    old, new = results("old", [0.0] * N), results("new", [0.0] * N, statuses=statuses)
    found = rates(new, old)["failure"]
    assert (found.outcome, found.lost, found.margin) == ("regressed", 20, 0.02)
    assert "20 lost, 0 won of 400" in found.sentence


@pytest.mark.parametrize("what", ["truncation", "failure"])
def test_rates_that_creep_up_are_held_to_the_campaigns_budget(what: str) -> None:
    """Three points more in each of four rounds: never 6 against the parent, in the end 12 against the
    start, where 8 are allowed."""

    def creeping(snapshot: str, bad: int) -> ItemResults:
        abstained = ("abstained",) * bad + ("scored",) * (N - bad)
        changes = cut(bad) if what == "truncation" else {"statuses": abstained}
        return results(snapshot, [1.0] * N, **changes)

    asked = replace(
        ASKED,
        failure_margin=0.06,
        truncation_margin=0.06,
        truncation_budget=0.08,
        failure_budget=0.08,
    )
    start, parent, new = creeping("start", 0), creeping("parent", 36), creeping("new", 48)

    def checks(candidate: ItemResults, parent: ItemResults) -> list[Check]:
        compared: dict[Against, ItemResults] = {"parent": parent, "start": start}
        rates = rate_checks(rule(demands=asked), candidate, compared, alpha=0.05)
        return [check for check in rates if check.what == what]

    found = checks(new, parent)
    assert [(c.against, c.margin, c.outcome) for c in found] == [
        ("parent", 0.06, "passed"),
        ("start", 0.08, "regressed"),
    ]
    (once,) = checks(parent, start)
    assert (once.against, once.also, once.margin) == ("parent", ("start",), 0.06)


def test_nothing_is_asked_of_verdicts_from_before() -> None:
    old, new = results("old", [1.0] * N), results("new", [1.0] * N, **cut(N))
    plain = rule(demands=Demands())
    assert list(rate_checks(plain, new, {"parent": old}, alpha=0.05)) == []
    assert list(tolerance_checks(plain, new, {"parent": old}, 0.05)) == []
    assert margin_against(plain, "best") == plain.margin
    assert [margin_against(rule(), name) for name in ("parent", "best", "start")] == [
        0.05, 0.08, 0.08,
    ]  # fmt: skip


# lists that must not fail


def listed(items: Any, new: ItemResults, **old: ItemResults) -> list[Check]:
    asked = rule(demands=replace(ASKED, zero_tolerance=items))
    return list(tolerance_checks(asked, new, old, alpha=0.05))  # type: ignore[arg-type]


def test_one_lost_item_on_the_list_is_enough_and_is_named() -> None:
    old = results("old", [1.0] * 50)
    new = results("new", [0.0, *[1.0] * 49])
    (found,) = listed(("0", "1", "2"), new, parent=old, start=old)
    assert (found.against, found.also, found.test) == ("parent", ("start",), "exact")
    assert (found.outcome, found.items, found.n, found.lost) == ("regressed", ("0",), 3, 1)
    assert "of 3 items that must not fail and passed under parent and start, 1 fail ('0')" in (
        found.sentence
    )
    assert would_change(found) == "it would have passed with them right"
    (elsewhere,) = listed(("1", "2"), new, parent=old, start=old)
    assert (elsewhere.outcome, elsewhere.items) == ("passed", ())


def test_an_item_that_never_passed_cannot_be_lost_but_the_anchors_counts() -> None:
    parent, start = results("parent", [0.0, 1.0]), results("start", [1.0, 1.0])
    new = results("new", [0.0, 1.0])
    against_parent, against_start = listed("all", new, parent=parent, start=start)
    assert (against_parent.outcome, against_parent.n) == ("passed", 1)
    assert (against_start.outcome, against_start.items) == ("regressed", ("0",))


def test_the_bound_is_clopper_and_pearsons() -> None:
    """0 of 50: 1 - .05^(1/50) = 5.8%. 1 of 50, from the tables of the beta distribution: 9.1%."""
    from scipy.stats import beta

    old = results("old", [1.0] * 50)
    (none,) = listed("all", old, parent=old)
    assert none.interval[0] == pytest.approx(-(1 - 0.05 ** (1 / 50)))
    assert "at most 5.8% of such items are lost" in none.sentence
    (one,) = listed("all", results("new", [0.0, *[1.0] * 49]), parent=old)
    assert -one.interval[0] == pytest.approx(beta.ppf(0.95, 2, 49))
    assert -one.interval[0] == pytest.approx(exact_interval(1, 50, 0.05)[1])


def test_more_lost_items_than_a_sentence_holds() -> None:
    old, new = results("old", [1.0] * 9), results("new", [0.0] * 9)
    (found,) = listed("all", new, parent=old)
    assert found.items == tuple(map(str, range(9)))
    assert "'4' and 4 more" in found.sentence


# a candidate that fails on items


def verdict(new: ItemResults, old: ItemResults, **changes: Any) -> Verdict:
    target = rule(name="t", target_of="t", hash="t")
    gain = {"suite": "t", "suite_hash": "t"}
    low = replace(old, **gain, values=(0.0,) * N, statuses=("scored",) * N, finishes=("stop",) * N)
    high = replace(low, snapshot="new", values=(1.0,) * N)
    before, after = {"s": old, "t": low}, {"s": new, "t": high}
    case = Case(
        target="t", candidate=after, parent=before, start=before, best=before,
        suites=(rule(**changes), target), gate=GateConfig(campaign_rounds=1), accepted_rounds=(),
    )  # fmt: skip
    return decide(case)


def test_a_candidate_that_failed_on_too_many_items_is_void() -> None:
    old = results("old", [1.0] * N)
    four, five = (
        results(
            "new", [0.0] * k + [1.0] * (N - k), statuses=("failed",) * k + ("scored",) * (N - k)
        )
        for k in (4, 5)
    )
    judged = verdict(four, old, demands=replace(ASKED, failure_margin=0.05))
    assert (judged.outcome, judged.checks[0].lost, judged.checks[0].failed) == ("accepted", 4, 4)
    void = verdict(five, old)
    assert (void.outcome, void.accepted) == ("void", False)
    assert void.reasons[0].endswith("void, more than 1% failed")
    assert would_change(void.checks[0]) == "it would have been judged with at most 4 failed items"
    assert Verdict.from_json(void.to_json()) == void


def test_a_verdict_holds_every_demand_and_names_the_family() -> None:
    old = results("old", [1.0] * N)
    safe = replace(ASKED, zero_tolerance="all", family="safety")
    given = verdict(results("new", [0.0, *[1.0] * (N - 1)]), old, demands=safe)
    own = [found for found in given.checks if found.suite == "s"]
    assert [found.what for found in own] == ["value", "truncation", "failure", "zero_tolerance"]
    assert {found.family for found in own} == {"safety"}
    assert (given.outcome, len(given.reasons)) == ("rejected", 1)
    assert "'0'" in given.reasons[0]
    assert Verdict.from_json(given.to_json()) == given


# clusters


def clustered(values: Sequence[float], size: int, snapshot: str = "new") -> ItemResults:
    labels = tuple(str(i // size) for i in range(len(values)))
    return results(snapshot, values, clusters=labels)


def value_check(new: ItemResults, old: ItemResults, margin: float = 0.1) -> Check:
    return check(rule(), new, old, role="retention", against="parent", margin=margin, alpha=0.05)


def test_items_that_change_together_count_as_one() -> None:
    """20 of 400 lost: one each in 20 of 40 clusters of 10 bounds the loss by 7 points; two whole
    clusters of 10 leave it open up to 10.8."""
    old = [1.0] * N
    spread = [float(i % 20 != 0) for i in range(N)]
    together = [float(i >= 20) for i in range(N)]
    alike = value_check(clustered(spread, 10), clustered(old, 10, "old"))
    apart = value_check(clustered(together, 10), clustered(old, 10, "old"))
    plain = value_check(results("new", together), results("old", old))
    assert plain.outcome == alike.outcome == "passed"
    assert alike.interval == pytest.approx(plain.interval), "clusters that are alike cost nothing"
    assert (apart.outcome, apart.clusters, plain.clusters) == ("too_few_items", 40, None)
    assert apart.interval[0] < plain.interval[0]
    assert "20 lost, 0 won of 400 in 40 clusters" in apart.sentence
    assert apart.needed is not None and apart.needed > N


def test_the_spread_of_clusters_is_that_of_their_means() -> None:
    """Equal clusters: the interval is that of the means of 40 clusters, and wider than t would have it."""
    random = np.random.default_rng(0)
    means = random.normal(0.2, 1.0, size=(40, 1))
    differences = (means + random.normal(size=(40, 10))).ravel().tolist()
    found = value_check(clustered(differences, 10), clustered([0.0] * N, 10, "old"), margin=0.3)
    of_means = np.asarray(differences).reshape(40, 10).mean(axis=1)
    error = of_means.std(ddof=1) / np.sqrt(40)
    from scipy.stats import t

    assert found.p == pytest.approx(worst_case_p(of_means.tolist(), 0.3))
    assert found.interval == pytest.approx(worst_case_interval(of_means.tolist(), 0.05))
    half = (of_means.mean() - found.interval[0]) / error
    assert t.ppf(0.95, 39) < half < 1.5 * t.ppf(0.95, 39)


@pytest.mark.parametrize(
    ("clusters", "alpha", "outcome"),
    [
        (30, 0.05, "passed"),
        (30, 0.005, "too_few_items"),
        (51, 0.005, "passed"),
        (50, 0.005, "too_few_items"),
    ],
)
def test_clusters_are_as_many_as_show_a_collapse(clusters: int, alpha: float, outcome: str) -> None:
    """A tenth of all clusters collapses: .9^50 = .00515 to have hit none of 50, .9^51 = .0046 of 51."""
    same = clustered([1.0] * 10 * clusters, 10), clustered([1.0] * 10 * clusters, 10, "old")
    found = check(rule(), *same, role="retention", against="parent", margin=0.1, alpha=alpha)
    assert found.outcome == outcome
    assert found.needed in (None, 510)


def test_clusters_of_one_item_are_no_clusters() -> None:
    new, old = (results(name, [1.0] * N) for name in ("new", "old"))
    single = replace(new, clusters=tuple(map(str, range(N))))
    assert value_check(single, old).p == value_check(new, old).p


def test_fewer_than_thirty_clusters_are_too_few() -> None:
    found = value_check(clustered([1.0] * N, 20), clustered([1.0] * N, 20, "old"))
    assert found.outcome == "too_few_items"
    one = value_check(clustered([1.0] * N, N), clustered([1.0] * N, N, "old"))
    assert one.outcome == "too_few_items"


def test_pass_fail_items_in_clusters_keep_the_level() -> None:
    """A loss of exactly the margin, by clusters of ten that are lost or won as a whole or not at all:
    counted one by one it passes far too often."""
    random, alpha, draws = np.random.default_rng(1), 0.05, 400
    old = clustered([1.0] * 200 + [0.0] * 200, 5, "old")
    passed = {"clusters": 0, "items": 0}
    for _ in range(draws):
        turned = (random.random(80) < np.repeat([0.3, 0.1], 40)).repeat(5)
        values = np.where(turned, 1.0 - np.asarray(old.values), old.values).tolist()
        new = clustered(values, 5)
        passed["clusters"] += value_check(new, old).p <= alpha
        bare, before = replace(new, clusters=()), replace(old, clusters=())
        passed["items"] += value_check(bare, before).p <= alpha
    noise = 3 * (alpha * (1 - alpha) / draws) ** 0.5
    assert passed["clusters"] / draws <= alpha + 0.01 + noise
    assert passed["items"] / draws > 0.15


def test_a_verdict_from_before_is_read_as_it_was() -> None:
    """Its rules ask for nothing more, and its checks are of the mean."""
    old = results("old", [1.0] * N)
    given = verdict(results("new", [1.0] * N), old, demands=Demands())
    plain = given.to_dict()
    for stored in plain["inputs"]["suites"]:
        del stored["demands"]
    for stored in plain["checks"]:
        for name in ("what", "family", "clusters", "items"):
            del stored[name]
    target = [check for check in given.checks if check.suite == "s"]
    read = Verdict.from_dict(plain)
    assert [check for check in read.checks if check.suite == "s"] == target
    assert read.inputs.suites[0] == given.inputs.suites[0]
    assert margin_against(read.inputs.suites[0], "best") == 0.05


def test_pairs_of_a_prompt_are_the_evidence_of_one() -> None:
    """A reward model right about 24 of 40 prompts, five pairs of each: .1 above chance is not shown by 40
    draws, though 200 would show it."""
    right = [float(i < 24) for i in range(40) for _ in range(5)]
    longer = results("model", [0.5] * 200)
    apart = check_rule(results("model", right), longer, "chance", 0.05)
    alike = check_rule(clustered(right, 5, "model"), longer, "chance", 0.05)
    assert (apart.outcome, apart.clusters) == ("passed", None)
    assert (alike.outcome, alike.clusters) == ("too_few_items", 40)
    assert alike.p > apart.p
