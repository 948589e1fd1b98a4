"""Draws of replayed prompts: Algorithm R, weights by hand, nothing starved, and exact resumption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config.campaign import ReplayConfig, SamplingConfig
from align.config.replay.draws import DRAWS as SETTINGS
from align.config.replay.draws import draw_from
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.dealing import ROUNDS_PER_STEP
from align.data.replay.draws import DRAWS
from align.data.replay.draws.base import floored, heaviest
from align.data.replay.draws.mastery import successes
from align.data.replay.draws.reservoir import reservoir
from align.data.replay.history import PromptHistory, Sight
from align.errors import StoreError
from rollouts.prompts import PromptStream
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup

EVERY = sorted(DRAWS)


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(id=f"{name}/{i}", text=f"{name} {i}") for i in range(count)]


def buffer(**sizes: int) -> ReplayBuffer:
    built = ReplayBuffer()
    for name, size in sizes.items():
        built.add(name, prompts(name, size), owner=name * 3, cap=10_000, seed=0)
    return built


def scored(prompt: Prompt, *values: float | None) -> ScoredGroup:
    completion = Completion(token_ids=(1,), logprobs_T=(-1.0,), text="", finish_reason="stop")
    group = RolloutGroup(
        prompt=prompt,
        prompt_ids=(1,),
        completions_G=(completion,) * len(values),
        policy="p",
        seed=0,
    )
    scores = tuple(
        Score(value=value, status="abstained" if value is None else "scored") for value in values
    )
    return ScoredGroup(group=group, scores_G=scores)


def mixture(draw: Any, past: ReplayBuffer, *, stale: int = 0, rate: int = 4) -> Mixture:
    return Mixture(
        new=PromptStream(prompts("new", 50), seed=1),
        past=past,
        general=None,
        stored=(),
        sampling=SamplingConfig(group_size=4, prompts_per_step=4, max_staleness=stale),
        replay=ReplayConfig(past=rate / 16, general=0.0, draw=draw),
        seed=3,
    )


def replayed(mixed: Mixture, step: int) -> list[Prompt]:
    return [prompt for prompt in mixed.draw(step).prompts if prompt.source == "past"]


def test_draws_have_settings_of_the_same_name() -> None:
    assert DRAWS.keys() == SETTINGS.keys()
    assert all(SETTINGS[name].model_fields["name"].default == name for name in DRAWS)


def test_the_reservoir_is_vitters_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots; c (position 2) hits slot int(.5 * 3) = 1, d misses with int(.9 * 4) = 3, e hits slot 0."""
    numbers = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr("align.data.replay.draws.reservoir.uniform", lambda key: next(numbers))
    stream = [Prompt(id=name, text=name) for name in "abcde"]
    assert [prompt.id for prompt in reservoir(stream, 2)] == ["e", "c"]


def test_a_reservoir_is_even_over_prompts_and_not_over_rounds() -> None:
    """Each of 400 prompts is in with chance 1/8 over many streams, whatever its round and position."""
    counts: Counter[str] = Counter()
    for trial in range(60):
        stream = [
            Prompt(id=f"{trial}/{name}/{i}", text="x", round=name)
            for name, size in (("early", 300), ("late", 100))
            for i in range(size)
        ]
        counts.update(prompt.round or "" for prompt in reservoir(stream, 50))
    # 60 * 37.5 = 2250 expected of the early round, with a standard deviation of about 24.
    assert counts["early"] == pytest.approx(2250, abs=100)
    assert counts["early"] + counts["late"] == 60 * 50


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 60))
def test_a_later_round_moves_no_prompt_that_it_does_not_replace(
    size: int, early: int, late: int
) -> None:
    first = prompts("early", early)
    before, after = reservoir(first, size), reservoir([*first, *prompts("late", late)], size)
    assert len(after) == min(size, early + late)
    assert len({prompt.id for prompt in after}) == len(after)
    for slot, prompt in enumerate(before):
        assert after[slot] == prompt or after[slot].id.startswith("late")


