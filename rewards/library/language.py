"""Language of a text, detected by py3langid: naive Bayes over byte n-grams, 97 languages.

Lui & Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL 2012. Deterministic,
needs numpy only. In the extra ``rewards``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import given, missing_package, one_of, whole_number


def language(
    completions: Sequence[ShownCompletion], code: str | None = None, letters: int = 20
) -> list[float | None]:
    """Score 1.0 where the completion is in the language ``code`` (ISO 639-1: en, de, zh), else 0.0.

    None where it has fewer than ``letters`` letters: the language of a word or two is a guess.
    """
    given("language", "code", code, "en")
    whole_number("letters", letters)
    one_of("code", code, languages())
    texts = [completion_text(completion) for completion in completions]
    return [None if num_letters(t) < letters else float(detect(t) == code) for t in texts]


def detect(text: str) -> str | None:
    """Return the ISO 639-1 code of the likeliest language; None for a text without letters."""
    # Capitals are rare in what the classifier learnt from, and mean nothing here.
    return str(_identifier().classify(text.lower())[0]) if num_letters(text) else None


def num_letters(text: str) -> int:
    """Count letters of any script."""
    return sum(character.isalpha() for character in text)


def languages() -> list[str]:
    """List the codes that can be detected."""
    return sorted(set(_identifier().nb_classes))


@cache
def _identifier() -> Any:
    """Load the classifier, whose model is read once."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise missing_package("language", "py3langid", error, "rewards") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
