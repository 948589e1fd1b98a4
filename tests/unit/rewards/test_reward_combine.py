"""Normalising, gating and summing the parts of a rubric, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.algorithms.policy_gradient.advantages import group_relative_by_part
from align.config.campaign import RoundConfig
from align.config.rewards import RewardConfig
from rewards.base import RewardPart
from rewards.call import PartFailure
from rewards.combine import combine
from rewards.library.gating import Gate, closed_gate
from rewards.normalise import EPS, normalised
from rewards.rubric import build_rubric
from rollouts.types import Score


def part(name: str, weight: float = 1.0, **fields: Any) -> RewardPart:
    return RewardPart(name=name, weight=weight, function=len, **fields)


def values(parts: list[RewardPart], *columns: list[Any]) -> list[float | None]:
    """Combined values of a group, from one column of outcomes per part."""
    return [score.value for score in scores(parts, *columns)]


def scores(parts: list[RewardPart], *columns: list[Any]) -> list[Score]:
    rows = zip(*columns, strict=True)
    return combine(parts, [dict(zip([p.name for p in parts], row, strict=True)) for row in rows])


# one part's values


def test_zscore_by_hand() -> None:
    """Mean 2, unbiased standard deviation 1."""
    assert normalised("zscore", [1.0, 2.0, 3.0]) == pytest.approx(
        [-1 / (1 + EPS), 0, 1 / (1 + EPS)]
    )


def test_rank_by_hand() -> None:
    assert normalised("rank", [10.0, -5.0, 0.1, 2.0]) == [1.0, 0.0, 1 / 3, 2 / 3]
    assert normalised("rank", [1.0, 1.0, 0.0]) == [0.75, 0.75, 0.0]


def test_clip_by_hand() -> None:
    assert normalised("clip", [-7.0, 0.5, 7.0], (0.0, 1.0)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("kind", "alone"), [("zscore", 0.0), ("rank", 0.5)])
def test_what_has_no_others_or_only_equals_is_in_the_middle(kind: Any, alone: float) -> None:
    assert normalised(kind, [3.0]) == [alone]
    assert normalised(kind, [3.0, 3.0]) == [alone, alone]
    assert normalised(kind, []) == []


GROUP = st.lists(st.floats(-1e3, 1e3).map(lambda v: round(v, 3)), min_size=2, max_size=8)


@given(values_G=GROUP, factor=st.sampled_from([0.5, 3.0, 100.0]), shift=st.floats(-50, 50))
def test_ranks_survive_any_rising_line(values_G: list[float], factor: float, shift: float) -> None:
    moved = [round(v * 1000) * factor + round(shift) for v in values_G]
    assert normalised("rank", moved) == normalised("rank", values_G)


@given(values_G=GROUP)
def test_zscores_have_mean_zero_and_at_most_unit_spread(values_G: list[float]) -> None:
    found = normalised("zscore", values_G)
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert sum(v * v for v in found) / (len(found) - 1) <= 1 + 1e-9


# a group


def test_parts_are_normalised_before_they_are_weighted() -> None:
    """A wide part and a narrow one, ranked, count as their weights say."""
    wide = part("wide", 1.0, normalise="rank")
    narrow = part("narrow", 2.0, normalise="rank")
    found = scores([wide, narrow], [100.0, 0.0, 50.0], [0.01, 0.03, 0.02])
    assert [s.value for s in found] == [1.0, 2.0, 1.5]
    assert found[0].parts == {"wide": 100.0, "narrow": 0.01}
    assert found[0].counted == {"wide": 1.0, "narrow": 0.0}
    assert found[0].terms == {"wide": 1.0, "narrow": 0.0}


def test_raw_parts_say_nothing_twice() -> None:
    (score,) = scores([part("plain")], [0.5])
    assert (score.counted, score.terms) == ({}, {"plain": 0.5})


def test_abstained_and_failed_samples_are_in_no_mean() -> None:
    broken = PartFailure.of("no")
    found = scores(
        [part("a", normalise="zscore"), part("b")],
        [1.0, 3.0, None, 99.0],
        [0.0, 0.0, 7.0, broken],
    )
    scale = math.sqrt(2) + EPS
    assert [s.value for s in found[:2]] == pytest.approx([-1 / scale, 1 / scale])
    assert found[2].value == 7.0
    assert (found[3].status, found[3].parts, found[3].failures) == (
        "failed", {"a": 99.0, "b": None}, {"b": "no"},
    )  # fmt: skip


def test_a_closed_gate_gives_its_own_value_and_leaves_the_rest_alone() -> None:
    valid = part("valid", 0.0, gate=Gate(at_least=1.0, otherwise=-2.0))
    kind = part("kind", normalise="rank")
    found = scores([valid, kind], [1.0, 0.0, 1.0], [0.1, 99.0, 0.2])
    assert [s.value for s in found] == [0.0, -2.0, 1.0]
    assert found[1].status == "scored"
    assert found[1].parts == {"valid": 0.0, "kind": 99.0}
    assert found[1].terms == {"valid": None, "kind": None}
    assert found[1].detail == "valid: 0 is below its gate of 1"


def test_gates_are_asked_in_order_and_one_without_an_opinion_is_open() -> None:
    gates = {"a": Gate(at_least=1.0), "b": Gate(at_least=0.5, otherwise=-1.0)}
    assert closed_gate(gates, {"a": 0.0, "b": 0.0}) == ("a", gates["a"])
    assert closed_gate(gates, {"a": 1.0, "b": 0.4}) == ("b", gates["b"])
    assert closed_gate(gates, {"a": None, "b": 0.5}) is None


def test_a_failed_part_fails_the_sample_whatever_its_gate_says() -> None:
    gate, kind = part("valid", gate=Gate(at_least=1.0)), part("kind")
    found = scores([gate, kind], [0.0, PartFailure.of("no")], [PartFailure.of("worse"), 1.0])
    assert [s.status for s in found] == ["failed", "failed"]
    assert found[0].detail == "kind: worse"


def test_advantages_by_part_read_what_counts() -> None:
    """With everything ranked, the raw spread has no influence."""
    found = scores([part("a", normalise="rank")], [1e6, 0.0])
    (advantages,) = group_relative_by_part([found], "none")
    assert advantages == [0.5, -0.5]


# as a campaign says it


def spec(*rewards: dict[str, Any], **fields: Any) -> RoundConfig:
    return RoundConfig.model_validate(
        {"name": "r", "prompts": "demo://rev", "steps": 1, "rewards": list(rewards), **fields}
    )


def test_a_campaign_file_builds_the_parts() -> None:
    shaped = {
        "name": "length", "normalise": "clip", "bounds": [0, 1], "gate": {"at_least": 0.2},
        "options": {"target": 6},
    }  # fmt: skip
    (one,) = build_rubric(spec(shaped).rewards).parts
    assert (one.normalise, one.bounds, one.gate) == ("clip", (0.0, 1.0), Gate(at_least=0.2))


@pytest.mark.parametrize(
    ("reward", "fields", "said"),
    [
        ({"normalise": "clip"}, {}, "bounds belong to normalise: clip"),
        ({"bounds": [0, 1]}, {}, "bounds belong to normalise: clip"),
        ({"normalise": "clip", "bounds": [1, 0]}, {}, "swap them"),
        ({"normalise": "softmax"}, {}, "'none', 'zscore', 'rank' or 'clip'"),
        ({"gate": {"at_least": math.nan}}, {}, "finite"),
        (
            {"normalise": "rank"},
            {"algorithm": "ppo", "sampling": {"group_size": 1}},
            "got group_size 1",
        ),
        ({"gate": {"at_least": 1}}, {"algorithm": {"name": "grpo", "by_part": True}}, "by_part"),
    ],
)
def test_what_cannot_work_is_refused(
    reward: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        spec({"name": "exact_match", **reward}, **fields)


def test_a_suite_keeps_of_a_part_what_needs_no_others() -> None:
    ranked = RewardConfig(name="exact_match", normalise="rank", gate={"at_least": 1})  # type: ignore[arg-type]
    assert (ranked.absolute.normalise, ranked.absolute.gate) == ("none", ranked.gate)
    assert ranked.shape == {"gate": {"at_least": 1.0}}
    clipped = RewardConfig(name="exact_match", normalise="clip", bounds=(0, 1))
    assert clipped.absolute is clipped
    assert RewardConfig(name="exact_match", normalise="zscore").shape == {}