def test_weights_by_hand() -> None:
    """The floor of 1/2 gives each of 2 prompts a quarter; the rest is shared by weight."""
    assert floored({"a": 3.0, "b": 1.0}, 0.5) == {"a": 0.625, "b": 0.375}
    assert floored({"a": 0.0, "b": 0.0}, 0.1) == {"a": 0.5, "b": 0.5}
    past = buffer(first=3)
    draw = DRAWS["mastery"](draw_from("mastery"), past, 0)
    seen = {"first/0": Sight(10, 1.0), "first/1": Sight(16, 0.25), "first/2": Sight(18, None)}
    weights = draw.weights(past.entries["first"], seen, 20)  # type: ignore[attr-defined]
    assert weights == {"first/0": 0.0, "first/1": 0.75 * 4, "first/2": 0.5 * 2}
    age = DRAWS["age"](draw_from("age"), past, 0)
    del seen["first/2"]
    weights = age.weights(past.entries["first"], seen, 20)  # type: ignore[attr-defined]
    assert weights == {"first/0": 10.0, "first/1": 4.0, "first/2": 21.0}


def test_scores_beyond_0_to_1_are_mapped_to_it() -> None:
    pool = prompts("first", 3)
    seen = {"first/0": Sight(0, -1.0), "first/1": Sight(0, 3.0)}
    assert successes(pool, seen) == {"first/0": 0.0, "first/1": 1.0, "first/2": 0.5}
    assert successes(pool, {"first/0": Sight(0, 0.2)})["first/0"] == 0.2


def test_names_are_drawn_in_proportion_to_their_weight() -> None:
    weights = {"a": 6.0, "b": 3.0, "c": 1.0, "never": 0.0}
    first = Counter(heaviest(f"{trial}", weights, 1)[0] for trial in range(4000))
    # Standard deviations are below 32.
    for name, expected in (("a", 2400), ("b", 1200), ("c", 400)):
        assert first[name] == pytest.approx(expected, abs=130)
    assert first["never"] == 0
    assert heaviest("k", weights, 9)[-1] == "never"


@pytest.mark.parametrize("draw", EVERY)
def test_the_shares_of_a_step_hold_under_every_draw(draw: str) -> None:
    mixed = mixture(draw, buffer(first=30, second=30), rate=3)
    for step in range(12):
        drawn = replayed(mixed, step)
        assert len({prompt.id for prompt in drawn}) == len(drawn) == 3
        assert all(prompt.owner == (prompt.round or "") * 3 for prompt in drawn)
    assert replayed(mixture(draw, ReplayBuffer()), 0) == []
    assert len(replayed(mixture(draw, buffer(first=2)), 0)) == 2


@pytest.mark.parametrize("draw", EVERY)
def test_a_step_has_few_rounds_under_every_draw(draw: str) -> None:
    mixed = mixture(draw, buffer(**{f"r{i}": 10 for i in range(9)}), rate=9)
    drawn = [[prompt.round for prompt in replayed(mixed, step)] for step in range(60)]
    assert max(len(set(rounds)) for rounds in drawn) <= ROUNDS_PER_STEP
    assert len({name for rounds in drawn for name in rounds}) == 9


@pytest.mark.parametrize("draw", [*EVERY, {"name": "mastery", "floor": 0.05}])
def test_no_prompt_is_starved(draw: Any) -> None:
    """All of round one is mastered, and still every prompt of it comes up."""
    past = buffer(first=12, second=12)
    mixed = mixture(draw, past)
    mixed.history.observe(0, [scored(p, 1.0) for p in past.entries["first"]])
    mixed.history.observe(0, [])
    counts: Counter[str] = Counter()
    for step in range(1, 500):
        drawn = replayed(mixed, step)
        counts.update(prompt.id for prompt in drawn)
        mixed.history.observe(step, [scored(p, float(p.round == "first")) for p in drawn])
    assert len(counts) == 24
    by_round = {name: sum(counts[p.id] for p in past.entries[name]) for name in past.entries}
    if mixed.replay.draw.name == "mastery":
        assert by_round["second"] > 3 * by_round["first"] > 0
    else:
        assert by_round["second"] == pytest.approx(by_round["first"], rel=0.15)


