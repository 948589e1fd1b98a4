"""How much completions repeat, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from align.ngrams import distinct_share, ngram_metrics, repeated_share
from rollouts.types import Completion, Prompt, RolloutGroup


def group(*texts: Sequence[int]) -> RolloutGroup:
    completions = tuple(
        Completion(token_ids=tuple(t), logprobs_T=(0.0,) * len(t), text="", finish_reason="stop")
        for t in texts
    )
    prompt = Prompt(id=str(texts), text="q")
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1,), completions_G=completions, policy="p", seed=0
    )


def test_a_loop_repeats_itself() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    assert repeated_share([7] * 8) == pytest.approx(4 / 5)  # one kind among five
    assert repeated_share([1, 2, 3]) is None


def test_what_only_one_answer_says() -> None:
    # 1234 and 2345 against 2345 and 3456: two of three kinds are in one answer only.
    assert distinct_share([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]]) == pytest.approx(2 / 3)
    assert distinct_share([[1, 2, 3, 4]] * 3) == 0.0
    assert distinct_share([[1, 2, 3, 4]]) is None
    assert distinct_share([[1, 2, 3, 4], [1, 2]]) is None  # one of them has no n-gram


def test_answers_to_one_prompt_may_be_alike() -> None:
    right = ngram_metrics([group([1, 2, 3, 4], [1, 2, 3, 4]), group([5, 6, 7, 8], [5, 6, 7, 8])])
    assert right == {"completions/repeated_ngrams": 0.0, "completions/distinct_ngrams": 1.0}
    one = ngram_metrics([group([1, 2, 3, 4]), group([1, 2, 3, 4])])
    assert one["completions/distinct_ngrams"] == 0.0


def test_nothing_is_said_of_nothing() -> None:
    assert ngram_metrics([]) == {}
    assert ngram_metrics([group([1], [2, 3])]) == {}


def test_the_order_of_prompts_means_nothing() -> None:
    groups = [group([1, 2, 3, 4, 1], [5] * 6), group([1, 2, 3, 4], [6, 7, 8, 9, 6, 7, 8, 9])]
    assert ngram_metrics(groups) == pytest.approx(ngram_metrics(groups[::-1]))
