"""Sharing forward passes among ranks: every pass counts once, and all ranks make equally many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.learner.ranks.ranks import SOLO, Ranks, dealt, in_turn, summed

COUNTS, SIZES = st.integers(0, 40), st.integers(1, 9)


@given(COUNTS, SIZES)
def test_every_pass_counts_exactly_once(count: int, size: int) -> None:
    hands = [dealt(count, rank, size) for rank in range(size)]
    assert sorted(i for hand in hands for i, counts in hand if counts) == list(range(count))


@given(COUNTS, SIZES)
def test_all_ranks_make_the_same_number_of_passes(count: int, size: int) -> None:
    lengths = {len(dealt(count, rank, size)) for rank in range(size)}
    assert lengths == {-(-count // size)}


@given(COUNTS, SIZES)
def test_gathering_undoes_dealing(count: int, size: int) -> None:
    hands = [[i for i, counts in dealt(count, rank, size) if counts] for rank in range(size)]
    assert in_turn(hands) == list(range(count))


def test_an_uneven_share_is_filled_with_the_first_pass() -> None:
    assert dealt(3, 0, 4) == [(0, True)]
    assert dealt(3, 3, 4) == [(0, False)]
    assert dealt(4, 0, 3) == [(0, True), (3, True)]
    assert dealt(4, 2, 3) == [(2, True), (0, False)]
    assert dealt(0, 1, 3) == []


def test_sums_are_over_whoever_has_the_name() -> None:
    assert summed([{"a": 1.0}, {}, {"b": 0.5, "a": 2.0}]) == {"a": 3.0, "b": 0.5}


def test_one_rank_alone_is_the_trivial_case() -> None:
    assert SOLO.deal(3) == [(0, True), (1, True), (2, True)]
    assert SOLO.gather(["a", "b"]) == ["a", "b"]
    assert SOLO.sum({"a": 1.5}) == {"a": 1.5}
    assert SOLO.max(2.0) == 2.0
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    SOLO.add_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


@dataclass(frozen=True, slots=True)
class Scripted(Ranks):
    """A rank whose peers' values are given."""

    peers: Sequence[object] = ()

    def exchange(self, value):  # type: ignore[no-untyped-def]
        return [value, *self.peers]


def test_what_ranks_find_together() -> None:
    assert Scripted(0, 2, peers=({"kl": 1.0},)).sum({"loss": 2.0}) == {"loss": 2.0, "kl": 1.0}
    assert Scripted(0, 2, peers=(float("inf"),)).max(0.5) == float("inf")
    assert Scripted(0, 3, peers=(["b", "e"], ["c"])).gather(["a", "d"]) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_of_a_sum_add_up(size: int) -> None:
    values = [0.25, 0.5, 4.0, 8.0]
    parts = [
        sum(values[i] if counts else 0.0 for i, counts in dealt(4, rank, size))
        for rank in range(size)
    ]
    assert sum(parts) == 12.75
