"""One budget per step, shares exact over a round, and every step known from its number."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.campaign import ReplayConfig, SamplingConfig
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.dealing import ROUNDS_PER_STEP, whole
from rollouts.prompts import PromptStream
from rollouts.types import Prompt


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(id=f"{name}/{i}", text=f"{name} {i}") for i in range(count)]


def mixture(*, past: float = 0.05, general: float = 0.05, singles: int = 1) -> Mixture:
    buffer = ReplayBuffer()
    for name in ("first", "second"):
        buffer.add(name, prompts(name, 100), owner=name * 3, cap=64, seed=0)
    return Mixture(
        new=PromptStream(prompts("new", 500), seed=1),
        past=buffer,
        general=PromptStream(prompts("general", 300), seed=2),
        stored=(),
        sampling=SamplingConfig(group_size=8, prompts_per_step=16),
        replay=ReplayConfig(past=past, general=general, samples_per_prompt=singles),
        seed=3,
    )


def test_whole_by_hand() -> None:
    assert [whole(6.4, step) for step in range(5)] == [6, 6, 7, 6, 7]
    assert sum(whole(0.1, step) for step in range(30)) == 3


@given(st.floats(0, 40), st.integers(1, 200))
def test_fractions_carry_over(rate: float, steps: int) -> None:
    assert abs(sum(whole(rate, step) for step in range(steps)) - rate * steps) < 1.001


@pytest.mark.parametrize("singles", [1, 8])
def test_budget_holds_over_a_round(singles: int) -> None:
    mixed = mixture(singles=singles)
    total = 0
    shares = {"new": 0, "past": 0, "general": 0}
    for step in range(40):
        draw = mixed.draw(step)
        total += sum(draw.group_sizes)
        for prompt, size in zip(draw.prompts, draw.group_sizes, strict=True):
            shares["past" if prompt.owner else prompt.text.split()[0]] += size  # type: ignore[union-attr]
    assert abs(total - 40 * 128) <= 8
    assert shares["past"] == pytest.approx(0.05 * 40 * 128, abs=8)
    assert shares["general"] == pytest.approx(0.05 * 40 * 128, abs=1)


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    straight, jumped = mixture(), mixture()
    drawn = [straight.draw(step) for step in range(8)]
    assert jumped.draw(7) == drawn[7]
    assert jumped.draw(2) == drawn[2]


def test_no_past_gives_its_share_to_new_prompts() -> None:
    mixed = mixture()
    alone = Mixture(
        new=mixed.new, past=ReplayBuffer(), general=None, stored=(), sampling=mixed.sampling,
        replay=mixed.replay, seed=0,
    )  # fmt: skip
    draw = alone.draw(0)
    assert draw.group_sizes == (8,) * 16


def test_past_prompts_are_balanced_over_rounds() -> None:
    mixed = mixture(past=0.25)
    rounds = [p.round for step in range(10) for p in mixed.draw(step).prompts if p.source == "past"]
    assert abs(rounds.count("first") - rounds.count("second")) <= 10


@pytest.mark.parametrize("rounds", [4, 5, 8, 9])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_many_rounds_take_turns(rounds: int, share: float) -> None:
    mixed = mixture()
    buffer = ReplayBuffer()
    for i in range(rounds):
        buffer.add(f"r{i}", prompts(f"r{i}", 100), owner=f"o{i}", cap=64, seed=0)
    many = replace(mixed, past=buffer, replay=ReplayConfig(past=share))
    drawn = [[p.round for p in many.draw(s).prompts if p.source == "past"] for s in range(180)]
    assert max(len(set(step)) for step in drawn) <= ROUNDS_PER_STEP
    counts = Counter(name for step in drawn for name in step)
    assert len(counts) == rounds
    assert max(counts.values()) <= 1.1 * min(counts.values())


@pytest.mark.parametrize("rounds", [1, 3, 5])
@pytest.mark.parametrize("share", [0.05, 0.07])
def test_past_prompts_are_not_repeated_before_all_came_up(rounds: int, share: float) -> None:
    mixed, buffer = mixture(), ReplayBuffer()
    for i in range(rounds):
        buffer.add(f"r{i}", prompts(f"r{i}", 100), owner=f"o{i}", cap=32, seed=0)
    many = replace(mixed, past=buffer, replay=ReplayConfig(past=share))
    drawn = [p for s in range(60) for p in many.draw(s).prompts if p.source == "past"]
    for name in {p.round for p in drawn}:
        own = [p.id for p in drawn if p.round == name]
        assert len(set(own[:32])) == min(32, len(own))
