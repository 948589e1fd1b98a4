"""Earlier rounds that a round looks at: bounded, reproducible, fair, and always with the newest."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.schedule import RememberConfig
from align.store.lookback import Lookback, Template, first_names, look_back

ALL = Template(name="kept", remember=None)


def template(newest: int = 7, older: int = 3, name: str = "nightly") -> Template:
    return Template(name=name, remember=RememberConfig(newest=newest, older=older))


def nights(count: int, of: Template) -> dict[str, Template]:
    return {f"{of.name}-{number}": of for number in range(1, count + 1)}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[str], dict[str, Template]]:
    """Plain rounds among those of two templates, in any order, and the template of each of those."""
    small = st.integers(0, 12)
    one = template(draw(st.integers(1, 5)), draw(small), "one")
    two = draw(st.sampled_from([ALL, template(draw(st.integers(1, 5)), draw(small), "two")]))
    of = nights(draw(st.integers(0, 30)), one) | nights(draw(st.integers(0, 30)), two)
    plain = [f"plain{number}" for number in range(draw(st.integers(0, 4)))]
    return draw(st.permutations([*of, *plain])), of


@given(histories(), st.text(max_size=5))
def test_the_rounds_are_divided_and_keep_their_order(
    history: tuple[list[str], dict[str, Template]], draw: str
) -> None:
    earlier, of = history
    found = look_back(earlier, of, draw)
    kept, left_out = set(found.kept), set(found.left_out)
    assert kept | left_out == set(earlier)
    assert not kept & left_out
    assert [name for name in earlier if name in kept] == list(found.kept)
    assert [name for name in earlier if name in left_out] == list(found.left_out)
    assert look_back(earlier, of, draw) == found


@given(histories(), st.text(max_size=5))
def test_plain_rounds_and_the_newest_stay_and_the_rest_is_bounded(
    history: tuple[list[str], dict[str, Template]], draw: str
) -> None:
    earlier, of = history
    found = look_back(earlier, of, draw)
    assert {name for name in earlier if name not in of} <= set(found.kept)
    for one in set(of.values()):
        mine = [name for name in earlier if of.get(name) == one]
        kept = [name for name in found.kept if of.get(name) == one]
        if one.remember is None:
            assert kept == mine
        else:
            assert kept[-one.remember.newest :] == mine[-one.remember.newest :]
            assert len(kept) == min(len(mine), one.remember.newest + one.remember.older)


@given(st.integers(8, 60), st.text(max_size=5))
def test_one_more_round_brings_no_other_back(count: int, draw: str) -> None:
    """Data that a run loaded before a round was accepted is enough for the rounds after it."""
    of = nights(count + 1, template())
    before, after = (look_back(list(of)[:n], of, draw) for n in (count, count + 1))
    assert set(after.kept) <= {*before.kept, f"nightly-{count + 1}"}


def test_every_older_round_has_the_same_chance() -> None:
    of, draws = nights(40, template(newest=10, older=3)), 4000
    came = Counter(n for i in range(draws) for n in look_back(list(of), of, f"0/gate/r{i}").kept)
    older = [came[f"nightly-{number}"] for number in range(1, 31)]
    assert all(came[f"nightly-{number}"] == draws for number in range(31, 41))
    assert sum(older) == 3 * draws
    expected = draws * 3 / 30
    # Chi-squared with 29 degrees of freedom; the draws without replacement make it smaller still.
    assert sum((count - expected) ** 2 / expected for count in older) < 58.3  # 0.1%


def test_gate_and_replay_draw_apart() -> None:
    of, draws = nights(40, template(newest=10, older=6)), 1000
    both = sum(
        "nightly-5" in look_back(list(of), of, f"0/gate/r{i}").kept
        and "nightly-5" in look_back(list(of), of, f"0/replay/r{i}").kept
        for i in range(draws)
    )
    # One in five for each: one in 25 for both.
    assert 20 < both < 62


@pytest.mark.parametrize("seed", [0, 1])
def test_three_hundred_nights_cost_no_more_than_the_first_ten(seed: int) -> None:
    """Two plain rounds, then nights of which one in five is rejected."""
    of, accepted, chance = nights(300, template()), ["first", "second"], Random(seed)
    looked_at: Counter[str] = Counter()
    sizes = []
    for name in of:
        gate, replay = (
            look_back(accepted, of, f"{seed}/{purpose}/{name}") for purpose in ("gate", "replay")
        )
        sizes.append((len(gate.kept), len(replay.kept)))
        looked_at.update(gate.kept)
        if chance.random() < 0.8:
            accepted.append(name)
    assert max(sizes) == (12, 12)
    assert sizes[-1] == (12, 12)
    assert looked_at["first"] == looked_at["second"] == 300
    # The first hundred were looked at long after they were new, bar one or two by chance.
    forgotten = [name for name in accepted[2:100] if looked_at[name] <= 7]
    assert len(forgotten) < 10
    unbounded = look_back(accepted, dict.fromkeys(of, ALL), "0")
    assert len(unbounded.kept) > 230


def test_what_is_left_out_is_counted_and_named() -> None:
    names = tuple(f"nightly-{number}" for number in range(1, 9))
    found = Lookback(kept=names[6:], left_out=names[:6])
    assert found.sentence == (
        "looks back on 2 of 8 earlier rounds, not on nightly-1, nightly-2, nightly-3, nightly-4, "
        "nightly-5 and 1 more"
    )
    assert first_names(["a", "b"]) == "a, b"
    assert "on the newest 7 and on 3 of the older" in template().sentence
    assert "look back on all" in ALL.sentence
