"""Suites over environments: success, turns and calls as metrics, and what stands beside the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from align.config.rewards import RewardConfig
from align.gate.suites.kinds.acting import SuiteActing, check_rewards
from align.gate.suites.kinds.answers import AnswerSuite
from rewards.rubric import build_rubric
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import UserError
from rollouts.types import Prompt, Sampling
from tests.unit.acting import LocalEnvironments, call, encoder, ids, text

END = "<|im_end|>"
PROMPTS = tuple(
    Prompt(id=name, messages=({"role": "user", "content": f"{name}?"},)) for name in ("2+3", "4+4")
)


def engine() -> ScriptedEngine:
    """A policy that adds 2 and 3 whatever it is asked, and then says that it is done."""

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        acted = "tool_response" in text(prompt_ids)
        tokens = ids("Done." + END if acted else call("add", a=2, b=3) + END)
        return tokens, [-1.0] * len(tokens)

    return ScriptedEngine(script, eos_ids=encoder().eos_ids)


def measured(metric: str, **options: Any) -> Any:
    reward = RewardConfig(name=metric, options=options)
    environments: Any = LocalEnvironments(
        {"add": lambda a, b: a + b},
        # The key of an episode holds the id of its prompt.
        reward=lambda key: float("2+3" in key),
    )
    suite = AnswerSuite(
        name="sums", role="gate", margin=0.1, budget=0.2, prompts=PROMPTS, metric=(reward,),
        rubric=build_rubric([reward.absolute]), sampling=Sampling(max_tokens=99, temperature=0.0),
        acting=SuiteActing(environments=environments, content={"tools": ["t.py:add"]}),
    )  # fmt: skip
    return suite.measure(engine(), encoder(), "f00", 0)


@pytest.mark.parametrize(
    ("metric", "values"),
    [("environment", (1.0, 0.0)), ("success", (1.0, 0.0)), ("turns", (2.0, 2.0)),
     ("calls", (1.0, 1.0)), ("failed_calls", (0.0, 0.0))],
)  # fmt: skip
def test_every_metric_of_an_episode_can_be_a_suites(metric: str, values: tuple[float, ...]) -> None:
    results = measured(metric)
    assert results.values == values
    assert set(results.statuses) == {"scored"}
    assert results.beside == {"success": 0.5, "turns": 2.0, "calls": 1.0, "failed calls": 0.0}
    # Only what was sampled is counted, and the whole episode can be read.
    assert results.tokens == 2 * len(ids(call("add", a=2, b=3) + END + "Done." + END))
    assert results.answers[0] == "turn 1\n  calls add(a=2, b=3)\n  add returned: 5\nturn 2\n  Done."


@pytest.mark.parametrize("is_placed", [True, False])
def test_a_suite_gives_its_room_on_nodes_back_after_each_measurement(is_placed: bool) -> None:
    ended: list[int] = []

    class Room(LocalEnvironments):
        def shutdown(self) -> None:
            ended.append(len(self.ended))

    room: Any = Room({"add": lambda a, b: a + b}, reward=lambda key: 1.0)
    reward = RewardConfig(name="environment")
    suite = AnswerSuite(
        name="sums", role="gate", margin=0.1, budget=0.2, prompts=PROMPTS, metric=(reward,),
        rubric=build_rubric([reward.absolute]), sampling=Sampling(max_tokens=99, temperature=0.0),
        acting=SuiteActing(environments=room, content={}, is_placed=is_placed),
    )  # fmt: skip
    for snapshot in ("f00", "f01"):
        assert suite.measure(engine(), encoder(), snapshot, 0).values == (1.0, 1.0)
    assert ended == ([2, 4] if is_placed else [])


@pytest.mark.parametrize(
    ("options", "at", "says"),
    [
        ({"at_least": "x"}, ".at_least", "expected a number, got 'x'"),
        ({"at_least": True}, ".at_least", "expected a number, got True"),
        ({"at_least": float("nan")}, ".at_least", "expected a number, got nan"),
        ({"attribute": 3}, ".attribute", "expected the name of a public attribute, got 3"),
        ({"attribute": "is done"}, ".attribute", "expected the name of a public attribute"),
        ({"attribute": "done", "at_least": 1}, "", "which is read instead of the reward"),
    ],
)
def test_options_of_success_that_no_episode_can_be_measured_with(
    options: dict[str, Any], at: str, says: str
) -> None:
    metric = {"suites.0.metric": RewardConfig(name="success", options=options)}
    with pytest.raises(UserError, match=says) as caught:
        check_rewards({}, metric)
    assert caught.value.where == f"suites.0.metric.options{at}"
