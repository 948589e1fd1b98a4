"""Carriers of episodes: spans, sampled tokens, and what the learner's tensors hold of them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.rows import row_of
from align.learner.batching import by_row, to_tensors
from rollouts.engines.protocol import SampleResult
from rollouts.engines.recorded import from_json, to_json
from rollouts.types import (
    Completion,
    Episode,
    Prompt,
    RolloutGroup,
    TokenSpan,
    WeightSpan,
    sampled_positions,
    sampled_spans,
)

EPISODE = Completion(
    token_ids=(5, 6, 70, 71, 8, 9),
    logprobs_T=(-0.5, -0.6, -0.8, -0.9),
    text="eight nine",
    finish_reason="stop",
    weight_versions=(WeightSpan("a/1", 0, 2), WeightSpan("a/2", 4, 6)),
    episode=Episode(
        observed=(TokenSpan(2, 4),),
        messages=({"role": "assistant", "content": "5 6"}, {"role": "tool", "content": "70 71"}),
        turns=2,
        calls=1,
        reward=0.5,
        turn_rewards=(None, 0.5),
        state={"count": 3},
    ),
)
GROUP = RolloutGroup(
    prompt=Prompt(id="p", text="1 2"),
    prompt_ids=(1, 2),
    completions_G=(EPISODE,),
    policy="a/1",
    seed=0,
)


def test_turns_are_what_lies_between_observations() -> None:
    spans = [TokenSpan(0, 1), TokenSpan(3, 4), TokenSpan(4, 6)]
    assert sampled_spans(9, spans) == [TokenSpan(1, 3), TokenSpan(6, 9)]
    assert sampled_spans(6, spans) == [TokenSpan(1, 3)]
    assert sampled_spans(2, ()) == [TokenSpan(0, 2)] and sampled_spans(0, ()) == []


def test_sampled_tokens_are_those_no_span_covers() -> None:
    assert EPISODE.sampled_ids == (5, 6, 8, 9)
    assert EPISODE.num_sampled == len(EPISODE.logprobs_T) == 4
    assert row_of(GROUP, EPISODE, 1.0).num_sampled == 4
    assert row_of(GROUP, EPISODE, 1.0).num_tokens == 8


@given(st.lists(st.booleans(), max_size=20))
def test_spans_and_sampled_positions_part_a_completion(is_observed: list[bool]) -> None:
    edges = [False, *is_observed, False]
    starts = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if b > a]
    ends = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if b < a]
    spans = [TokenSpan(*span) for span in zip(starts, ends, strict=True)]
    expected = [place for place, observed in enumerate(is_observed) if not observed]
    assert sampled_positions(len(is_observed), spans) == expected


def test_tensors_list_sampled_tokens_only_and_read_all() -> None:
    micro = to_tensors([row_of(GROUP, EPISODE, 1.0)])
    assert micro.tokens_BT.tolist() == [[1, 2, 5, 6, 70, 71, 8]]
    assert micro.targets_N.tolist() == [5, 6, 8, 9]
    # Token 8 is predicted behind the observation, at the place of 71.
    assert micro.where_N.tolist() == [1, 2, 5, 6]
    assert micro.packing is not None
    assert micro.packing.tokens_S[micro.packing.where_N].tolist() == [2, 5, 71, 8]
    assert by_row(micro.of_tokens("sampler_logprobs_T"), micro) == [
        pytest.approx((-0.5, -0.6, -0.8, -0.9))
    ]


def test_an_episode_comes_back_from_json_as_it_was() -> None:
    results = [SampleResult(id="1", completions=(EPISODE, Completion.failed("the tool died")))]
    assert from_json(json.loads(json.dumps(to_json(results)))) == results
