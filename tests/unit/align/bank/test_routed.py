"""Requests that are given the adapters that their prompts retrieve, over the turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from align.bank.routed import RoutedEngine
from rollouts.engines.protocol import OpenEngine, SampleRequest
from rollouts.engines.scripted import ScriptedEngine
from rollouts.types import Increment, Mix, PromptIds, Sampling


def retrieve(prompts: Sequence[PromptIds]) -> list[Mix]:
    """Retrieve the adapter that is named after the prompt's last token."""
    return [(Increment(str(prompt[-1]), 0, 1.0),) for prompt in prompts]


def request(id: str, prompt_ids: PromptIds, follows: str | None = None) -> SampleRequest:
    return SampleRequest(
        id=id, prompt_ids=prompt_ids, n=1, sampling=Sampling(max_tokens=4), seed=0, follows=follows
    )


def test_all_turns_are_answered_by_what_the_first_prompt_retrieved() -> None:
    engine = ScriptedEngine(lambda prompt_ids, seed: ([9], [-1.0]))
    routed = RoutedEngine(engine, retrieve)
    assert isinstance(routed, OpenEngine)
    conversation = routed.open()
    conversation.ask([request("a/0", (1, 5)), request("b/0", (1, 6))])
    assert {result.id for result in conversation.arrivals(0.0)} == {"a/0", "b/0"}
    conversation.ask([request("a/1", (1, 5, 9, 7), "a/0"), request("c/0", (2,))])
    conversation.ask([request("a/2", (1, 5, 9, 7, 9, 8), "a/1")])
    conversation.close()
    adapters = {each.id: each.mix and each.mix[0].adapter for each in engine.requests}
    assert adapters == {"a/0": "5", "b/0": "6", "a/1": "5", "c/0": "2", "a/2": "5"}
    assert [adapter for _, adapter in routed.take_record().choices] == ["5", "6", "2"]
