"""Repetition of completions, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from align.data.ngrams import distinct_share, ngram_metrics, repeated_share, shares_of_one_answer
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


# one answer to everything

NULL = list(range(-100, -60))


def answers(num_prompts: int, num_null: int, null: Sequence[int] = NULL) -> list[RolloutGroup]:
    """Four completions of every prompt, ``num_null`` of them the same for all, wherever they stand."""
    texts = [
        [
            list(null) if (i + p) % 4 < num_null else [1000 * p + 50 * i + k for k in range(40)]
            for i in range(4)
        ]
        for p in range(num_prompts)
    ]
    return [group(*own) for own in texts]


def test_the_share_of_one_answer_in_half_of_all_samples() -> None:
    found = shares_of_one_answer(answers(8, 2))
    assert found == {"completions/identical_share": 0.5, "completions/similar_share": 0.5}
    # Copies collapse into one n-gram: the share of unique ones hardly moves.
    before, after = (ngram_metrics(answers(8, n))["completions/distinct_ngrams"] for n in (0, 2))
    assert after > 0.7 * before


def test_answers_that_differ_in_a_word_are_nearly_the_same() -> None:
    groups = answers(8, 2)
    varied = [
        group(*[[*c.token_ids[:-1], -1000 - 10 * i - j] if c.token_ids[0] == -100 else c.token_ids
                for j, c in enumerate(g.completions_G)])
        for i, g in enumerate(groups)
    ]  # fmt: skip
    found = shares_of_one_answer(varied)
    assert found["completions/identical_share"] == 0.0
    assert found["completions/similar_share"] == 0.5


@pytest.mark.parametrize(
    "groups",
    [
        answers(8, 0),
        [group([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), group([5, 6, 7, 8, 9])],  # One prompt, solved.
        [group([p % 2, 9], [p % 2, 9]) for p in range(8)],  # Yes or no.
    ],
)
def test_right_answers_are_no_collapse(groups: list[RolloutGroup]) -> None:
    assert max(shares_of_one_answer(groups).values(), default=0.0) == 0.0


def test_samples_that_failed_count_for_nothing() -> None:
    assert shares_of_one_answer([group(()), group(())]) == {}
    assert shares_of_one_answer([]) == {}
