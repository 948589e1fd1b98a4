"""Advantages of single turns: the formula by hand, and what must not change them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import ALGORITHMS, algorithm_from
from align.algorithms.policy_gradient.actor_critic.gae import gae
from align.algorithms.rows import Batch, Row
from tests.unit.episodes import episode, scored

FITTING = ("grpo", "dapo", "dr_grpo", "cispo", "reinforce_pp", "ppo", "cppo")


def learner(name: str, **settings: Any) -> Any:
    return algorithm_from({"name": name, **settings}).for_round(64).by_turn()


def rows(name: str, *groups: Any, **settings: Any) -> tuple[Row, ...]:
    made: Batch = learner(name, **settings).rows(groups)
    return made.rows


def test_a_turn_is_credited_with_its_own_reward_and_what_follows() -> None:
    """Scores 1 and 0; rewards of turns 1, 0 against 0, 2: centred .5, -1 against -.5, 1."""
    group = scored(
        episode((4, 5), (9,), (6,), turn_rewards=(1.0, 0.0)),
        episode((4,), (9, 9), (7, 8), turn_rewards=(0.0, 2.0)),
        values=(1.0, 0.0),
    )
    first, second = rows("grpo", group, scale="none")
    # .5 of the score; turn 1: + .5 - 1, turn 2: - 1.
    assert first.advantages_T == pytest.approx((0.0, 0.0, -0.5))
    assert second.advantages_T == pytest.approx((0.0, 0.5, 0.5))
    assert (first.advantage, second.advantage) == (0.5, -0.5)


def test_the_spread_is_that_of_the_same_turn() -> None:
    group = scored(
        episode((4,), (9,), (6,), turn_rewards=(3.0, None)),
        episode((4,), (9,), (7,), turn_rewards=(1.0, 5.0)),
        values=(1.0, 1.0),
    )
    first, second = rows("grpo", group, scale="group")
    # Deviation of 3 and 1: sqrt 2. Nothing to compare turn 2 with, and the scores are equal.
    expected = 1.0 / (2**0.5 + 1e-4)
    assert first.advantages_T == pytest.approx((expected, 0.0))
    assert second.advantages_T == pytest.approx((-expected, 0.0))


def test_an_observation_behind_the_last_turn_begins_no_turn() -> None:
    group = scored(
        episode((4, 5), (9,), (6,), (9, 9), turns=2, turn_rewards=(0.0, 1.0)),
        episode((4,), (9,), (7,), (9,), turns=2, turn_rewards=(0.0, 0.0)),
        values=(0.0, 0.0),
    )
    first, _ = rows("grpo", group, scale="none")
    assert first.advantages_T == pytest.approx((0.5, 0.5, 0.5))
    assert len(first.advantages_T or ()) == first.num_sampled


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "cispo", "reinforce_pp"])
def test_without_rewards_of_turns_advantages_are_per_episode(name: str) -> None:
    groups = [
        scored(episode((4,), (9,), (6,)), episode((4, 4), (9,), (7,)), values=(1.0, 0.0)),
        scored(episode((5,)), episode((5, 5), turn_rewards=(None,)), values=(0.0, 0.0)),
    ]
    algorithm = algorithm_from({"name": name}).for_round(64)
    assert algorithm.by_turn().rows(groups) == algorithm.rows(groups)


@given(st.floats(-3, 3), st.lists(st.floats(-2, 2), min_size=2, max_size=4))
def test_a_constant_added_to_a_turns_rewards_changes_nothing(
    shift: float, rewards: list[float]
) -> None:
    def group(by: float) -> Any:
        episodes = [episode((4,), (9,), (5,), turn_rewards=(r + by, -r + by)) for r in rewards]
        return scored(*episodes, values=[0.0] * len(rewards))

    plain, moved = (rows("grpo", group(by), scale="none") for by in (0.0, shift))
    for a, b in zip(plain, moved, strict=True):
        one, other = a.advantages_T or (0.0, 0.0), b.advantages_T or (0.0, 0.0)
        assert one == pytest.approx(other, abs=1e-9)


def test_an_episode_without_a_score_is_neither_taught_nor_compared_with() -> None:
    group = scored(
        episode((4,), (9,), (6,), turn_rewards=(100.0, 100.0)),
        episode((4,), (9,), (7,), turn_rewards=(1.0, 0.0)),
        episode((4,), (9,), (8,), turn_rewards=(0.0, 0.0)),
        values=(None, 0.0, 0.0),
    )
    lost, first, second = rows("grpo", group, scale="none")
    assert lost.advantage is None and lost.advantages_T is None
    assert (first.advantages_T, second.advantages_T) == ((0.5, 0.0), (-0.5, 0.0))


def test_a_critic_spreads_the_rewards_of_turns() -> None:
    """Values .1 to .4; rewards 1 at the second token, and 2 + 3 at the last, where the score stands."""
    group = scored(episode((4, 5), (9, 9, 9), (6, 7), turn_rewards=(1.0, 3.0)), values=(2.0,))
    algorithm = learner("ppo", whiten=False)
    (row,) = algorithm.rows([group]).rows
    assert row.rewards_T == (0.0, 1.0, 0.0, 3.0)
    values_T = (0.1, 0.2, 0.3, 0.4)
    (done,) = algorithm.complete([replace(row, values_T=values_T)])
    expected = gae((0.0, 1.0, 0.0, 5.0), values_T, gamma=1.0, lam=0.95)
    assert (done.advantages_T, done.returns_T) == expected


def test_a_critic_passes_over_observations() -> None:
    """The return of an episode is that of its sampled tokens in a row."""
    algorithm = algorithm_from({"name": "ppo", "whiten": False})
    split, whole = (
        algorithm.rows([scored(completion, values=(1.0,))]).rows[0]
        for completion in (episode((4, 5), (9, 9), (6,)), episode((4, 5, 6)))
    )
    values_T = (0.3, 0.1, 0.2)
    done = [algorithm.complete([replace(r, values_T=values_T)])[0] for r in (split, whole)]
    assert done[0].advantages_T == done[1].advantages_T
    assert len(done[0].advantages_T or ()) == 3


def test_dapo_keeps_a_group_that_differs_in_turns_alone() -> None:
    group = scored(
        episode((4,), (9,), (6,), turn_rewards=(1.0, 0.0)),
        episode((4,), (9,), (7,), turn_rewards=(0.0, 0.0)),
        values=(1.0, 1.0),
    )
    plain = algorithm_from({"name": "dapo"}).for_round(64)
    assert not plain.informative(group)
    assert plain.by_turn().informative(group)


def test_the_overlong_punishment_counts_what_was_sampled() -> None:
    """Four sampled tokens of four allowed are punished whatever was observed between them."""
    algorithm = algorithm_from({"name": "dapo", "overlong_buffer": 0.5, "scale": "none"}).for_round(
        4
    )
    group = scored(
        episode((4, 4), (9,) * 50, (5, 5)), episode((4, 5), (9,) * 70), values=(0.0, 0.0)
    )
    assert algorithm.advantages([group]) == [[-0.5, 0.5]]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_what_learns_from_no_advantages_of_tokens_refuses(name: str) -> None:
    if name in FITTING:
        assert learner(name).credits_turns
        return
    needed = {"distill": {"teacher": "base"}, "external": {"command": ["true"]}}
    algorithm = algorithm_from({"name": name, **needed.get(name, {})})
    with pytest.raises(ValueError, match=f"{name} has one for a whole answer, or none; use grpo"):
        algorithm.by_turn()
