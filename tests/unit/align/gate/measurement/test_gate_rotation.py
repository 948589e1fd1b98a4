"""A rotating suite changes as much as it says, keeps every item's place, and measures nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.campaign import run_campaign
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.measurement.reuse import earlier, joined, load_with_texts, rest_of
from align.gate.suites.rotation import Rotation, prompts_wanted, rotation_of
from align.gate.suites.suite import Suite
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.align.gate.suites.test_gate_suites import (
    ENCODER,
    GENERAL,
    answering,
    build,
    campaign,
    jsonl,
)
from tests.unit.campaigns import Starter, Watcher, rounds
from tests.unit.campaigns import campaign as small

ROTATING = {**GENERAL, "items": 10, "rotate": {"share": 0.4, "bridge": 0.5}}


def prompts(n: int) -> list[Prompt]:
    return [Prompt(id=str(i), text=str(i)) for i in range(n)]


def rotation(n: int = 40, seed: str = "0") -> Rotation:
    return rotation_of(prompts(n), 10, 0.4, 0.5, seed)


def ids(turn: Rotation, index: int) -> list[str]:
    return [prompt.id for prompt in turn.items(index)]


def test_a_round_keeps_the_fixed_items_and_the_bridge() -> None:
    turn = rotation()
    before, after = ids(turn, 3), ids(turn, 4)
    assert before[:6] == after[:6]
    assert sum(a == b for a, b in zip(before[6:], after[6:], strict=True)) == 2


def test_after_as_many_rounds_as_it_takes_every_rotating_place_is_new() -> None:
    turn = rotation()
    assert set(ids(turn, 0)[6:]).isdisjoint(ids(turn, 2)[6:])


@given(st.integers(0, 30), st.integers(12, 60), st.integers(0, 5))
def test_every_round_has_distinct_items_each_in_its_own_place(n: int, size: int, seed: int) -> None:
    turn = rotation(max(14, size), str(seed))
    assert len(set(ids(turn, n))) == 10
    places: dict[str, int] = {}
    for index in range(n + 1):
        for place, item in enumerate(ids(turn, index)):
            assert places.setdefault(item, place) == place


def test_no_item_returns_within_the_rounds_that_the_pool_is_sized_for() -> None:
    wanted = prompts_wanted(10, 0.4, 0.5, rounds=6)
    assert wanted == 10 + 2 * 5
    turn = rotation(wanted)
    seen = [set(ids(turn, index)) for index in range(6)]
    for first in range(6):
        for last in range(first + 2, 6):
            # What both ends have, everything between them has.
            assert seen[first] & seen[last] <= set.intersection(*seen[first : last + 1])


def test_the_order_of_the_file_does_not_matter_and_the_seed_does() -> None:
    turned = rotation_of(reversed(prompts(40)), 10, 0.4, 0.5, "0")
    assert turned.items(3) == rotation().items(3)
    assert rotation(seed="1").items(0) != rotation().items(0)


def rotating() -> Suite:
    return build(campaign(suites=[ROTATING]))[0]


def test_every_rotation_has_a_hash_and_comes_back_to_it() -> None:
    suite = rotating()
    assert suite.at(0).hash == suite.hash
    assert len({suite.at(i).hash for i in range(6)}) == 6
    assert suite.at(3).at(0).hash == suite.hash
    assert list(earlier(suite.at(2), 2)) == [suite.at(1).hash, suite.at(0).hash]
    assert list(earlier(build(campaign())[0], 2)) == []


def test_a_pool_that_cannot_rotate_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "eval.jsonl", [str(i) for i in range(13)])
    with pytest.raises(UserError, match="has 13 prompts, at least 14 are needed"):
        build(campaign(suites=[{**ROTATING, "prompts": path}]))


@pytest.mark.parametrize("change", [{"role": "sealed", "every": 2}, {"against": "base"}])
def test_what_cannot_rotate_says_so(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="remove"):
        campaign(suites=[{**ROTATING, **change}])


def test_only_new_items_are_asked_and_with_the_seeds_they_always_have() -> None:
    suite = rotating()
    first, second = suite.at(0), suite.at(1)
    before = evaluate(answering(first), [first], ENCODER, "snap", seed=7)[suite.name]
    part = rest_of(second, [before])
    assert part is not None and len(part.prompts) == 2
    engine, whole = answering(suite.at(1)), answering(suite.at(1))
    fresh = evaluate(engine, [part], ENCODER, "snap", seed=7)[suite.name]
    evaluate(whole, [second], ENCODER, "snap", seed=7)
    assert {r.id: r.seed for r in engine.requests}.items() <= {
        r.id: r.seed for r in whole.requests
    }.items()
    both = joined(second, [fresh, before])
    assert both.item_ids == second.item_ids
    assert both.suite_hash == second.hash
    assert both.values == (1.0,) * 10
    assert len(both.answers) == 10
    assert rest_of(second, [both]) is None


def test_texts_of_what_was_stored_are_kept(tmp_path: Path) -> None:
    suite = rotating()
    results = evaluate(answering(suite), [suite], ENCODER, "snap", seed=7)[suite.name]
    results.save(tmp_path / "r.parquet")
    assert load_with_texts(tmp_path / "r.parquet").answers == results.answers
    bare = replace(ItemResults.load(tmp_path / "r.parquet"), prompts=(), answers=())
    assert joined(suite, [bare]).answers == ()


def test_a_campaign_rotates_and_every_verdict_is_paired(tmp_path: Path) -> None:
    spec = {
        "name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 30,
        "rotate": {"share": 0.4, "bridge": 0.5},
    }  # fmt: skip
    starter, watcher = Starter(), Watcher()
    config = small(tmp_path, suites=[spec], rounds=rounds({}, {"prompts": "demo://inc?n=60"}))
    evidence: Evidence = run_campaign(config, start_engine=starter, observer=watcher)
    first, second = (watcher.verdicts[name].verdict for name in ("round0", "round1"))
    hashes = [
        next(rule.hash for rule in verdict.inputs.suites if rule.name == "general")
        for verdict in (first, second)
    ]
    assert hashes[0] != hashes[1]
    for name in ("round0", "round1"):
        again, recorded = evidence.recompute(name)
        assert again == recorded
    # The start was asked for 30 items, then for the 6 that rotated in: its other results were there.
    records = [e for e in evidence.ledger.evaluations(evidence.base) if e.suite == "general"]
    assert [e.n for e in records] == [30, 30]
    assert {e.suite_hash for e in records} == set(hashes)
