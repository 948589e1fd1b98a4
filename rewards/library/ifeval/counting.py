"""Counts of words, sentences and capitals for the instructions, and their comparison with a threshold.

Words, sentences and capital words are found by rules of our own, where the original calls NLTK; the
two can differ by one around abbreviations, and where an apostrophe splits a word.
"""

from __future__ import annotations

import re

RELATIONS = ("less than", "at least")

_ABBREVIATION = re.compile(
    r"(?:\b(?i:mr|mrs|ms|dr|prof|st|jr|sr|vs|inc|ltd|co|mt|fig|no)|\b[A-Z]|\b(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
_ENDING = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？।]+")


def holds(count: int, relation: str, threshold: int) -> bool:
    """Tell if ``count`` is less than, or at least, ``threshold``."""
    if relation not in RELATIONS:
        raise ValueError(f"the relation {relation!r} is none of {RELATIONS}")
    return count < threshold if relation == "less than" else count >= threshold


def num_words(text: str) -> int:
    """Count runs of letters, digits and underscores."""
    return len(re.findall(r"\w+", text))


def num_capital_words(text: str) -> int:
    """Count words without a small letter; a hyphenated word is one."""
    return sum(word.isupper() for word in re.findall(r"\w[\w'’-]*", text))


def num_sentences(text: str) -> int:
    """Count sentences, an unfinished last one included; "Dr." and "e.g." end none."""
    count, start = 0, 0
    for ending in _ENDING.finditer(text):
        sentence = text[start : ending.end()]
        if _ABBREVIATION.search(sentence.rstrip("\"'”’)]")) and ending.end() < len(text.rstrip()):
            continue
        count += bool(re.search(r"\w", sentence))
        start = ending.end()
    return count + bool(re.search(r"\w", text[start:]))