def test_age_sees_every_prompt_more_evenly_than_chance() -> None:
    past = buffer(first=40)
    spread = {}
    for draw in ("age", "reservoir"):
        mixed, counts = mixture({"name": draw}, past), Counter[str]()
        for step in range(200):
            drawn = replayed(mixed, step)
            counts.update(prompt.id for prompt in drawn)
            mixed.history.observe(step, [scored(p, None) for p in drawn])
        spread[draw] = max(counts.values()) - min(counts.values())
    assert spread["age"] < spread["reservoir"]


@pytest.mark.parametrize("draw", EVERY)
@pytest.mark.parametrize("stale", [0, 1])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), stop=st.integers(1, 7))
def test_a_resumed_round_draws_what_an_undisturbed_one_draws(
    draw: str, stale: int, seed: int, stop: int
) -> None:
    """A step ahead is asked before the one before it is answered, and again after a restart."""

    def answer(mixed: Mixture, step: int) -> None:
        luck = Random(f"{seed}/{step}")
        mixed.history.observe(step, [scored(p, luck.random()) for p in replayed(mixed, step)])

    past = buffer(first=20, second=20)
    straight, order = mixture(draw, past, stale=stale), []
    for step in range(8):
        if stale:
            order.append([p.id for p in replayed(straight, step + 1)])
        answer(straight, step)
    stopped = mixture(draw, past, stale=stale)
    stopped = replace(stopped, history=PromptHistory())
    for step in range(stop):
        answer(stopped, step)
    resumed = replace(stopped, history=PromptHistory())
    resumed.history.recall(stopped.history.counters())
    if stale:
        assert [p.id for p in replayed(resumed, stop)] == order[stop - 1]
    for step in range(stop, 8):
        answer(resumed, step)
    assert resumed.history.counters() == straight.history.counters()
    assert replayed(resumed, 3) == replayed(straight, 3)


def test_a_history_goes_on_in_the_next_round(tmp_path: Path) -> None:
    """Means with a weight of 1/2 by hand; steps count on; prompts that nobody replays are left out."""
    own = prompts("first", 3)
    history = PromptHistory()
    history.observe(0, [scored(own[0], 1.0, 0.0), scored(own[2], 1.0)])
    history.observe(4, [scored(own[0], 1.0, None), scored(replace(own[1], source="general"), 1.0)])
    history.save(tmp_path / "h.jsonl", 6, {"first/0", "first/1"})
    after = PromptHistory.load(tmp_path / "h.jsonl")
    assert (after.start, after.known) == (6, {"first/0": Sight(4, 0.75)})
    after.observe(1, [scored(own[0], None)])
    assert after.before(1)["first/0"] == Sight(4, 0.75)
    assert after.before(2)["first/0"] == Sight(7, 0.75)
    assert after.before(0)["first/0"] == Sight(4, 0.75)
    assert after.without({"first/0"}).known == {}


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', "[1]"])
def test_a_damaged_history_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    PromptHistory().save(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(StoreError, match=r"history\.jsonl"):
        PromptHistory.load(path)


def test_a_balanced_draw_is_no_key_of_a_stored_campaign() -> None:
    assert "draw" not in ReplayConfig().model_dump()
    chosen = ReplayConfig(draw="age")  # type: ignore[arg-type]
    assert chosen.model_dump()["draw"] == {"name": "age", "floor": 0.1}
    assert ReplayConfig.model_validate(chosen.model_dump()) == chosen


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ("mastry", "did you mean 'mastery'"),
        ({"floor": 0.1}, "no draw is named; add name"),
        ({"name": "age", "floor": 2}, "less than or equal to 1"),
        ({"name": "reservoir", "size": 0}, "greater than or equal to 1"),
        ({"name": "balanced", "floor": 0.1}, "floor"),
    ],
)
def test_a_draw_that_does_not_exist_is_refused(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayConfig(draw=draw)
