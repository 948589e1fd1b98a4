"""Rewards over episodes: the environment's own, and functions with TRL's parameter ``environments``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rewards.base import RewardPart, Sample, completion_text
from rewards.environments.state import LARGEST_STATE, EndedEnvironment, public_state
from rewards.registry import load_reward
from rewards.rubric import build_rubric
from rewards.signatures.signature import arguments
from rollouts.types import Completion, Episode, Prompt, RolloutGroup

MESSAGES = (
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "tool", "name": "f", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    name: str
    weight: float = 1.0
    part: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def acted(
    reward: float | None, messages: Sequence[dict[str, Any]] = MESSAGES, **state: Any
) -> Completion:
    episode = Episode(
        observed=(),
        messages=tuple(messages),
        turns=2,
        calls=1,
        failed_calls=0,
        end="answer",
        reward=reward,
        state=state,
        environment="Wordle",
    )
    return Completion(
        token_ids=(1,), logprobs_T=(0.0,), text="It is 42.", finish_reason="stop", episode=episode
    )


def group(*completions: Completion) -> RolloutGroup:
    prompt = Prompt(id="p", messages=({"role": "user", "content": "?"},), columns={"answer": "42"})
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1,), completions_G=completions, policy="p", seed=0
    )


PLAIN = Completion(token_ids=(1,), logprobs_T=(0.0,), text="42", finish_reason="stop")
FUNCTION = """
def solved(completions, environments, answer, **columns):
    names = [[message["role"] for message in completion] for completion in completions]
    assert names[0] == ["assistant", "tool", "assistant"], names
    return [None if e is None else float(e.count) + e.get_reward() for e in environments]
"""


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_functions_see_messages_and_environments(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "r.py").write_text(FUNCTION)

    @dataclass(frozen=True, kw_only=True)
    class Isolated(Spec):
        isolation: str = "inline"

    rubric = build_rubric([Isolated(name=f"{tmp_path}/r.py:solved", isolation=isolation)])
    try:
        (scored,) = rubric.score([group(acted(0.5, count=3), acted(1.0, count=1), PLAIN)])
    finally:
        rubric.close()
    assert [score.value for score in scored.scores_G] == [3.5, 2.0, None]


def test_the_environment_gives_the_reward() -> None:
    rubric = build_rubric([Spec(name="environment"), Spec(name="contains")])
    (scored,) = rubric.score([group(acted(0.5), acted(None), PLAIN)])
    assert [score.value for score in scored.scores_G] == [1.5, 1.0, 1.0]
    assert load_reward("environment")(completions=["x"], environments=[None]) == [None]


def test_functions_without_the_parameter_are_called_as_before() -> None:
    def reads_all(completions: Any, **columns: Any) -> list[float]:
        return [1.0]

    part = RewardPart(name="r", weight=1.0, function=reads_all)
    plain, acting = (
        Sample(prompt=group().prompt, completion=completion) for completion in (PLAIN, acted(1.0))
    )
    assert "environments" not in arguments(part, [plain], {})
    assert arguments(part, [acting], {})["environments"][0].get_reward() == 1.0


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (MESSAGES, "It is 42."),
        (MESSAGES[:2], ""),
        (({"role": "assistant", "content": None},), ""),
        (({"content": "bare"},), "bare"),
    ],
)
def test_an_answer_is_the_last_assistant_turn(
    messages: Sequence[dict[str, Any]], text: str
) -> None:
    assert completion_text(messages) == text


def test_the_public_state_is_what_json_holds() -> None:
    class World:
        __slots__ = ("board", "client", "huge")

        def __init__(self) -> None:
            self.board, self.client = [1, float("inf")], object()
            self.huge = "x" * (LARGEST_STATE + 1)

        @property
        def solved(self) -> bool:
            return True

    state = public_state(World())
    assert set(state) == {"board", "solved"}
    ended = EndedEnvironment("World", state, 0.5)
    assert ended.board == [1, float("inf")] and ended.solved is True and ended.get_reward() == 0.5
    with pytest.raises(
        AttributeError, match=r"no public attribute 'client'.*it had: board, solved"
    ):
        _ = ended.client
