"""Environments in real worker processes: a tool's mistake is a text, a dead object a failed sample."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from typing import cast

import pytest

from rewards.environments.children import Child, WorkerProcess
from rewards.environments.environments import DeadEnvironment, WorkerEnvironments
from rewards.environments.plan import EnvironmentLimits, EnvironmentsPlan
from rewards.isolation.process import Plan, Worker
from rewards.isolation.protocol import send_message
from rollouts.episodes.environment import Observation, Outcome, ToolCall
from rollouts.errors import RunError
from rollouts.types import Prompt
from tests.patience import patient
from tests.unit.described import WORLDS, describe_here

SHOWN = 60


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name, arguments)


def asks(**columns: object) -> Prompt:
    return Prompt(id="p", messages=({"role": "user", "content": "Go."},), columns=columns)


def opened(monkeypatch: pytest.MonkeyPatch, **settings: object) -> WorkerEnvironments:
    plan = EnvironmentsPlan(**settings)  # type: ignore[arg-type]
    describe_here(monkeypatch, plan)
    return WorkerEnvironments(plan)


@pytest.fixture(scope="module")
def counters() -> Iterator[WorkerEnvironments]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        environments = opened(
            monkeypatch,
            tools=tuple(f"{WORLDS}:{name}" for name in ("add", "wait", "python")),
            environments={"": f"{WORLDS}:Counter"},
            limits=EnvironmentLimits(observation_chars=SHOWN),
        )
        with environments:
            yield environments


def answer(future: Future[list[Observation]]) -> list[Observation]:
    return list(future.result(timeout=patient(60.0)))


def test_an_episode_of_sync_and_async_calls(counters: WorkerEnvironments) -> None:
    prompt = asks(start=3)
    names = [schema["function"]["name"] for schema in counters.schemas(prompt)]
    assert names == ["add", "wait", "python", "crash", "hang", "increment"]
    assert counters.open("a", prompt).result() == "Count from 3."
    calls = [call("wait", seconds=0.01), call("add", a=2, b=3), call("increment", by=4)]
    waited, five, seven = answer(counters.call("a", calls))
    assert (waited.text, five.text, seven.text) == ("waited 0.01", "5", "7")
    assert (five.reward, seven.reward, seven.done) == (None, 0.7, False)
    assert answer(counters.call("a", [call("increment", by=93)]))[0].done
    outcome = counters.close("a").result()
    assert outcome.reward == 100.0 and outcome.environment == "Counter"
    assert outcome.state == {"count": 100, "done": True, "double": 200}


@pytest.mark.parametrize(
    ("request_", "text", "kind"),
    [
        (call("python", code="1 / 0"), "{'error': 'division by zero'}", "raised"),
        (call("python", code="exit()"), "{'error': 'None'}", "raised"),
        (call("python", code="b'abc'"), "3 bytes that are no text", "unreadable"),
        (call("python", code="Silent()"), "a Silent, which is no text", "unreadable"),
        (call("python", code="(n for n in ())"), "a generator, which is no text", "unreadable"),
        (call("python", code="unspeakable()"), "{'error': 'Unspeakable'}", "raised"),
        (call("python", code="None"), "None", "answered"),
        (call("python", code="{'a': 1}"), "{'a': 1}", "answered"),
        (call("python", code="'\\x00\\ud800x'"), "\ufffd\ufffdx", "answered"),
        (call("python", code="'x' * 10**7"), "[cut: the first 60 of 10,000,000", "cut"),
        (call("python", code="add(1, 2, 3)"), "takes from 1 to 2 positional", "raised"),
        (call("add", b=2), "wrong arguments for 'add'", "arguments"),
        (call("add", a=1, c=2), "wrong arguments for 'add'", "arguments"),
        (call("reset"), "there is no tool 'reset'", "unknown"),
    ],
)
def test_what_a_call_brings_is_a_text(
    counters: WorkerEnvironments, request_: ToolCall, text: str, kind: str
) -> None:
    before = counters.counts[kind]
    counters.open(text, asks()).result()
    (observation,) = answer(counters.call(text, [request_]))
    assert text in observation.text and len(observation.text) < 3 * SHOWN
    assert observation.failed == (kind not in ("answered", "cut"))
    assert counters.counts[kind] == before + 1
    counters.close(text).result()


def test_a_call_that_hangs_is_ended_and_the_episode_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "tools": (f"{WORLDS}:wait", f"{WORLDS}:python"),
        "environments": {"": f"{WORLDS}:Counter"},
        "limits": EnvironmentLimits(call_s=patient(0.5)),
    }
    with opened(monkeypatch, **settings) as environments:
        environments.open("slow", asks(start=1)).result()
        # A sleep, a regular expression, a large number and a coroutine, in one turn.
        calls = [
            call("hang"),
            call("python", code="__import__('re').match('(a+)+b', 'a' * 40)"),
            call("python", code="9 ** 9 ** 9"),
            call("wait", seconds=1000),
            call("increment", by=1),
        ]
        *late, counted = answer(environments.call("slow", calls))
        assert all("no answer within" in observation.text for observation in late)
        assert all(observation.failed for observation in late) and counted.text == "2"
        assert environments.close("slow").result().reward == 2.0


def test_a_crash_fails_its_own_episode_alone(counters: WorkerEnvironments) -> None:
    for key in ("lost", "kept"):
        counters.open(key, asks(start=5)).result()
    with pytest.raises(DeadEnvironment, match="crashed it or ended it"):
        answer(counters.call("lost", [call("crash")]))
    with pytest.raises(DeadEnvironment, match="not open"):
        counters.close("lost").result()
    assert answer(counters.call("kept", [call("increment", by=1)]))[0].text == "6"
    counters.drop("kept")
    counters.drop("unknown")
    assert counters.open("kept", asks(start=7)).result() == "Count from 7."
    counters.close("kept").result()


def test_a_process_that_a_tool_forks_has_no_say(counters: WorkerEnvironments) -> None:
    counters.open("forked", asks(start=1)).result()
    fork = call("python", code="__import__('os').fork() or 1 / 0")
    (parents,) = answer(counters.call("forked", [fork]))
    assert parents.text.isdigit()
    assert answer(counters.call("forked", [call("increment", by=1)]))[0].text == "2"
    assert counters.close("forked").result().reward == 2.0


def test_objects_are_made_once_and_reset(counters: WorkerEnvironments) -> None:
    identities = []
    for key in ("first", "second"):
        counters.open(key, asks(start=1)).result()
        (observation,) = answer(
            counters.call(key, [call("python", code="(Counter.num_made, id(Counter))")])
        )
        identities.append(observation.text)
        assert counters.close(key).result().reward == 1.0
    assert identities[0] == identities[1]


def test_random_numbers_follow_from_the_episode(counters: WorkerEnvironments) -> None:
    def drawn(key: str) -> str:
        counters.open(key, asks()).result()
        (observation,) = answer(counters.call(key, [call("python", code="random.random()")]))
        counters.close(key).result()
        return observation.text

    first, second, again = drawn("1"), drawn("2"), drawn("1")
    assert first == again != second


def test_an_episode_that_is_given_up_ends_its_call(counters: WorkerEnvironments) -> None:
    counters.open("up", asks()).result()
    waiting = counters.call("up", [call("wait", seconds=1000)])
    counters.drop("up")
    with pytest.raises(DeadEnvironment):
        waiting.result(timeout=patient(5.0))
    assert counters.open("up", asks(start=1)).result() == "Count from 1."
    assert answer(counters.call("up", [call("increment", by=1)]))[0].text == "2"
    counters.close("up").result()


@pytest.mark.parametrize("ends", ["drop", "shutdown"])
def test_an_episode_that_is_given_up_while_a_worker_starts_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    made: list[Worker] = []

    def start(plan: Plan) -> Worker:
        made.append(Worker(plan))
        return made[0]

    monkeypatch.setattr("rewards.environments.children.Worker", start)
    environments = opened(monkeypatch, environments={"": f"{WORLDS}:Counter"})
    opening = environments.open("a", asks())
    if ends == "drop":
        environments.drop("a")
    else:
        environments.shutdown()
    with pytest.raises(RunError, match=r"before (it|an episode) began"):
        opening.result(timeout=patient(60.0))
    if ends == "drop":
        assert [worker.busy for worker in environments._workers] == [0]
        assert environments.open("a", asks(start=1)).result() == "Count from 1."
        environments.shutdown()
    (worker,) = made
    assert worker._keeper.poll() is not None


def test_calls_of_one_turn_share_the_time_of_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = EnvironmentLimits(call_s=patient(60.0), episode_s=patient(0.5))
    settings = {"tools": (f"{WORLDS}:add", f"{WORLDS}:python", f"{WORLDS}:wait"), "limits": limits}
    with opened(monkeypatch, **settings) as environments:
        environments.open("a", asks()).result()
        calls = [
            call("add", a=1),
            call("python", code="__import__('time').sleep(1000)"),
            call("python", code="__import__('time').sleep(1000)"),
            call("wait", seconds=1000),
        ]
        two, late, *rest = answer(environments.call("a", calls))
        assert two.text == "2" and "no answer within" in late.text and late.failed
        assert all("no time left" in each.text and each.seconds == 0.0 for each in rest)
        assert two.seconds + late.seconds >= limits.episode_s
        (none,) = answer(environments.call("a", [call("add", a=1)]))
        assert none.failed and "no time left" in none.text


def test_functions_without_an_object_outlive_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch, tools=(f"{WORLDS}:add", f"{WORLDS}:python")) as environments:
        assert environments.open("a", asks()).result() is None
        calls = [
            call("add", a=1),
            call("python", code="__import__('os')._exit(1)"),
            call("add", a=2),
        ]
        two, crashed, three = answer(environments.call("a", calls))
        assert (two.text, three.text, crashed.failed) == ("2", "3", True)
        assert environments.close("a").result().reward is None


def test_functions_without_an_object_have_a_process_from_their_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(monkeypatch, tools=(f"{WORLDS}:python",)) as environments:
        for key in "ab":
            assert environments.open(key, asks()).result() is None
        assert environments.close("a").result() == Outcome()
        assert not environments._workers
        drawn = [call("python", code="__import__('random').random()")]
        (first,) = answer(environments.call("b", drawn))
        (second,) = answer(environments.call("b", drawn))
        environments.close("b").result()
        assert [worker.busy for worker in environments._workers] == [0]
        environments.open("b", asks()).result()
        assert answer(environments.call("b", drawn))[0].text == first.text != second.text


def test_messages_of_a_child_may_arrive_in_any_pieces() -> None:
    sent: list[dict[str, object]] = [{"index": 0, "text": "é" * 9}, {"turn": {}}, {"outcome": {}}]
    near_end, far_end = socket.socketpair()
    with near_end, far_end:
        for message in sent:
            send_message(far_end, message)
        data = near_end.recv(2**16)

    async def received(piece: int) -> list[dict[str, object]]:
        near, far = socket.socketpair()
        child = Child(cast(WorkerProcess, None), 1, near)

        async def write() -> None:
            for start in range(0, len(data), piece):
                far.sendall(data[start : start + piece])
                await asyncio.sleep(0)

        with near, far:
            writing = asyncio.create_task(write())
            messages = [await child.receive(patient(5.0)) for _ in sent]
            await writing
            assert not child.has_ended
            send_message(far, {"unasked": 1})
            send_message(far, {"unasked": 2})
            await child.receive(patient(5.0))
            assert child.has_ended
        return messages

    for piece in (1, 7, len(data)):
        assert asyncio.run(received(piece)) == sent


def test_several_environments_and_workers_that_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    several = {"count": f"{WORLDS}:Counter", "dice": f"{WORLDS}:Dice"}
    limits = EnvironmentLimits(call_s=patient(1.0), episode_s=patient(1.0), workers=2)
    with opened(monkeypatch, environments=several, limits=limits) as environments:
        count, dice = asks(environment="count", start=2), asks(environment="dice", sides=6)
        assert environments.open("c", count).result() == "Count from 2."
        assert environments.open("d", dice).result() is None
        assert answer(environments.call("d", [call("roll")]))[0].text == "4"
        assert "no tool" in answer(environments.call("d", [call("increment", by=1)]))[0].text
        assert environments.close("d").result().reward is None
        for columns, reason in (
            ({"environment": "dice"}, "reset raised TypeError"),
            ({"environment": "dice", "sides": 0}, "reset raised ValueError: no sides"),
            ({"environment": "dice", "sides": 13}, "reset took more than"),
            ({"environment": "cards"}, "names the environment 'cards'"),
        ):
            with pytest.raises(DeadEnvironment, match=reason):
                environments.open("e", asks(**columns)).result()
        for worker in environments._workers:
            assert worker._worker is not None
            worker._worker.end()
        with pytest.raises(DeadEnvironment):
            answer(environments.call("c", [call("increment", by=1)]))
        assert environments.open("f", count).result() == "Count from 2."
        assert environments.metrics["environment/restarts"] >= 1.0
