"""Rewards that have to agree, and the preference between two answers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from rewards.base import RewardPart
from rewards.library import preference_model
from rewards.registry import load_reward
from rewards.signatures.signature import required_columns
from rollouts.errors import UserError

MINE = """
import asyncio
def up(completions): return [float(len(c)) for c in completions]
async def down(completions):
    await asyncio.sleep(0)
    return [None if c == "?" else -float(len(c)) for c in completions]
def column(completions, answer, scale=1.0): return [scale * a for a in answer]
def broken(completions): return [ValueError("no") for c in completions]
def nan(completions): return [float("nan") for c in completions]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def agree(
    completions: list[str], *of: Any, columns: dict[str, Any] | None = None, **options: Any
) -> Any:
    function = load_reward("agreement", {"of": list(of), **options})
    return asyncio.run(function(completions=completions, **(columns or {})))


def test_the_minimum_is_conservative_and_the_mean_is_not() -> None:
    assert agree(["ab", "?"], "mine.py:up", "mine.py:down", quorum=1) == [-2.0, 1.0]
    assert agree(["ab", "?"], "mine.py:up", "mine.py:down", how="mean") == [0.0, None]


def test_members_have_options_and_columns_of_their_own() -> None:
    member = {"name": "mine.py:column", "options": {"scale": 0.5}}
    assert agree(["abc"], "mine.py:up", member, columns={"answer": [4.0]}) == [2.0]
    function = load_reward("agreement", {"of": ["mine.py:up", member]})
    part = RewardPart(name="a", weight=1.0, function=function, options={})
    assert required_columns(part) == ("answer",)


def test_what_is_no_number_is_handed_on() -> None:
    (error,) = agree(["a"], "mine.py:up", "mine.py:broken")
    assert isinstance(error, ValueError)
    (nan,) = agree(["a"], "mine.py:up", "mine.py:nan")
    assert math.isnan(nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": ["exact_match"]}, "at least two"),
        ({"of": "exact_match"}, "at least two"),
        ({"of": ["exact_match", "exact_mach"]}, "unknown reward 'exact_mach'"),
        ({"of": ["exact_match", {"nam": "contains"}]}, "has a name and options"),
        ({"of": ["exact_match", "contains"], "how": "max"}, "how 'max' is not known"),
        ({"of": ["exact_match", "contains"], "quorum": 3}, "quorum 3 is more"),
    ],
)
def test_wrong_options_are_found_at_load(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward("agreement", options, "rewards.0")


def test_a_preference_is_the_sigmoid_of_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(prompts: list[str], completions: list[str], **options: Any) -> list[float]:
        assert prompts == ["p0", "p2"] * 2 and not options["normalise"]
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(preference_model, "reward_model", lengths)
    found = preference_model.preference_model(
        ["p0", "p1", "p2"], ["abc", "x", "a"], ["ab", None, "a" * 900], model="folder"
    )
    assert found == [pytest.approx(1 / (1 + math.exp(-1))), None, 0.0]


def test_a_preference_needs_a_model() -> None:
    with pytest.raises(UserError, match="needs a model"):
        load_reward("preference_model")
