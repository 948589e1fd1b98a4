"""Group-relative advantages by hand and by property."""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.policy_gradient.advantages import (
    Scale,
    group_relative,
    group_relative_by_part,
    has_signal,
)
from rollouts.types import Score

scales = st.sampled_from(["group", "batch", "none"])
rewards = st.lists(st.none() | st.floats(-10, 10), min_size=2, max_size=8)


def score(value: float | None, **parts: float) -> Score:
    status = "scored" if value is not None else "failed"
    return Score(value=value, status=status, parts=parts, weights=dict.fromkeys(parts, 1.0))


def test_by_hand() -> None:
    # mean 0.5, unbiased std of (1, 0, 1, 0) is sqrt(1/3) = 0.57735
    (advantages,) = group_relative([[1.0, 0.0, 1.0, 0.0]], "group", eps=0.0)
    assert advantages == pytest.approx([0.866025, -0.866025, 0.866025, -0.866025], abs=1e-6)
    assert group_relative([[1.0, 0.0, None, 0.5]], "none") == [[0.5, -0.5, None, 0.0]]


def test_batch_scale_by_hand() -> None:
    # centred: (.5, -.5), (0, 0), (.25, -.25); sum of squares .625 over 5 -> std .35355
    rewards = [[1.0, 0.0], [1.0, 1.0], [0.5, 0.0]]
    found = [a for group in group_relative(rewards, "batch") for a in group]
    assert found == pytest.approx([1.41421, -1.41421, 0, 0, 0.70711, -0.70711], abs=1e-4)


def test_batch_scale_does_not_blow_up_noise() -> None:
    """Nearly solved: group scale turns a difference of .001 into a full advantage, batch scale not."""
    rewards = [[1.0, 0.999], [1.0, 1.0]]
    assert group_relative(rewards, "group", eps=1e-9)[0][0] == pytest.approx(0.7071, abs=1e-3)
    assert group_relative(rewards, "batch")[0][0] == pytest.approx(0.0005 / 0.1)


def test_nothing_to_compare() -> None:
    assert group_relative([[1.0, None, None]], "group") == [[None, None, None]]
    assert group_relative([[1.0, 1.0]], "group") == [[0.0, 0.0]]


@given(rewards, scales)
def test_sums_to_zero_and_keeps_none(values: list[float | None], scale: Scale) -> None:
    advantages = group_relative([values], scale)[0]
    kept = [a for a in advantages if a is not None]
    assert sum(kept) == pytest.approx(0.0, abs=1e-6)
    if sum(v is not None for v in values) >= 2:
        assert [a is None for a in advantages] == [v is None for v in values]


@given(rewards, scales, st.randoms())
def test_permutation_of_the_group(values: list[float | None], scale: Scale, random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = group_relative([values], scale)[0]
    shuffled = group_relative([[values[i] for i in order]], scale)[0]
    for position, index in enumerate(order):
        assert shuffled[position] == pytest.approx(straight[index], abs=1e-6) or (
            shuffled[position] is None and straight[index] is None
        )


def test_by_part_gives_every_part_its_weight() -> None:
    group = [score(101.0, big=100.0, small=1.0), score(1.0, big=0.0, small=1.0),
             score(100.0, big=100.0, small=0.0), score(0.0, big=0.0, small=0.0)]  # fmt: skip
    (by_part,) = group_relative_by_part([group], "group", eps=0.0)
    # The parts add up to 2 * 0.866, 0, 0 and -2 * 0.866, whose standard deviation is sqrt(2).
    assert by_part == pytest.approx([1.224745, 0.0, 0.0, -1.224745], abs=1e-5)
    (summed,) = group_relative([[s.value for s in group]], "group", eps=0.0)
    assert summed[1] is not None and summed[1] < -0.8, "the sum hides the small part"


def test_by_part_is_normalised_over_the_step_at_last() -> None:
    """However many parts and groups there are, advantages have the spread 1 (arXiv 2601.05242, eq. 6)."""
    step = [[score(0.0, a=float(i), b=float(i * i % 5), c=float(i % 2)) for i in range(j, j + 6)]
            for j in range(4)]  # fmt: skip
    flat = [a for group in group_relative_by_part(step, "group", eps=0.0) for a in group if a]
    assert stdev([*flat, *[0.0] * (24 - len(flat))]) == pytest.approx(1.0)
    assert sum(flat) == pytest.approx(0.0, abs=1e-9)


def test_by_part_is_that_of_trl() -> None:
    """The last lines of `normalize_then_sum` in its GRPO trainer, in torch."""
    values = torch.tensor(
        [[[3.0, 0.0], [1.0, 1.0], [2.0, 1.0]], [[0.0, 5.0], [0.0, 1.0], [9.0, 2.0]]]
    )
    weights = torch.tensor([1.0, 0.5])
    parts = (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-4)
    rewards = (parts * weights).sum(-1)
    theirs = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    scores = [
        [replace(score(0.0, a=a, b=b), weights={"a": 1.0, "b": 0.5}) for a, b in group.tolist()]
        for group in values
    ]
    for own, their in zip(group_relative_by_part(scores, "group"), theirs.tolist(), strict=True):
        assert own == pytest.approx(their, abs=1e-5)


def test_by_part_without_a_scale_divides_by_nothing() -> None:
    group = [score(0.0, a=4.0), score(0.0, a=0.0)]
    assert group_relative_by_part([group], "none") == [[2.0, -2.0]]


def test_by_part_masks_failed_samples() -> None:
    group = [score(1.0, a=1.0), score(None), score(0.0, a=0.0)]
    assert group_relative_by_part([group], "none") == [[0.5, None, -0.5]]


def test_has_signal() -> None:
    assert has_signal([0.5, -0.5])
    assert not has_signal([0.0, None, 0.0])
