"""Requests are derived from seed, prompt and place; answers become groups with text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rollouts.collect import beginning_of, check_lengths, collect
from rollouts.engines.protocol import (
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Completion, Prompt, RolloutGroup, Sampling

WORDS = {"<eos>": 0, "<unk>": 1, "a": 2, "b": 3}
SAMPLING = Sampling(max_tokens=4)


class Echo:
    """An engine that answers with the prompt's tokens and an end; the first answer may fail."""

    def __init__(self, fail_first: bool = False) -> None:
        self.fail_first = fail_first
        self.requests: list[SampleRequest] = []

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        results = self.generate(requests)
        return lambda: results

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        self.requests += requests
        return [SampleResult(id=r.id, completions=self._completions(r)) for r in requests]

    def _completions(self, request: SampleRequest) -> tuple[Completion, ...]:
        ids = (*request.prompt_ids, 0)
        good = Completion(
            token_ids=ids, logprobs_T=(-0.5,) * len(ids), text="", finish_reason="stop"
        )
        first = Completion.failed("engine died") if self.fail_first else good
        return (first, *[good] * (request.n - 1))

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        raise NotImplementedError

    def sync(self, update: WeightUpdate) -> SyncReport:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Backwards(Echo):
    """Answers in the wrong order."""

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        return super().generate(requests)[::-1]


class Stingy(Echo):
    """Gives one completion fewer than asked."""

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        results = super().generate(requests)
        return [replace(result, completions=result.completions[1:]) for result in results]


def encoder() -> PromptEncoder:
    backend = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PromptEncoder(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    )


A, B = Prompt(id="A", text="a"), Prompt(id="B", text="b a")


def run(engine: Echo, prompts: list[Prompt], sizes: list[int], seed: int = 3) -> list[RolloutGroup]:
    return collect(engine, prompts, sizes, encoder(), SAMPLING, seed, "reverse/1")


def test_groups_have_the_asked_sizes_text_and_provenance() -> None:
    engine = Echo()
    first, second = run(engine, [A, B], [2, 1])
    assert (first.prompt, first.prompt_ids, first.policy) == (A, (2,), "reverse/1")
    assert [c.text for c in first.completions_G] == ["a", "a"]
    assert [c.text for c in second.completions_G] == ["b a"]
    assert second.completions_G[0].token_ids == (3, 2, 0)
    assert [(r.id, r.n, r.prompt_ids) for r in engine.requests] == [
        ("3/0/A", 2, (2,)),
        ("3/1/B", 1, (3, 2)),
    ]
    assert all(r.sampling == SAMPLING for r in engine.requests)
    assert [first.seed, second.seed] == [r.seed for r in engine.requests]


def test_failed_completions_stay_in_their_group() -> None:
    (group,) = run(Echo(fail_first=True), [A], [2])
    assert [c.finish_reason for c in group.completions_G] == ["failed", "stop"]
    assert group.completions_G[0].detail == "engine died"


def test_seeds_repeat_and_differ_where_they_must() -> None:
    def seeds(prompts: list[Prompt], seed: int) -> list[int]:
        return [group.seed for group in run(Echo(), prompts, [1] * len(prompts), seed)]

    assert seeds([A, A, B], 3) == seeds([A, A, B], 3)
    everything = [*seeds([A, A, B], 3), *seeds([A, A, B], 4)]
    assert len(set(everything)) == 6
    assert all(0 <= s < 2**31 for s in everything)


def test_nothing_to_ask_asks_nothing() -> None:
    engine = Echo()
    assert run(engine, [], []) == []
    assert engine.requests == []


@pytest.mark.parametrize("engine", [Backwards(), Stingy()])
def test_an_engine_that_answers_something_else_is_found_out(engine: Echo) -> None:
    with pytest.raises(RunError, match="the engine was asked"):
        run(engine, [A, B], [2, 2])


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="not positive"):
        run(Echo(), [A], [0])
    with pytest.raises(ValueError, match="zip"):
        run(Echo(), [A], [1, 1])


def test_check_lengths_names_the_longest_prompt() -> None:
    prompts = [A, B, Prompt(id="C", text="a a a")]
    check_lengths(prompts, encoder(), max_tokens=4, max_model_len=7)
    with pytest.raises(UserError, match="prompt 'C' has 3 tokens") as caught:
        check_lengths(prompts, encoder(), max_tokens=4, max_model_len=5)
    assert "context of 5; 2 of 3 prompts" in str(caught.value)
    assert "'a a a'" in str(caught.value)


def test_a_prompt_is_told_by_its_last_words() -> None:
    turns = ({"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"})
    assert beginning_of(Prompt(id="p", messages=turns)) == "1 + 1?"
    assert beginning_of(Prompt(id="p", text="abc"), most=2) == "ab"
