"""The index of documents as a tool beside the tools of environments."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from align.config.retrieval.settings import RetrievalConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.retrieval.documents import IndexChange
from align.data.retrieval.index import DocumentIndex
from align.data.retrieval.tool import (
    NOTHING,
    SCHEMA,
    SearchEnvironments,
    SearchingEncoder,
    check_search,
    finished,
)
from rollouts.collect import collect
from rollouts.engines.scripted import ScriptedEngine
from rollouts.episodes.environment import EpisodeRules, Observation, Outcome, ToolCall
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt, Sampling
from tests.patience import patient
from tests.unit import acting

ACTS, PLAIN, TEXT = (
    Prompt(id="a", messages=({"role": "user", "content": "acts"},)),
    Prompt(id="p", messages=({"role": "user", "content": "plain"},)),
    Prompt(id="t", text="text"),
)
END = "<|im_end|>"
LIMITS, OWN = EpisodeRules(turns=3), EpisodeRules(turns=5)
ADD = {"type": "function", "function": {"name": "add"}}


class Calculator:
    """Environments of the prompt `ACTS` alone, which answer a call with its name."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.dead = False
        self.limits = OWN

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        return self.limits if prompt == ACTS else None

    def schemas(self, prompt: Prompt) -> Sequence[Any]:
        return (ADD,)

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        self.events.append(("open", key))
        return finished("begin")

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        self.events.append(("call", key, [call.name for call in calls]))
        if self.dead:
            future: Future[Sequence[Observation]] = Future()
            future.set_exception(RuntimeError("dead"))
            return future
        return finished([Observation(text=call.name, failed=False) for call in calls])

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        self.events.append(("close", key, list(messages)))
        return finished(Outcome(reward=1.0))

    def drop(self, key: str) -> None:
        self.events.append(("drop", key))


def searching(others: Calculator | None = None) -> SearchEnvironments:
    settings = RetrievalConfig(top_k=2, separator=" | ")
    texts = {"a": "Paris, France", "b": "Lyon, France"}
    index = DocumentIndex(settings=settings).changed(IndexChange(texts=texts), "first")[0]
    return SearchEnvironments(index=index, limits=LIMITS, others=others)


def search(query: Any) -> ToolCall:
    return ToolCall("search", {"query": query})


def test_a_search_answers_with_the_documents_that_fit() -> None:
    alone = searching()
    assert alone.rules(PLAIN) == LIMITS
    assert alone.rules(TEXT) is None
    assert list(alone.schemas(PLAIN)) == [SCHEMA]
    assert alone.open("k", PLAIN).result() is None
    answers = alone.call("k", [search("lyon france"), search("Rome"), search(3)]).result()
    assert [answer.text for answer in answers[:2]] == ["Lyon, France | Paris, France", NOTHING]
    assert [answer.failed for answer in answers] == [False, False, True]
    assert alone.close("k").result() == Outcome()
    alone.drop("k")


def test_searches_stand_beside_the_calls_of_an_environment_in_their_order() -> None:
    calculator = Calculator()
    both = searching(calculator)
    assert both.rules(ACTS) == OWN
    assert list(both.schemas(ACTS)) == [ADD, SCHEMA]
    assert both.open("k", ACTS).result() == "begin"
    calls = [ToolCall("add", {}), search("paris"), ToolCall("mul", {})]
    assert [answer.text for answer in both.call("k", calls).result()] == [
        "add", "Paris, France", "mul",
    ]  # fmt: skip
    said = {"role": "assistant", "content": "5"}
    assert both.close("k", [said]).result().reward == 1.0
    assert calculator.events == [
        ("open", "k"), ("call", "k", ["add", "mul"]), ("close", "k", [said]),
    ]  # fmt: skip


