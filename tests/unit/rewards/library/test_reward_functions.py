"""Every shipped reward against values worked out by hand."""

from __future__ import annotations

import pytest

from rewards.base import completion_text
from rewards.library import text, verifiable
from rollouts.errors import UserError

CHAT = [{"role": "assistant", "content": "5 1 4"}]


def test_completion_text_of_both_forms() -> None:
    assert completion_text("a b") == "a b"
    assert completion_text(CHAT) == "5 1 4"


def test_exact_match_forgives_only_white_space() -> None:
    completions = [" 5  1\n4 ", "514", "5 1 4 1", CHAT, "42", "x"]
    answer = ["5 1 4", "5 1 4", "5 1 4", "5 1 4", 42, None]
    assert verifiable.exact_match(completions, answer) == [1.0, 0.0, 0.0, 1.0, 1.0, None]


def test_contains_looks_anywhere() -> None:
    completions = ["it is  5\n1 4.", "312", "no", "no"]
    assert verifiable.contains(completions, ["5 1 4", "12", "yes", None]) == [1.0, 1.0, 0.0, None]


def test_regex_match_searches_or_matches_fully() -> None:
    completions = ["a 12", "12", "a"]
    assert verifiable.regex_match(completions, pattern=r"\d+") == [1.0, 1.0, 0.0]
    assert verifiable.regex_match(completions, pattern=r"\d+", full=True) == [0.0, 1.0, 0.0]
    with pytest.raises(UserError, match="needs a pattern"):
        verifiable.regex_match(completions)


def test_sentiment_orders_texts() -> None:
    bad, flat, good = text.sentiment(["I hate this awful day.", "A table.", "I love this day!"])
    assert -1 <= bad < -0.5
    assert flat == 0.0
    assert 0.5 < good <= 1


def test_dialogue_counts_straight_and_curly_quotes_up_to_the_cap() -> None:
    completions = ["none", 'one "', '"Hi," she said.', '"a" "b" "c"', "\u201chi\u201d"]
    assert text.dialogue(completions) == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert text.dialogue(completions, cap=4) == [0.0, 0.25, 0.5, 1.0, 0.5]


def test_ends_within_counts_tokens_or_characters() -> None:
    completions, ids = ["abcd", "ab"], [[1, 2], [1, 2, 3]]
    assert text.ends_within(completions, ids, tokens=2) == [1.0, 0.0]
    assert text.ends_within(completions, ids, characters=3) == [0.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"tokens": 2, "characters": 3}])
def test_ends_within_wants_exactly_one_limit(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="either 'tokens' or 'characters'"):
        text.ends_within([], [], **options)


def test_distinct_ngrams_is_unique_over_all() -> None:
    # 2-grams of 1 2 1 2 1: 12 21 12 21, two different of four; of "abab": ab ba ab, 2/3.
    ids = [[1, 2, 1, 2, 1], [1, 2, 3], [7]]
    completions = ["abab", "a b a b", "z"]
    assert text.distinct_ngrams(completions, ids, n=2) == [0.5, 1.0, None]
    characters = text.distinct_ngrams(completions, ids, n=2, unit="character")
    assert characters == [2 / 3, 4 / 6, None]  # "a b a b": "a ", " b", "b ", " a", "a ", " b"
    assert text.distinct_ngrams(completions, ids, n=2, unit="word") == [None, 2 / 3, None]
    assert text.distinct_ngrams(completions, ids, n=1) == [0.4, 1.0, 1.0]
    assert text.distinct_ngrams(completions, ids, n=1, cap=0.9) == [0.4, 0.9, 0.9]


def test_length_and_distance_to_a_target() -> None:
    completions, ids = ["a b c d", "", "abc"], [[1, 2], [], [1] * 9]
    assert text.length(completions, ids) == [2.0, 0.0, 9.0]
    assert text.length(completions, ids, unit="word") == [4.0, 0.0, 1.0]
    assert text.length(completions, ids, unit="character") == [7.0, 0.0, 3.0]
    # target 4: |2-4|/4 = .5, |0-4|/4 = 1, |9-4|/4 > 1.
    assert text.length(completions, ids, target=4) == [0.5, 0.0, 0.0]


def test_text_rewards_read_chat_completions() -> None:
    assert text.length([CHAT], [[1]], unit="word") == [3.0]
    assert text.dialogue([[{"role": "assistant", "content": '"'}]]) == [0.5]
