"""Instructions about words, letters, lengths, case and language."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.library.ifeval.counting import holds, num_capital_words, num_sentences, num_words
from rewards.library.language import detect


def keywords_exist(text: str, *, keywords: Sequence[str]) -> bool:
    """Check that every keyword occurs, in any case, inside a word too."""
    return all(_count(keyword, text) for keyword in keywords)


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Check that the keyword occurs so often, in any case, inside words too."""
    return holds(_count(keyword.strip(), text), relation, frequency)


def no_forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """Check that none of the words occurs as a whole word, in any case."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        for word in forbidden_words
    )


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Check that the character occurs so often, in either case."""
    return holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def word_number(text: str, *, num_words: int, relation: str) -> bool:
    """Check the number of words."""
    return holds(_num_words(text), relation, num_words)


def sentence_number(text: str, *, num_sentences: int, relation: str) -> bool:
    """Check the number of sentences."""
    return holds(_num_sentences(text), relation, num_sentences)


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Check the number of words in capitals only."""
    return holds(num_capital_words(text), capital_relation, capital_frequency)


def english_capitals(text: str) -> bool:
    """Check that the text is English, without a small letter."""
    return text.isupper() and _is_in(text, "en")


def english_lowercase(text: str) -> bool:
    """Check that the text is English, without a capital letter."""
    return text.islower() and _is_in(text, "en")


def in_language(text: str, *, language: str) -> bool:
    """Check the language by its ISO 639-1 code; a text whose language cannot be detected passes."""
    return _is_in(text, language)


def no_comma(text: str) -> bool:
    """Check that there is no comma."""
    return "," not in text


_num_words, _num_sentences = num_words, num_sentences
"""Aliases that the instructions' own arguments do not hide."""


def _count(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _is_in(text: str, language: str) -> bool:
    detected = detect(text)
    return detected is None or detected == language.partition("-")[0]