@pytest.mark.parametrize(("prompt", "shown"), [(PLAIN, 5), (ACTS, 3)])
def test_what_a_search_finds_is_cut_by_the_limits_of_its_episode(
    prompt: Prompt, shown: int
) -> None:
    """An episode of an environment has its own limits; one that only searches those of the search."""
    calculator = Calculator()
    calculator.limits = EpisodeRules(observation_chars=3)
    both = replace(searching(calculator), limits=EpisodeRules(observation_chars=5))
    both.open("k", prompt)
    calls = [search("paris"), *[ToolCall("add", {})] * (prompt == ACTS)]
    answer = both.call("k", calls).result()[0]
    cut = f"[cut: the first {shown} of 13 characters]"
    assert answer == Observation(text=f"{'Paris, France'[:shown]}\n{cut}", failed=False)


def test_prompts_without_an_environment_of_their_own_only_search() -> None:
    calculator = Calculator()
    both = searching(calculator)
    assert both.rules(PLAIN) == LIMITS
    assert list(both.schemas(PLAIN)) == [SCHEMA]
    both.open("k", PLAIN)
    both.call("k", [search("paris")])
    both.close("k")
    both.drop("k")
    assert calculator.events == []


def test_an_environment_that_dies_in_a_call_is_dead() -> None:
    calculator = Calculator()
    both = searching(calculator)
    both.open("k", ACTS)
    calculator.dead = True
    with pytest.raises(RuntimeError, match="dead"):
        both.call("k", [search("paris"), ToolCall("add", {})]).result()


def test_a_search_that_fails_beside_other_calls_ends_its_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A future that nobody completes would be waited for until the round is stopped."""
    environments = searching(Calculator())

    def fail(self: DocumentIndex, question: str) -> None:
        raise RuntimeError("no memory for vectors")

    monkeypatch.setattr(DocumentIndex, "search", fail)
    environments.open("a", ACTS).result()
    calls = [ToolCall("search", {"query": "Paris"}), ToolCall("add", {})]
    with pytest.raises(RuntimeError, match="no memory"):
        environments.call("a", calls).result(timeout=patient(10))


def test_an_encoder_lets_its_policy_search_wherever_it_acts() -> None:
    plain = PromptEncoder(build_tokenizer())
    encoder = SearchingEncoder(plain, searching().index, LIMITS)
    assert (encoder.digest, encoder.encode(TEXT)) == (plain.digest, plain.encode(TEXT))
    calculator = Calculator()
    assert encoder.acting_in(calculator).rules(ACTS) == OWN
    assert encoder.acting_in(None).rules(ACTS) == LIMITS
    assert plain.acting_in(None) is None
    assert plain.acting_in(calculator) is calculator


def test_a_model_without_a_chat_template_cannot_call_the_search() -> None:
    with pytest.raises(UserError, match="no chat template") as raised:
        check_search(PromptEncoder(build_tokenizer()), "policy.retrieval.form")
    assert raised.value.where == "policy.retrieval.form"


def test_what_a_search_finds_is_observed_and_not_learnt() -> None:
    turns = (acting.call("search", query="lyon france") + END, "It is Lyon." + END)

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        tokens = acting.ids(turns["tool_response" in acting.text(prompt_ids)])
        return tokens, [-1.0] * len(tokens)

    plain = acting.encoder()
    engine = ScriptedEngine(script, eos_ids=plain.eos_ids)
    encoder = SearchingEncoder(plain, searching().index, EpisodeRules())
    acted, answered = collect(
        engine, [PLAIN, TEXT], [1, 1], encoder, Sampling(max_tokens=200), 7, "v1"
    )
    assert acted.prompt_ids == plain.encode(PLAIN, [SCHEMA])
    (completion,) = acted.completions_G
    assert completion.episode is not None and completion.text == "It is Lyon."
    assert (completion.episode.calls, completion.episode.failed_calls) == (1, 0)
    ((start, end),) = completion.observed
    assert "Lyon, France | Paris, France" in acting.text(completion.token_ids[start:end])
    assert completion.sampled_ids == tuple(token for turn in turns for token in acting.ids(turn))
    assert answered.completions_G[0].episode is None
