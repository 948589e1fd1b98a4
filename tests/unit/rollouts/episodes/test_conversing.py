"""Episodes over an engine that samples elsewhere: nobody waits for somebody else's tool."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from align.bank.routed import RoutedEngine
from align.gate.measurement.progress import CountedEngine, SuiteMeter, SuiteProgress
from rollouts.collect import PendingRollouts, begin
from rollouts.engines.protocol import SampleRequest, SampleResult
from rollouts.engines.scripted import ScriptedEngine
from rollouts.episodes.ticket import EpisodesTicket
from rollouts.errors import RunError
from rollouts.types import Increment, Prompt, Sampling
from tests.patience import patient
from tests.unit.acting import LocalEnvironments, call, encoder, ids, text

END = "<|im_end|>"
WAIT_S = patient(20.0)


class Elsewhere:
    """A conversation that answers in a thread of its own."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._asked: SimpleQueue[SampleRequest | None] = SimpleQueue()
        self._answers: SimpleQueue[SampleResult] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        for request in requests:
            self._asked.put(request)

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        try:
            return [self._answers.get(timeout=timeout_s)]
        except Empty:
            return []

    def close(self) -> None:
        self._asked.put(None)

    def _work(self) -> None:
        while (request := self._asked.get()) is not None:
            self._answers.put(self._engine.generate([request])[0])


class OpenScripted(ScriptedEngine):
    """A scripted engine that takes requests at any time."""

    def open(self) -> Any:
        return Elsewhere(self)


def engine() -> OpenScripted:
    """Each prompt tells its own word to a tool, then ends."""

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        said = text(prompt_ids)
        word = said.rpartition("word ")[2][0]
        turn = "ok" if "<tool_response>" in said else call("tell", text=word)
        tokens = ids(turn + END)
        return tokens, [-1.0] * len(tokens)

    return OpenScripted(script, eos_ids=encoder().eos_ids)


def prompts(words: str) -> list[Prompt]:
    return [
        Prompt(id=word, messages=({"role": "user", "content": f"word {word}"},)) for word in words
    ]


def begun(engine: Any, environments: LocalEnvironments, words: str) -> PendingRollouts:
    sampling = Sampling(max_tokens=200)
    return begin(
        engine, prompts(words), [1] * len(words), encoder(), sampling, 3, "v",
        environments=environments,
    )  # fmt: skip


def test_groups_arrive_while_the_tool_of_another_is_waited_for() -> None:
    released = threading.Event()

    def tell(text: str) -> str:
        assert text != "a" or released.wait(WAIT_S)
        return text

    pending = begun(engine(), LocalEnvironments({"tell": tell}), "abc")
    arrived: list[int] = []
    for groups in pending.arriving():
        arrived += groups
        if set(arrived) >= {1, 2}:  # The first one's tool answers only now.
            released.set()
    assert set(arrived[:2]) == {1, 2} and arrived[2] == 0
    assert isinstance(pending.ticket, EpisodesTicket)
    overlap = pending.ticket.loop.overlap
    assert overlap.seconds >= overlap.tools_s > 0


def of_this_process() -> tuple[ScriptedEngine, list[int]]:
    """An engine that samples where it is asked, and the numbers of turns it sampled at once."""
    inner = engine()
    counted = ScriptedEngine(inner._script, eos_ids=encoder().eos_ids)
    sizes: list[int] = []
    step = counted.step

    def counting_step() -> None:
        sizes.append(len(counted._under_way))
        step()

    counted.step = counting_step  # type: ignore[method-assign]
    return counted, sizes


def test_an_engine_of_this_process_samples_for_all_whose_tools_are_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rollouts.episodes.loop.MOMENT_S", WAIT_S)

    def tell(text: str) -> str:
        time.sleep(0.01 * "abcdefgh".index(text))
        return text

    counted, sizes = of_this_process()
    begun(counted, LocalEnvironments({"tell": tell}), "abcdefgh").groups()
    assert sizes == [8, 8]


