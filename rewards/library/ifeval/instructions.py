"""The 25 instructions of IFEval by their ids, and the check that a text follows one.

Each is a pure function ``f(text, *, arguments) -> bool`` whose arguments are the data's ``kwargs``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rewards.library.ifeval import form, words
from rollouts.errors import UserError, nearest

INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": words.capital_word_frequency,
    "change_case:english_capital": words.english_capitals,
    "change_case:english_lowercase": words.english_lowercase,
    "combination:repeat_prompt": form.repeats_prompt,
    "combination:two_responses": form.two_responses,
    "detectable_content:number_placeholders": form.placeholder_number,
    "detectable_content:postscript": form.postscript,
    "detectable_format:constrained_response": form.constrained_response,
    "detectable_format:json_format": form.json_only,
    "detectable_format:multiple_sections": form.section_number,
    "detectable_format:number_bullet_lists": form.bullet_number,
    "detectable_format:number_highlighted_sections": form.highlight_number,
    "detectable_format:title": form.title,
    "keywords:existence": words.keywords_exist,
    "keywords:forbidden_words": words.no_forbidden_words,
    "keywords:frequency": words.keyword_frequency,
    "keywords:letter_frequency": words.letter_frequency,
    "language:response_language": words.in_language,
    "length_constraints:nth_paragraph_first_word": form.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": form.paragraph_number,
    "length_constraints:number_sentences": words.sentence_number,
    "length_constraints:number_words": words.word_number,
    "punctuation:no_comma": words.no_comma,
    "startend:end_checker": form.ends_with,
    "startend:quotation": form.quoted,
}


def follows(text: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Tell if ``text`` follows the instruction; an empty text follows none.

    Arguments that are None are left out: tables hold a column for every argument there is.

    Raises:
        UserError: the data name an unknown instruction, or give it other arguments than it has.
    """
    check = INSTRUCTIONS.get(instruction)
    if check is None:
        raise UserError(
            f"unknown instruction {instruction!r}", remedy=nearest(instruction, list(INSTRUCTIONS))
        )
    arguments_of_check = {name: value for name, value in arguments.items() if value is not None}
    try:
        inspect.signature(check).bind(text, **arguments_of_check)
    except TypeError as error:
        raise UserError(
            f"instruction {instruction!r} cannot take the arguments {arguments_of_check}",
            cause=str(error),
        ) from error
    return bool(text.strip()) and check(text, **arguments_of_check)
