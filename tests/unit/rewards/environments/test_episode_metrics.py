"""Metrics of episodes: success, turns and calls, in this process and in a worker's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rewards.base import Sample, shown_completion, shown_environment
from rewards.call import PartFailure, read_values
from rewards.isolation.protocol import pack_sample, unpack_sample
from rewards.registry import facts_of, load_reward
from rewards.signatures.parameters import parameters
from rollouts.types import Completion, Prompt
from tests.unit.episodes import episode

ASKED = Prompt(id="p", messages=({"role": "user", "content": "?"},))
SOLVED = episode((4,), (9,), (5,), calls=3, failed_calls=1, reward=1.0, state={"open": True})
HALF = episode((4,), reward=0.5, state={"open": False})
SILENT = episode((4,), calls=1)
PLAIN = Completion(token_ids=(4,), logprobs_T=(0.0,), text="x", finish_reason="stop")


def values(name: str, *, packed: bool = False, **options: Any) -> list[float | None]:
    reward = load_reward(name, options)
    samples = [Sample(prompt=ASKED, completion=c) for c in (SOLVED, HALF, SILENT, PLAIN)]
    if packed:
        bodies = [pack_sample(sample, parameters(reward), ()) for sample in samples]
        samples = [unpack_sample(json.loads(body)) for body in bodies]  # type: ignore[arg-type]
    answered: list[float | None] = reward(
        completions=[shown_completion(sample) for sample in samples],
        environments=[shown_environment(sample) for sample in samples],
        **options,
    )
    return answered


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("success", {}, [1.0, 0.0, None, None]),
        ("success", {"at_least": 0.5}, [1.0, 1.0, None, None]),
        ("turns", {}, [2.0, 1.0, 1.0, None]),
        ("calls", {}, [3.0, 0.0, 1.0, None]),
        ("failed_calls", {}, [1.0, 0.0, 0.0, None]),
    ],
)
def test_values_by_hand(
    name: str, options: dict[str, Any], expected: list[float | None], packed: bool
) -> None:
    assert values(name, packed=packed, **options) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_an_attribute_that_an_episode_ends_without_is_a_failure(packed: bool) -> None:
    outcomes = read_values(values("success", packed=packed, attribute="opne"), 4)
    assert [isinstance(each, PartFailure) for each in outcomes] == [True, True, True, False]
    assert isinstance(outcomes[0], PartFailure) and "it had: open" in outcomes[0].reason
    undecided = episode((4,), state={"open": None})
    reward = load_reward("success", {"attribute": "open"})
    ended = [shown_environment(Sample(prompt=ASKED, completion=undecided))]
    assert reward(completions=["x"], environments=ended, attribute="open") == [None]


def test_success_has_a_range_and_counts_have_none() -> None:
    facts = {name: facts_of(name) for name in ("success", "turns", "calls", "failed_calls")}
    assert {name: fact.range for name, fact in facts.items() if fact} == {
        "success": (0.0, 1.0), "turns": None, "calls": None, "failed_calls": None,
    }  # fmt: skip
