"""The rubric's arithmetic, its three states, and that a misbehaving reward cannot hurt it."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import RewardPart
from rewards.call import PartFailure, read_value
from rewards.failures import FailureLog, RewardFailure
from rewards.rubric import Rubric, build_rubric
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt, RolloutGroup, Score
from tests.patience import patient


def group(prompt: Prompt, *texts: str | None) -> RolloutGroup:
    """A group whose completions are these texts; None is a failed rollout."""
    completions = tuple(
        Completion.failed("engine died")
        if text is None
        else Completion(
            token_ids=tuple(map(ord, text)),
            logprobs_T=(0.0,) * len(text),
            text=text,
            finish_reason="stop",
        )
        for text in texts
    )
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1,), completions_G=completions, policy="p", seed=0
    )


def asking(text: str, **columns: Any) -> Prompt:
    return Prompt(id=text, text=text, columns=columns)


def part(function: Callable[..., Any], weight: float = 1.0, **options: Any) -> RewardPart:
    return RewardPart(name=function.__name__, weight=weight, function=function, options=options)


def scores(rubric: Rubric, *groups: RolloutGroup) -> list[Score]:
    return [score for scored in rubric.score(groups) for score in scored.scores_G]


def size(completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def only_a(completions: list[str]) -> list[float | None]:
    """1 for texts with an 'a', otherwise no opinion."""
    return [1.0 if "a" in c else None for c in completions]


def test_value_is_the_weighted_sum_of_the_parts_that_scored() -> None:
    rubric = Rubric([part(size, 0.5), part(only_a, -3.0)])
    both, one = scores(rubric, group(asking("q"), "ab", "bbbb"))
    assert both.value == 0.5 * 2 - 3.0 * 1
    assert both.parts == {"size": 2.0, "only_a": 1.0}
    assert both.weights == {"size": 0.5, "only_a": -3.0}
    assert one.value == 0.5 * 4
    assert one.parts == {"size": 4.0, "only_a": None}
    assert (both.status, one.status) == ("scored", "scored")


def test_all_abstained_is_abstained() -> None:
    (score,) = scores(Rubric([part(only_a)]), group(asking("q"), "b"))
    assert (score.status, score.value, score.parts) == ("abstained", None, {"only_a": None})


def test_a_failed_rollout_is_failed_and_shown_to_no_reward() -> None:
    seen: list[list[str]] = []

    def spy(completions: list[str]) -> list[float]:
        seen.append(completions)
        return [1.0] * len(completions)

    rubric = Rubric([part(spy)])
    first, second, third = scores(rubric, group(asking("q"), "x", None), group(asking("r"), "y"))
    assert seen == [["x", "y"]]
    assert (first.value, second.value, third.value) == (1.0, None, 1.0)
    assert second.status == "failed" and second.detail == "no completion: engine died"
    assert rubric.failures == FailureLog(samples=2)


def test_only_failed_rollouts_call_nothing() -> None:
    def never(completions: list[str]) -> list[float]:
        raise AssertionError("called")

    rubric = Rubric([part(never)])
    assert [s.status for s in scores(rubric, group(asking("q"), None, None))] == ["failed"] * 2
    assert rubric.score([]) == []
    assert rubric.failures.failed_share == 0.0


def test_a_raise_fails_every_sample_and_keeps_the_first_traceback() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise ZeroDivisionError(f"seen {completions[0]}")

    rubric = Rubric([part(size), part(broken)])
    first, second = scores(rubric, group(asking("q"), "x", "y"))
    assert {first.status, second.status} == {"failed"}
    assert first.parts == {"size": 1.0, "broken": None}
    assert first.detail == "broken: ZeroDivisionError: seen x"
    scores(rubric, group(asking("q"), "z"))
    log = rubric.failures
    assert (log.samples, log.failed, log.counts) == (3, 3, {"broken": 3})
    assert "in broken" in log.first["broken"] and "seen x" in log.first["broken"]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (None, "returned NoneType, expected a list of 2"),
        (1.0, "returned float, expected a list of 2"),
        ("ab", "returned str, expected a list of 2"),
        ({"a": 1, "b": 2}, "returned dict, expected a list of 2"),
        ((x for x in (1.0, 2.0)), "returned generator, expected a list of 2"),
    ],
)
def test_a_wrong_shape_fails_every_sample(returned: Any, reason: str) -> None:
    def odd(completions: list[str]) -> Any:
        return returned

    got = scores(Rubric([part(odd)]), group(asking("q"), "x", "y"))
    assert [(s.status, s.detail) for s in got] == [("failed", f"odd: {reason}")] * 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (-math.inf, "returned -inf"),
        (10**400, "returned inf"),
        (np.float32("nan"), "returned nan"),
        ("1.0", "returned a str"),
        (1j, "returned a complex"),
        ([1.0], "returned a list"),
        (np.ones(1), "returned a ndarray"),
    ],
)
def test_a_value_that_is_no_finite_number_fails_that_sample_alone(value: Any, reason: str) -> None:
    def mixed(completions: list[str]) -> list[Any]:
        return [2.0, value]

    good, bad = scores(Rubric([part(mixed)]), group(asking("q"), "x", "y"))
    assert good.value == 2.0
    assert bad.status == "failed" and bad.detail is not None and reason in bad.detail


def test_bools_and_scalars_of_numpy_and_torch_are_numbers() -> None:
    import torch

    values = [
        True,
        3,
        np.float32(0.5),
        np.int64(2),
        np.bool_(True),
        np.array(4.0),
        torch.tensor(1.5),
    ]
    assert [read_value(v) for v in values] == [1.0, 3.0, 0.5, 2.0, 1.0, 4.0, 1.5]
    assert all(type(read_value(v)) is float for v in values)

    def tensor(completions: list[str]) -> Any:
        return torch.tensor([1.0, math.nan])

    first, second = scores(Rubric([part(tensor)]), group(asking("q"), "x", "y"))
    assert (first.value, second.status) == (1.0, "failed")


def test_a_sum_that_overflows_fails() -> None:
    def huge(completions: list[str]) -> list[float]:
        return [1e308]

    (score,) = scores(Rubric([part(huge, 10.0)]), group(asking("q"), "x"))
    assert score.status == "failed" and score.detail == "the weighted sum is inf"


def test_exits_fail_samples_but_errors_for_people_pass() -> None:
    def leaves(completions: list[str]) -> list[float]:
        sys.exit("bye")

    (score,) = scores(Rubric([part(leaves)]), group(asking("q"), "x"))
    assert score.detail == "leaves: SystemExit: bye"

    def asks(completions: list[str]) -> list[float]:
        raise UserError("install it")

    with pytest.raises(UserError, match="install it"):
        scores(Rubric([part(asks)]), group(asking("q"), "x"))


def test_columns_are_given_by_name_one_value_per_completion() -> None:
    seen: list[dict[str, Any]] = []

    def named(completions: list[str], answer: list[str]) -> list[float]:
        seen.append({"answer": answer})
        return [0.0] * len(completions)

    def everything(**columns: Any) -> list[float]:
        seen.append(columns)
        return [0.0] * len(columns["completions"])

    rubric = Rubric([part(named), part(everything, extra=7)])
    groups = [
        group(asking("q", answer="1", level=2), "x", "y"),
        group(asking("r", answer="3"), "z"),
    ]
    assert all(s.status == "scored" for s in scores(rubric, *groups))
    assert seen[0] == {"answer": ["1", "1", "3"]}
    every = seen[1]
    assert every["prompts"] == ["q", "q", "r"] and every["completions"] == ["x", "y", "z"]
    assert every["completion_ids"] == [[120], [121], [122]]
    assert every["answer"] == ["1", "1", "3"] and every["level"] == [2, 2, None]
    assert every["extra"] == 7
    assert {"trainer_state", "log_extra", "log_metric"} <= every.keys()


def test_a_prompt_without_a_needed_column_fails_alone() -> None:
    def graded(completions: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    rubric = Rubric([part(graded)])
    first, second = scores(rubric, group(asking("q", answer="x"), "x"), group(asking("r"), "x"))
    assert first.value == 1.0
    assert second.detail == "graded: the prompt has no column 'answer'"
    (third,) = scores(rubric, group(asking("r"), "x"))
    assert third.status == "failed"
    with pytest.raises(UserError, match="needs the column 'answer'") as caught:
        rubric.check_columns([asking("q", answer="x"), asking("r", anser="x")], "rounds.0.prompts")
    assert "did you mean 'anser'?" in str(caught.value)
    rubric.check_columns([asking("q", answer="x")])


def test_a_column_cannot_hide_what_the_rubric_fills_in() -> None:
    def spy(completions: list[str], trainer_state: Any) -> list[float]:
        assert (completions, trainer_state) == (["x"], "state")
        return [1.0]

    rubric = Rubric([part(spy)])
    hidden = asking("q", completions="boo", trainer_state="boo")
    (scored,) = rubric.score([group(hidden, "x")], trainer_state="state")
    assert scored.scores_G[0].value == 1.0


def test_chat_prompts_come_as_messages_that_a_reward_cannot_change() -> None:
    prompt = Prompt(id="c", messages=({"role": "user", "content": "hi"},))

    def vandal(prompts: list[Any], completions: list[Any]) -> list[float]:
        assert completions == [[{"role": "assistant", "content": "yo"}]]
        assert prompts == [[{"role": "user", "content": "hi"}]]
        prompts[0][0]["content"] = "changed"
        return [1.0]

    (score,) = scores(Rubric([part(vandal)]), group(prompt, "yo"))
    assert score.value == 1.0
    assert prompt.messages == ({"role": "user", "content": "hi"},)


def test_async_parts_run_concurrently_in_one_loop_that_lives_on() -> None:
    loops = set()
    arrived: list[str] = []

    async def meet(name: str, n: int) -> list[float]:
        loops.add(id(asyncio.get_running_loop()))
        arrived.append(name)
        async with asyncio.timeout(patient(5)):
            while len(arrived) < 2:
                await asyncio.sleep(0)
        return [1.0] * n

    async def left(completions: list[str]) -> list[float]:
        return await meet("left", len(completions))

    async def right(completions: list[str]) -> list[float]:
        return await meet("right", len(completions))

    rubric = Rubric([part(left), part(size), part(right, 2.0)])
    (score,) = scores(rubric, group(asking("q"), "xyz"))
    assert score.value == 1 + 3 + 2
    assert list(score.parts) == ["left", "size", "right"]
    scores(rubric, group(asking("q"), "x"))
    assert len(loops) == 1


def test_async_failures_are_failures() -> None:
    async def cancelled(completions: list[str]) -> list[float]:
        raise asyncio.CancelledError("inner timeout")

    async def broken(completions: list[str]) -> list[float]:
        raise ValueError("no server")

    async def fine(completions: list[str]) -> list[float]:
        return [1.0]

    (score,) = scores(Rubric([part(cancelled), part(broken), part(fine)]), group(asking("q"), "x"))
    assert score.parts == {"cancelled": None, "broken": None, "fine": 1.0}
    assert score.detail is not None and "no server" in score.detail and "timeout" in score.detail


def test_scoring_inside_a_running_loop_and_the_end_of_the_thread() -> None:
    async def fine(completions: list[str]) -> list[float]:
        return [1.0]

    async def notebook() -> list[Score]:
        return scores(Rubric([part(fine)]), group(asking("q"), "x"))

    assert asyncio.run(notebook())[0].value == 1.0
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "keel-rewards" and t.is_alive()]


def test_metrics_and_extras_of_the_last_call() -> None:
    def chatty(completions: list[str], log_metric: Any, log_extra: Any) -> list[float]:
        for completion in completions:
            log_metric("size", np.float32(len(completion)))
        log_extra("upper", [c.upper() for c in completions])
        return [1.0] * len(completions)

    rubric = Rubric([part(chatty)])
    scores(rubric, group(asking("q"), "a", "abc"))
    assert rubric.metrics == {"chatty/size": 2.0}
    assert rubric.extras == {"chatty/upper": ["A", "ABC"]}
    scores(rubric, group(asking("q"), "abcd"))
    assert rubric.metrics == {"chatty/size": 4.0}
    scores(rubric, group(asking("q"), None))
    assert (rubric.metrics, rubric.extras) == ({}, {})


def test_a_function_of_trl_works_unchanged() -> None:
    from trl.rewards import get_repetition_penalty_reward, think_format_reward

    prompt = Prompt(
        id="c", messages=({"role": "user", "content": "hi"},), columns={"solution": "4"}
    )
    penalty = get_repetition_penalty_reward(ngram_size=1, max_penalty=-1.0)
    rubric = Rubric([part(think_format_reward), part(penalty)])
    good, bad = scores(rubric, group(prompt, "<think>\na\n</think>\nb", "a a a a"))
    assert good.parts["think_format_reward"] == 1.0
    assert bad.parts["think_format_reward"] == 0.0
    assert list(bad.parts.values())[1] == pytest.approx(-5 / 7)  # two different tokens of seven


ROWS = st.lists(st.lists(st.sampled_from(["", "a", "ab", "bbb", None]), max_size=3), max_size=5)


@given(rows=ROWS, data=st.data())
def test_the_order_of_groups_changes_no_score(rows: list[list[str | None]], data: Any) -> None:
    def picky(completions: list[str], answer: list[str]) -> list[Any]:
        values = zip(completions, answer, strict=True)
        return [math.nan if c == "bbb" else float(c == a) for c, a in values]

    groups = [group(asking(f"q{i}", answer="ab"), *row) for i, row in enumerate(rows)]
    order = data.draw(st.permutations(range(len(groups))))
    parts: Sequence[RewardPart] = [part(picky), part(only_a, 0.5)]
    straight = Rubric(parts).score(groups)
    shuffled = Rubric(parts).score([groups[i] for i in order])
    assert [straight[i] for i in order] == shuffled


def spec(name: str, **fields: Any) -> Any:
    return SimpleNamespace(**{"name": name, "weight": 1.0, "part": None, "options": {}, **fields})


def test_build_rubric_names_weighs_and_checks_the_parts() -> None:
    rubric = build_rubric(
        [spec("dialogue", weight=2, options={"cap": 4}), spec("dialogue", part="talk")]
    )
    (score,) = scores(rubric, group(asking("q"), '""'))
    assert score.parts == {"dialogue": 0.5, "talk": 1.0}
    assert score.value == 2 * 0.5 + 1.0
    with pytest.raises(UserError, match="two parts are named 'length'") as caught:
        build_rubric([spec("length"), spec("length")], "rounds.0.rewards")
    assert caught.value.where == "rounds.0.rewards.1"
    with pytest.raises(UserError, match="not a finite number"):
        build_rubric([spec("length", weight=math.nan)])
    with pytest.raises(ValueError, match="at least one part"):
        Rubric([])


def test_the_budget_counts_samples_and_names_the_worst_reward() -> None:
    log = FailureLog()
    bad = PartFailure(reason="no", trace="Traceback:\n" + "\n".join(f"line {i}" for i in range(20)))
    log.record({"a": [1.0, bad, 1.0, 1.0], "b": [bad, bad, None, 0.0]})
    assert (log.samples, log.failed, log.counts) == (4, 2, {"a": 1, "b": 2})
    assert log.failed_share == 0.5
    log.check_budget(0.5)
    log.check_budget(0.05, planned=40)
    with pytest.raises(RewardFailure) as caught:
        log.check_budget(0.05, planned=39)
    with pytest.raises(RewardFailure) as caught:
        log.check_budget(0.05)
    message = str(caught.value)
    assert "reward 'b' failed on 2 of 4 samples; 50.0% could not be scored" in message
    assert "line 19" in message and "line 14" in message and "line 13" not in message
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (errors travel through Ray)
    assert isinstance(again, RewardFailure) and str(again) == message
    FailureLog().check_budget(0.0)
