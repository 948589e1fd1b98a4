"""Suites that stop early: order, looks, verdicts from the first items, and the same again after a crash."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.campaign import run_campaign
from align.config.campaign import GateConfig
from align.gate.case import Case
from align.gate.checks import Against, Check, check
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults, ItemStatus, evaluate
from align.gate.measurement.reuse import joined, rest_of
from align.gate.statistics.rules import CURRENT_RULE
from align.gate.statistics.sequential import may_stop, stopping
from align.gate.suites.demands import Demands
from align.gate.suites.looks import Early, early_of, first, in_common, in_order, looks
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import Verdict, decide, open_against
from align.report.explanation.explain import explain
from align.round.measurement.measuring import measured_by
from tests.unit.align.gate.suites.test_gate_suites import (
    ENCODER,
    GENERAL,
    answering,
    build,
    campaign,
)
from tests.unit.campaigns import Starter, Watcher, rounds
from tests.unit.campaigns import campaign as small

N = 960
GATE = GateConfig(alpha=0.05, campaign_rounds=1, stopping="sequential")
SUITE = {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 160,
         "margin": 0.2, "budget": 0.3}  # fmt: skip
SEQUENTIAL = {
    "mode": "observe",
    "stopping": "sequential",
    "underpowered": "warn",
    "campaign_rounds": 2,
}


def rule(**changes: Any) -> SuiteRule:
    base = SuiteRule(
        name="general", kind="items", role="gate", margin=0.05, budget=0.1, target_of=None,
        hash="h", value_range=(0.0, 1.0), early=Early(items=N, units=N),
    )  # fmt: skip
    return replace(base, **changes)


def results(
    snapshot: str, values: list[float], clusters: tuple[str, ...] = (), failed: int = 0
) -> ItemResults:
    n = len(values)
    return ItemResults(
        suite="general",
        suite_hash="h",
        snapshot=snapshot,
        item_ids=tuple(map(str, range(n))),
        values=tuple(values),
        statuses=tuple("failed" if i < failed else "scored" for i in range(n)),
        finishes=tuple("stop" for _ in values),
        clusters=clusters,
    )


def answers(seed: int, share: float = 0.7, n: int = N) -> list[float]:
    drawn = random.Random(seed)
    return [float(drawn.random() < share) for _ in range(n)]


def changed(values: list[float], seed: int, lost: float = 0.02, won: float = 0.02) -> list[float]:
    drawn = random.Random(seed)
    turns = [drawn.random() for _ in values]
    return [
        0.0 if v == 1.0 and t < lost / 0.7 else 1.0 if v == 0.0 and t < won / 0.3 else v
        for v, t in zip(values, turns, strict=True)
    ]


BEFORE = answers(0)
CANDIDATE, PARENT = results("candidate", changed(BEFORE, 1)), results("parent", BEFORE)


def compared(items: int, candidate: ItemResults = CANDIDATE, **changes: Any) -> Check:
    given: dict[str, Any] = {
        "role": "retention",
        "against": "parent",
        "margin": 0.05,
        "alpha": 0.05,
    }
    return check(rule(), candidate, PARENT, items={"parent": items}, **(given | changes))


@given(st.permutations(list(range(40))))
def test_the_order_of_measuring_is_that_of_names(turned: list[int]) -> None:
    ids = [str(i) for i in range(40)]
    wanted = [ids[i] for i in in_order("general", ids)]
    shuffled = [ids[i] for i in turned]
    assert [shuffled[i] for i in in_order("general", shuffled)] == wanted
    assert wanted != ids
    assert wanted != [ids[i] for i in in_order("other", ids)]


def test_clusters_enter_whole() -> None:
    ids = [str(i) for i in range(300)]
    clusters = [str(i % 96) for i in range(300)]
    ends = looks("general", ids, clusters)
    order = in_order("general", ids, clusters)
    assert len(ends) == 3
    assert ends[-1] == 300
    for end in ends[:-1]:
        before, after = ({clusters[i] for i in part} for part in (order[:end], order[end:]))
        assert before.isdisjoint(after)
    assert early_of(ids, clusters) == Early(items=300, units=96, largest=4)


@pytest.mark.parametrize(
    ("n", "wanted"), [(1, [1]), (63, [63]), (64, [32, 64]), (96, [32, 64, 96])]
)
def test_small_suites_have_few_looks(n: int, wanted: list[int]) -> None:
    assert looks("general", [str(i) for i in range(n)]) == wanted


def test_a_bet_is_won_before_all_items_are_measured() -> None:
    ends = looks("general", CANDIDATE.item_ids)
    passed = [compared(end).outcome == "passed" for end in ends]
    assert passed == sorted(passed)
    assert passed[-1]
    assert not passed[0]
    assert passed.index(True) < len(ends) // 2
    found = compared(ends[passed.index(True)])
    assert found.test == "betting"
    assert not found.open
    assert found.n == ends[passed.index(True)]
    assert compared(ends[0]).open
    assert "points" in found.sentence


def test_items_beyond_the_decision_do_not_matter() -> None:
    other = results("candidate", [0.0] * N)
    order = in_order("general", CANDIDATE.item_ids)
    values = list(other.values)
    for place in order[:600]:
        values[place] = CANDIDATE.values[place]
    assert compared(600, results("candidate", values)) == compared(600)


def test_a_loss_is_given_up_early() -> None:
    worse = results("candidate", changed(BEFORE, 2, lost=0.2, won=0.0))
    found = [compared(end, worse) for end in looks("general", worse.item_ids)]
    assert not found[-1].open
    assert all(one.outcome != "passed" for one in found)
    assert [one.open for one in found].index(False) < len(found) - 1


def test_a_gain_is_shown_early_and_no_gain_never() -> None:
    better = results("candidate", changed(BEFORE, 3, lost=0.0, won=0.15))
    ends = looks("general", better.item_ids)
    target = {"role": "target", "margin": 0.0}
    assert compared(ends[len(ends) // 2], better, **target).outcome == "passed"
    assert compared(N, PARENT, **target).outcome != "passed"


def opened(candidate: ItemResults, items: int, *others: ItemResults) -> set[str]:
    names: tuple[Against, ...] = ("parent", "best", "start")
    named = dict(zip(names, (PARENT, *others), strict=False))
    return open_against(one_suite(candidate, named, {of.snapshot: items for of in named.values()}))


def one_suite(
    candidate: ItemResults, compared: Mapping[Against, ItemResults], items: Mapping[str, int]
) -> Case:
    """Return a case on one suite that may stop early, at an error of 0.05."""
    comparators: dict[str, Any] = {who: {"general": of} for who, of in compared.items()}
    return Case(
        target="", candidate={"general": candidate}, suites=(rule(),), gate=GATE, level=0.05,
        accepted_rounds=(), items={"general": items}, **comparators,
    )  # fmt: skip


def test_each_comparator_is_decided_by_itself() -> None:
    start = results("start", changed(BEFORE, 7, lost=0.2, won=0.2))
    ends = looks("general", CANDIDATE.item_ids)
    stopped = {
        s: next(e for e in ends if s not in opened(CANDIDATE, e, start, start))
        for s in ("parent", "start")
    }
    assert stopped["parent"] < stopped["start"]
    assert opened(CANDIDATE, ends[0], start, start) == {"parent", "start"}
    assert opened(CANDIDATE, N, start, start) == set()


def test_a_candidate_that_is_its_own_comparator_is_measured_on_every_suite() -> None:
    assert measured_by("c", {"a": ["c", "p"], "b": ["p"], "d": []}) == {
        "c": ["a", "b"],
        "p": ["a", "b"],
    }


def test_failures_among_the_first_items_decide_nothing() -> None:
    """5 of 960 failed: few enough, and more than 1% of the first 64 if they are all among these."""
    order = in_order("general", CANDIDATE.item_ids)
    statuses: list[ItemStatus] = ["scored"] * N
    for place in order[:5]:
        statuses[place] = "failed"
    failing = replace(PARENT, statuses=tuple(statuses), snapshot="failing")
    few: dict[Against, ItemResults] = {"parent": failing}
    assert open_against(one_suite(CANDIDATE, few, {"failing": 64})) == {"failing"}
    own = replace(CANDIDATE, statuses=tuple(statuses))
    assert compared(64, own).outcome == "void"
    assert compared(64, own).open
    assert not compared(N, own).open


def decided(**changes: Any) -> Verdict:
    start = results("start", changed(BEFORE, 7))
    given: dict[str, Any] = {
        "target": "", "candidate": {"general": CANDIDATE}, "parent": {"general": PARENT},
        "start": {"general": start}, "best": {"general": PARENT}, "suites": (rule(),), "gate": GATE,
        "accepted_rounds": (), "items": {"general": {"parent": 600, "start": 800}},
    }  # fmt: skip
    return decide(Case(**(given | changes)))


def test_a_verdict_says_from_how_many_items_it_was_drawn() -> None:
    verdict = decided()
    assert [c.n for c in verdict.checks if c.what == "value"] == [600, 800]
    assert Verdict.from_json(verdict.to_json()) == verdict
    cut = {"general": first(PARENT, 700)}
    assert decided(parent=cut, best=cut).decides_as(verdict)


def test_who_is_called_best_does_not_matter_to_the_others() -> None:
    start, as_wide = results("start", changed(BEFORE, 7)), Demands(best_margin=0.1)
    found = [
        decided(best={"general": best}, suites=(rule(demands=as_wide),)).checks
        for best in (start, PARENT)
    ]
    values = [{c.snapshot: (c.n, c.p) for c in checks if c.what == "value"} for checks in found]
    assert values[0] == values[1]


def test_a_verdict_of_old_names_no_items() -> None:
    plain = decided(items={}, suites=(rule(early=None),)).to_dict()
    del plain["inputs"]["items"]
    for suite in plain["inputs"]["suites"]:
        del suite["early"]
    for one in plain["checks"]:
        del one["open"]
    old = Verdict.from_dict(plain)
    assert old.decides_as(decided(items={}, suites=(rule(early=None),)))
    assert old.inputs.decided_by == CURRENT_RULE
    assert {c.test for c in old.checks} == {"tango"}


def test_in_common_is_what_the_shorter_has() -> None:
    one, other = in_common(first(CANDIDATE, 300), PARENT)
    assert one.item_ids == other.item_ids
    assert in_common(CANDIDATE, PARENT) == (CANDIDATE, PARENT)


def test_a_part_asks_with_the_seeds_of_the_whole() -> None:
    suite = build(campaign(suites=[{**GENERAL, "items": 96}]))[0]
    engine, whole = answering(suite), answering(suite)
    part = suite.first(32)
    some = evaluate(engine, [part], ENCODER, "snap", seed=7)[suite.name]
    evaluate(whole, [suite], ENCODER, "snap", seed=7)
    asked = {r.id: r.seed for r in engine.requests}
    assert len(asked) == 32
    assert asked.items() <= {r.id: r.seed for r in whole.requests}.items()
    more = rest_of(suite.first(64), [some])
    assert more is not None
    rest = evaluate(engine, [more], ENCODER, "snap", seed=7)[suite.name]
    both = joined(suite.first(64), [rest, some], suite.hash)
    assert both.suite_hash == suite.hash
    assert set(both.item_ids) == set(suite.first(64).item_ids)
    assert both.tokens == (rest.tokens or 0) + (some.tokens or 0)


def test_an_item_without_a_value_is_worth_the_same_in_whatever_part() -> None:
    """The worst of the range, -1; of a suite that is measured whole, the worst of its values, 0."""
    suite = replace(build(campaign(suites=[{**GENERAL, "items": 96}]))[0], value_range=(-1.0, 1.0))
    early, engine = stopping(suite), answering(suite)
    part = early.first(32)
    lost = {prompt.id for prompt in part.prompts[:3]}
    for position, prompt in enumerate(suite.prompts):
        if prompt.id in lost:
            engine.fail_request(f"7/{position}/{prompt.id}", "engine 0 died")
    for measured, worst in ((early, -1.0), (part, -1.0), (part.part(range(3)), -1.0), (suite, 0.0)):
        found = evaluate(engine, [measured], ENCODER, "snap", seed=7)[suite.name]
        unscored = {v for i, v in zip(found.item_ids, found.values, strict=True) if i in lost}
        assert (found.failed, unscored) == (3, {worst})


@pytest.mark.parametrize(
    "change",
    [
        {"role": "watch"},
        {"zero_tolerance": "all"},
        {"rotate": {"share": 0.4, "bridge": 0.5}, "items": 10},
        {"metric": {"name": "exact_match", "weight": 2.0}},
    ],
)  # fmt: skip
def test_what_cannot_stop_is_measured_whole(change: dict[str, Any]) -> None:
    suites = build(campaign(suites=[GENERAL | change]))
    assert not may_stop(suites[0])
    assert stopping(suites[0]) is suites[0]


def test_a_suite_with_a_range_can_stop() -> None:
    suite = build(campaign(suites=[GENERAL]))[0]
    assert stopping(suite).rule.early == early_of(suite.item_ids, ())
    assert stopping(suite).hash == suite.hash


def run(folder: Path, **changes: Any) -> tuple[Evidence, Watcher]:
    watcher = Watcher()
    config = small(
        folder, suites=[SUITE], gate=SEQUENTIAL, rounds=rounds({}, {"prompts": "demo://inc?n=60"}),
        **changes,
    )  # fmt: skip
    return run_campaign(config, start_engine=Starter(), observer=watcher), watcher


def test_a_campaign_stops_early_and_a_crash_between_looks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, watcher = run(tmp_path / "undisturbed")
    verdicts = {name: outcome.verdict for name, outcome in watcher.verdicts.items()}
    n = {e.snapshot: e.n for e in evidence.ledger.evaluations() if e.suite == "general"}
    assert min(n.values()) < 160
    assert [d.level for d in evidence.decisions()] == [v.inputs.level for v in verdicts.values()]
    assert {v.inputs.gate.spending for v in verdicts.values()} == {"recycle"}
    for name, verdict in verdicts.items():
        assert max(verdict.inputs.items["general"].values()) <= n[watcher.verdicts[name].candidate]
        again, recorded = evidence.recompute(name)
        assert again.decides_as(recorded)
        assert explain(evidence, name).outcome == recorded.outcome
    assert all((evidence.folder / e.path).is_file() for e in evidence.ledger.evaluations())
    assert list(evidence.faults()) == []

    calls, save = [0], Evidence.save

    def dying(self: Evidence, *args: Any) -> None:
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise RuntimeError("killed between looks")
        save(self, *args)

    monkeypatch.setattr(Evidence, "save", dying)
    for _ in range(30):
        try:
            again_evidence, _ = run(tmp_path / "crashing")
            break
        except RuntimeError:
            continue
    for name, verdict in verdicts.items():
        assert again_evidence.recompute(name)[1].decides_as(verdict)


def test_a_campaign_that_turns_to_fixed_measures_the_rest(tmp_path: Path) -> None:
    run(tmp_path)
    config = small(
        tmp_path, suites=[SUITE], gate=SEQUENTIAL | {"stopping": "fixed"},
        rounds=rounds({}, {"prompts": "demo://inc?n=60"}, {"prompts": "demo://sort?n=60"}),
    )  # fmt: skip
    watcher = Watcher()
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    (verdict,) = (outcome.verdict for outcome in watcher.verdicts.values())
    assert {c.test for c in verdict.checks if c.suite == "general"} == {"tango"}
    assert {e.n for e in evidence.ledger.evaluations() if e.suite == "general"} == {160}
    for name in ("round0", "round1", "round2"):
        again, recorded = evidence.recompute(name)
        assert again.decides_as(recorded)
