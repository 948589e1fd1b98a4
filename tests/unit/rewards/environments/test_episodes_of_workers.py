"""Whole episodes: a scripted engine acts in environments in worker processes, and rewards read the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewards.environments.environments import WorkerEnvironments
from rewards.environments.plan import EnvironmentsPlan
from rewards.rubric import build_rubric
from rollouts.collect import collect
from rollouts.engines.scripted import ScriptedEngine
from rollouts.types import Prompt, Sampling
from tests.unit.acting import call, encoder, ids, text
from tests.unit.described import WORLDS, describe_here
from tests.unit.rewards.environments.test_environment_rewards import Spec

END = "<|im_end|>"


def engine_of(*turns: str) -> ScriptedEngine:
    """Make an engine that says these turns one after the other, the last of them for ever."""

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        num_said = text(prompt_ids).count("<|im_start|>assistant") - 1
        tokens = ids(turns[min(num_said, len(turns) - 1)])
        return tokens, [-0.5] * len(tokens)

    return ScriptedEngine(script, eos_ids=encoder().eos_ids)


def test_episodes_and_their_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EnvironmentsPlan(
        tools=(f"{WORLDS}:wait",), environments={"": f"{WORLDS}:Counter"}, where="rounds.0"
    )
    describe_here(monkeypatch, plan)
    prompts = [
        Prompt(
            id=str(start), messages=({"role": "user", "content": "Go."},), columns={"start": start}
        )
        for start in (1, 2)
    ]
    turns = (call("increment", by=3), call("wait", seconds=0.01), "Done.")
    with WorkerEnvironments(plan) as environments:
        groups = collect(
            engine_of(*(turn + END for turn in turns)),
            prompts,
            [2, 2],
            encoder(),
            Sampling(max_tokens=200),
            7,
            "v1",
            environments=environments,
        )
        crashed = collect(
            engine_of(call("crash") + END),
            prompts[:1],
            [1],
            encoder(),
            Sampling(max_tokens=200),
            8,
            "v1",
            environments=environments,
        )
    assert "Count from 2." in text(groups[1].prompt_ids)
    episodes = [completion.episode for completion in groups[1].completions_G]
    assert [episode and episode.state["count"] for episode in episodes] == [5, 5]
    episode = episodes[0]
    assert episode is not None
    assert [message["content"] for message in episode.messages if message["role"] == "tool"] == [
        "5", "waited 0.01"
    ]  # fmt: skip
    assert (episode.turns, episode.calls, episode.failed_calls, episode.end) == (3, 2, 0, "answer")
    assert episode.turn_rewards[:2] == (0.5, 0.5)
    scored = build_rubric([Spec(name="environment")]).score(groups)
    values = [[score.value for score in group.scores_G] for group in scored]
    assert values == [[4.0, 4.0], [5.0, 5.0]]
    (lost,) = crashed[0].completions_G
    assert lost.finish_reason == "failed" and "ended" in (lost.detail or "")
