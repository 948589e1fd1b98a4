"""Replayed prompts: which are kept, which are drawn, and that they come back unchanged."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.replay.buffer import ReplayBuffer
from align.errors import StoreError, UserError
from rollouts.types import Prompt
from tests.unit.ledgers import RAM


def prompts(name: str, n: int) -> list[Prompt]:
    return [Prompt(id=f"{name}/{i}", text=f"{name} {i}", columns={"answer": i}) for i in range(n)]


def buffer(**sizes: int) -> ReplayBuffer:
    built = ReplayBuffer()
    for name, n in sizes.items():
        built.add(name, prompts(name, n), owner=f"owner-of-{name}", cap=1000, seed=0)
    return built


def test_an_added_prompt_is_marked_with_source_owner_and_round() -> None:
    built = ReplayBuffer()
    built.add(
        "reverse", [Prompt(id="a", text="x", columns={"answer": "y"})], "owner", cap=5, seed=0
    )
    assert built.draw(1, seed=0, step=0) == [
        Prompt(
            id="a", text="x", columns={"answer": "y"}, source="past", owner="owner", round="reverse"
        )
    ]


def test_the_cap_keeps_distinct_prompts_in_their_order_and_depends_on_the_seed() -> None:
    kept: dict[int, list[str]] = {}
    for seed in (1, 2):
        built = ReplayBuffer()
        built.add("reverse", prompts("reverse", 50) * 2, "owner", cap=10, seed=seed)
        kept[seed] = [prompt.id for prompt in built.entries["reverse"]]
        assert len(set(kept[seed])) == 10 == len(built)
        assert kept[seed] == sorted(kept[seed], key=lambda id_: int(id_.split("/")[1]))
    assert kept[1] != kept[2]


def test_adding_a_round_again_replaces_it() -> None:
    built = buffer(reverse=5)
    built.add("reverse", prompts("other", 2), "owner", cap=5, seed=0)
    assert [prompt.id for prompt in built.entries["reverse"]] == ["other/0", "other/1"]


def test_a_draw_is_balanced_within_a_step() -> None:
    drawn = buffer(a=50, b=50, c=50).draw(9, seed=0, step=0)
    assert Counter(prompt.round for prompt in drawn) == {"a": 3, "b": 3, "c": 3}


def test_odd_places_pass_from_round_to_round() -> None:
    built = buffer(a=50, b=50, c=50)
    counts = Counter(p.round for step in range(3) for p in built.draw(4, seed=0, step=step))
    assert counts == {"a": 4, "b": 4, "c": 4}
    alone = [built.draw(1, seed=0, step=step)[0].round for step in range(6)]
    assert alone == ["a", "b", "c", "a", "b", "c"]


def test_a_short_round_leaves_its_places_to_the_others() -> None:
    drawn = buffer(a=2, b=50).draw(10, seed=0, step=0)
    assert Counter(prompt.round for prompt in drawn) == {"a": 2, "b": 8}


def test_a_draw_may_be_limited_to_some_rounds() -> None:
    built = buffer(a=5, b=5, c=5)
    assert {prompt.round for prompt in built.draw(6, seed=0, step=1, rounds=["c", "a"])} == {
        "a",
        "c",
    }
    assert built.draw(3, seed=0, step=0, rounds=[]) == []
    with pytest.raises(ValueError, match=r"no round 'reverze'.*did you mean 'reverse'"):
        buffer(reverse=1).draw(1, seed=0, step=0, rounds=["reverze"])


def test_a_prompt_of_two_rounds_belongs_to_the_first_in_turn() -> None:
    built = ReplayBuffer()
    built.add("a", prompts("all", 1), "owner-a", cap=9, seed=0)
    built.add("b", prompts("all", 2), "owner-b", cap=9, seed=0)
    for seed in range(8):
        owners = {prompt.id: prompt.owner for prompt in built.draw(2, seed=seed, step=0)}
        assert owners == {"all/0": "owner-a", "all/1": "owner-b"}


def test_an_empty_buffer_draws_nothing() -> None:
    assert ReplayBuffer({}).draw(4, seed=0, step=0) == []


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    shared=st.integers(0, 4),
    n=st.integers(0, 40),
    seed=st.integers(0, 99),
    step=st.integers(0, 99),
)
def test_a_draw_is_distinct_complete_and_repeatable(
    sizes: list[int], shared: int, n: int, seed: int, step: int
) -> None:
    built = ReplayBuffer()
    for index, size in enumerate(sizes):
        built.add(f"r{index}", prompts(f"r{index}", size) + prompts("all", shared), "o", 100, 0)
    drawn = built.draw(n, seed, step)
    assert len({prompt.id for prompt in drawn}) == len(drawn) == min(n, sum(sizes) + shared)
    assert built.draw(n, seed, step) == drawn
    if shared == 0:
        counts = Counter(prompt.round for prompt in drawn)
        unfilled = [counts[f"r{i}"] for i, size in enumerate(sizes) if counts[f"r{i}"] < size]
        assert not unfilled or max(counts.values(), default=0) - min(unfilled) <= 1


def test_draws_change_with_the_step_and_with_the_seed() -> None:
    built = buffer(a=200)
    first = built.draw(8, seed=0, step=0)
    assert built.draw(8, seed=0, step=1) != first
    assert built.draw(8, seed=1, step=0) != first


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.dates(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(columns=st.dictionaries(st.text(), json_values), text=st.text(), as_messages=st.booleans())
def test_prompts_survive_the_round_trip(
    columns: dict[str, Any], text: str, as_messages: bool
) -> None:
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": ""})
    prompt = (
        Prompt(id="p", messages=turns, columns=columns)
        if as_messages
        else Prompt(id="p", text=text, columns=columns)
    )
    built = ReplayBuffer()
    built.add("empty", [], "owner", cap=1, seed=0)
    built.add("reverse", [prompt], "owner", cap=1, seed=0)
    with TemporaryDirectory(dir=RAM) as folder:
        path = Path(folder) / "buffer.jsonl"
        built.save(path)
        loaded = ReplayBuffer.load(path)
        assert os.listdir(folder) == ["buffer.jsonl"]
    assert loaded.entries == built.entries
    assert list(loaded.entries) == ["empty", "reverse"]
    assert loaded.draw(1, 3, 4) == built.draw(1, 3, 4)


@pytest.mark.parametrize("value", [{1, 2}, {1: "x"}, object(), 1j])
def test_a_column_that_cannot_be_kept_is_refused_by_name(value: object) -> None:
    prompt = Prompt(id="p7", text="x", columns={"fine": 1, "odd": [value]})
    with pytest.raises(UserError) as caught:
        ReplayBuffer().add("reverse", [prompt], "owner", cap=1, seed=0)
    assert caught.value.where == "prompt p7, column odd"


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replay.jsonl"
    buffer(a=2).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            buffer(a=9).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["replay.jsonl"]


@pytest.mark.parametrize("damaged", ['{"id": "a"}', "{", "[]", '{"round": "unknown"}'])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "replay.jsonl"
    buffer(a=2).save(path)
    lines = path.read_text().splitlines()
    lines[2] = damaged
    path.write_text("\n".join(lines))
    with pytest.raises(StoreError) as caught:
        ReplayBuffer.load(path)
    assert caught.value.where == f"{path}:3"


def test_a_newer_file_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    path.write_text('{"schema_version": 3}\n')
    with pytest.raises(StoreError, match="version 3 is newer than 2"):
        ReplayBuffer.load(path)


def test_a_file_of_version_1_stays_readable() -> None:
    loaded = ReplayBuffer.load(Path(__file__).parents[2] / "data" / "replay-v1.jsonl")
    assert loaded.entries == {
        "reverse": (
            Prompt(
                id="r/1", text="rev", columns={"answer": "ver"},
                source="past", owner="ab", round="reverse",
            ),
        ),
        "tone": (
            Prompt(
                id="t/1", messages=({"role": "user", "content": "hello"},),
                source="past", owner="cd", round="tone",
            ),
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("size", "n"), [(256, 8), (256, 12), (7, 3), (10, 5), (5, 1)])
def test_every_prompt_comes_up_once_before_any_comes_up_again(size: int, n: int) -> None:
    """Two passes, whose steps need not end where a pass does; no step has a prompt twice."""
    built = buffer(a=size)
    steps = [built.draw(n, seed=3, step=step) for step in range(-(-2 * size // n))]
    assert all(len({p.id for p in drawn}) == n for drawn in steps)
    drawn = [prompt.id for prompts in steps for prompt in prompts]
    for start in (0, size):
        assert len(set(drawn[start : start + size])) == size
    if size > 5:
        assert drawn[:size] != drawn[size : 2 * size], "another order"


def test_rounds_share_a_step_and_each_goes_through_its_prompts() -> None:
    built = buffer(a=12, b=12)
    drawn = [p for step in range(8) for p in built.draw(3, seed=0, step=step)]
    assert Counter(p.round for p in drawn) == {"a": 12, "b": 12}
    assert len({p.id for p in drawn}) == 24


def test_steps_of_unequal_sizes_leave_nothing_out() -> None:
    built = buffer(a=30)
    sizes, first, drawn = [4, 5, 4, 5, 4, 5, 3], 0, []
    for step, n in enumerate(sizes):
        drawn += built.draw(n, seed=0, step=step, first=first)
        first += n
    assert len({p.id for p in drawn}) == 30 == len(drawn)
