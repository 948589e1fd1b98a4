"""One-sample functions and classes with set-up become rewards that a rubric can call."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from rewards.base import RewardPart, Sample
from rewards.call import PartFailure, call_part, is_async
from rewards.registry import load_reward
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt

MINE = '''
made = []

def one(prompt: str, completion: str, answer: str, scale: float = 1.0) -> float | None:
    """Says whether it is right."""
    if completion == "boom":
        raise ValueError("boom")
    return None if completion == "?" else scale * (completion == answer)

async def later(completion: str) -> float:
    return float(len(completion))

def turns(prompt: list, completion: list) -> float:
    return float(len(prompt) + len(completion))

def rest(completion: str, **columns) -> float:
    return columns["answer"] and float(columns["answer"])

def untyped(completion): return 1.0

class SetUp:
    """Loaded once."""
    def __init__(self, base: float, step: float = 1.0):
        made.append(base)
        self.base, self.step = base, step
    def __call__(self, completions, answer):
        self.base += self.step
        return [self.base for _ in completions]

class Later:
    async def __call__(self, completions):
        return [1.0 for _ in completions]

class Mute:
    pass

class Lost:
    def __call__(self, texts):
        return []
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A comment of its own makes each test's module a fresh one.
    Path("mine.py").write_text(f"# {tmp_path}\n{MINE}")


def test_a_one_sample_function_gets_its_own_cells() -> None:
    function = load_reward("mine.py:one", {"scale": 2.0})
    found = function(
        prompts=["p"] * 3, completions=["a", "b", "?"], answer=["a", "a", "a"], scale=2.0
    )
    assert found == [2.0, 0.0, None]
    assert list(inspect.signature(function).parameters) == [
        "prompts",
        "completions",
        "answer",
        "scale",
    ]
    assert function.__doc__ == "Says whether it is right."


def sample(text: str) -> Sample:
    completion = Completion(
        text=text, token_ids=(1,), logprobs_T=(0.0,), finish_reason="stop", weight_versions=()
    )
    return Sample(prompt=Prompt(id="p", text="p", columns={"answer": "a"}), completion=completion)


def test_only_the_sample_that_raises_fails() -> None:
    function = load_reward("mine.py:one")
    part = RewardPart(name="one", weight=1.0, function=function)
    right, boom, abstained = call_part(part, [sample(text) for text in ("a", "boom", "?")], {})
    assert (right, abstained) == (1.0, None)
    assert isinstance(boom, PartFailure)


def test_text_is_asked_for_by_its_type() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "there"}]
    answer = [{"role": "assistant", "content": "a"}]
    function = load_reward("mine.py:one")
    assert function(prompts=[chat], completions=[answer], answer=["a"]) == [1.0]
    assert load_reward("mine.py:turns")(prompts=[chat], completions=[answer]) == [3.0]


def test_further_columns_and_async_functions() -> None:
    function = load_reward("mine.py:rest")
    assert function(completions=["x", "y"], answer=["3", ""], other=[1, 2]) == [3.0, ""]
    later = load_reward("mine.py:later")
    assert is_async(later)
    assert asyncio.run(later(completions=["ab", ""])) == [2.0, 0.0]


def test_an_untyped_singular_is_not_guessed_at() -> None:
    with pytest.raises(UserError, match="missing the argument 'completions'"):
        load_reward("mine.py:untyped")


def test_a_class_is_set_up_once_with_its_options() -> None:
    function = load_reward("mine.py:SetUp", {"base": 10.0, "step": 2.0})
    made = inspect.getmodule(function).made  # type: ignore[union-attr]
    assert made == [], "not before the first batch"
    assert function(completions=["a", "b"], answer=["", ""]) == [12.0, 12.0]
    assert function(completions=["a"], answer=[""]) == [14.0]
    assert made == [10.0]
    assert list(inspect.signature(function).parameters) == ["completions", "answer"]


def test_an_async_call_of_a_class_is_async() -> None:
    function = load_reward("mine.py:Later")
    assert is_async(function)
    assert asyncio.run(function(completions=["a"])) == [1.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SetUp", {}, "needs the option 'base'"),
        ("SetUp", {"base": 1, "stp": 2}, "did you mean 'step'"),
        ("Mute", {}, "its instances cannot be called"),
        ("Lost", {}, "missing the argument 'completions'"),
        ("Later", {"a": 1}, "takes no options"),
        ("one", {"scal": 1}, "did you mean 'scale'"),
    ],
)
def test_what_cannot_work_is_found_at_load(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_reward(f"mine.py:{name}", options, "rewards.0")
    assert message in str(caught.value)