def test_an_engine_of_this_process_goes_on_beside_a_slow_tool() -> None:
    ended = threading.Event()

    def tell(text: str) -> str:
        assert text != "a" or ended.wait(WAIT_S)
        return text

    def outcome(key: str) -> None:
        if "/c/" in key:
            ended.set()

    counted, sizes = of_this_process()
    begun(counted, LocalEnvironments({"tell": tell}, reward=outcome), "abc").groups()
    assert ended.is_set() and sizes[-1] == 1 and sum(sizes) == 6


def test_begin_waits_for_nothing_and_settle_for_all() -> None:
    released = threading.Event()

    def tell(text: str) -> str:
        assert released.wait(WAIT_S)
        return text

    environments = LocalEnvironments({"tell": tell})
    pending = begun(engine(), environments, "ab")
    assert not environments.ended
    released.set()
    pending.settle()
    assert len(environments.ended) == 2
    assert [group.completions_G[0].text for group in pending.groups()] == ["ok", "ok"]


def test_what_nobody_wants_is_given_up() -> None:
    released = threading.Event()
    environments = LocalEnvironments({"tell": lambda text: released.wait(WAIT_S)})
    pending = begun(engine(), environments, "ab")
    pending.stop()
    released.set()
    assert set(environments.dropped) == {"3/0/a/0", "3/1/b/0"}
    for _ in range(3):
        with pytest.raises(RunError, match="given up"):
            pending.groups()


def test_an_error_of_the_engine_reaches_whoever_waits() -> None:
    failing = engine()
    failing.open = lambda: Broken()  # type: ignore[method-assign]
    environments = LocalEnvironments({"tell": lambda text: text})
    pending = begun(failing, environments, "ab")
    for _ in range(3):  # Nobody waits for ever who asks once more.
        with pytest.raises(RunError, match="no engine"):
            pending.groups()
    assert len(environments.dropped) == 2


class Broken:
    """A conversation without an engine."""

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        raise RunError("no engine is left")

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        return []

    def close(self) -> None:
        pass


class AnswersMeanwhile(Future[Any]):
    """A future that is found done by whoever looks a second time."""

    def done(self) -> bool:
        looked, self.looked = getattr(self, "looked", False), True
        return looked


def test_an_answer_that_comes_while_it_is_looked_for_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(key: str, prompt: Prompt) -> AnswersMeanwhile:
        future = AnswersMeanwhile()
        future.set_result(None)
        return future

    environments = LocalEnvironments({"tell": lambda text: text})
    monkeypatch.setattr(environments, "open", opened)
    assert len(begun(engine(), environments, "ab").groups()) == 2


def test_progress_counts_episodes_and_not_turns() -> None:
    told: list[SuiteProgress] = []
    meter = SuiteMeter(suite="s", number=1, suites=1, items=2, tell=told.append)
    counted: Any = CountedEngine(engine(), meter)
    begun(counted, LocalEnvironments({"tell": lambda text: text}), "ab").groups()
    assert told[0].done == 0 and told[-1].done == 2
    assert told[-1].stage == "scoring" and len(told) <= 3


def test_later_turns_keep_the_adapters_of_the_first() -> None:
    asked: list[int] = []

    def retrieve(rows: Sequence[tuple[int, ...]]) -> list[tuple[Increment, ...]]:
        asked.append(len(rows))
        return [(Increment(text(row).rpartition("word ")[2][0], 0, 1.0),) for row in rows]

    inner = engine()
    routed: Any = RoutedEngine(inner, retrieve)
    begun(routed, LocalEnvironments({"tell": lambda text: text}), "ab").groups()
    mixes = {r.id: r.mix for r in inner.requests}
    assert len(mixes) == 4 and sum(asked) == 2
    for request_id, mix in mixes.items():
        assert mix is not None and mix[0].adapter == request_id.split("/")[2]
