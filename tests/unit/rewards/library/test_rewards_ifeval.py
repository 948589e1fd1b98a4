"""Each of IFEval's instructions with texts that follow it and texts that do not."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.library.ifeval.counting import num_sentences
from rewards.library.ifeval.instructions import INSTRUCTIONS, follows
from rewards.library.ifeval.reward import ifeval, loosened
from rollouts.errors import UserError

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["GO NOW please", "WELL-KNOWN A"],
        ["GO now", "Go Now"],
    ),
    "change_case:english_capital": (
        {}, ["THE CAT SAT ON THE MAT."], ["The CAT SAT", "DIE KATZE SITZT AUF DER MATTE UND SCHAUT."],
    ),
    "change_case:english_lowercase": (
        {}, ["the cat sat on the mat."], ["The cat sat", "die katze sitzt auf der matte und schaut."],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say hi."}, ["say hi. Hi!", " Say hi."], ["Hi! Say hi.", "Say"],
    ),
    "combination:two_responses": (
        {}, ["a ****** b", "a******b******"], ["a", "a ****** a", "a ****** b ****** c", "a******"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2}, ["[name] at [place]"], ["[name]", "name at place"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."}, ["Bye. P.S. more", "p. s. more"], ["Bye. PS more", "Bye"],
    ),
    "detectable_format:constrained_response": (
        {}, ["My answer is yes.", "So: My answer is maybe."], ["yes", "My answer is"],
    ),
    "detectable_format:json_format": (
        {}, ['{"a": 1}', "```json\n[1]\n```", "```\n2\n```"], ["{a: 1}", "Here: {}", "```json"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section2 Section3"],
        ["Section 1", "section 1 section 2", "Section A Section B"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2}, ["* a\n* b", "- a\n  * b"], ["* a", "* a\n* b\n- c", "**a**\n**b**"],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2}, ["*a* and *b c*", "**a** *b*"], ["*a*", "** ** *a*", "* a\n* b"],
    ),
    "detectable_format:title": ({}, ["<<joy>>\ntext"], ["<joy>", "<< >>", "<<a\nb>>"]),
    "keywords:existence": (
        {"keywords": ["sun", "C++"]}, ["Sunny c++"], ["sun", "C++", "sun and C"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["rock", "C++"]}, ["rocket", "C"], ["a Rock.", "I like c++ a lot"],
    ),
    "keywords:frequency": (
        {"keyword": "ha", "frequency": 2, "relation": "less than"}, ["ha", "x"], ["Ha ha", "haha"],
    ),
    "keywords:letter_frequency": (
        {"letter": "a", "let_frequency": 2, "let_relation": "at least"}, ["Aha"], ["a", "b"],
    ),
    "language:response_language": (
        {"language": "de"}, ["Die Katze sitzt auf der Matte.", "12"], ["The cat sat on the mat."],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["a\n\nthen b", 'a\n\n"Then," b'],
        ["then\n\na", "a", "a\n\nthen\n\nb", "a\n\nthenceforth b"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2}, ["a *** b", "***\na\n***\nb\n***"], ["a", "a *** *** b", "a***b***c"],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"}, ["A b. C d!", "One? Two"], ["Dr. A is in.", "a"],
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "less than"}, ["one two", "one-two"], ["one two three"],
    ),
    "punctuation:no_comma": ({}, ["a b"], ["a, b"]),
    "startend:end_checker": (
        {"end_phrase": "The end."}, ["a. the end.", '"a. The end."'], ["The end. a", "the end"],
    ),
    "startend:quotation": ({}, ['"a"', ' "a b" '], ['"a', "'a'", '"', "a"]),
}  # fmt: skip


def test_every_instruction_has_a_case() -> None:
    assert set(CASES) == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


@pytest.mark.parametrize("name", CASES)
def test_an_instruction_is_followed_or_not(name: str) -> None:
    arguments, right, wrong = CASES[name]
    assert [text for text in right if not follows(text, name, arguments)] == []
    assert [text for text in wrong if follows(text, name, arguments)] == []
    assert not follows(" \n", name, arguments), "an empty text follows nothing"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one", 1),
        ("One. Two. Three.", 3),
        ("Wait... what?! Yes.", 3),
        ("Mr. Smith paid 3.50 in the U.S. today. Good.", 2),
        ('He said "Go." Then he left.', 2),
        ("e.g. this one", 1),
        ("猫です。犬です。", 2),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, count: int) -> None:
    assert num_sentences(text) == count


def test_arguments_that_are_none_are_left_out() -> None:
    assert follows("a b", "punctuation:no_comma", {"num_words": None, "keywords": None})


def test_wrong_data_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'punctuation:no_comma'"):
        follows("a", "punctuation:no_commas", {})
    with pytest.raises(UserError, match="cannot take the arguments") as caught:
        follows("a", "startend:quotation", {"num_words": 3})
    assert "num_words" in str(caught.value.cause)
    with pytest.raises(UserError, match="cannot take the arguments"):
        follows("a", "length_constraints:number_words", {"num_words": 3})
    with pytest.raises(UserError, match="other entries"):
        ifeval(["a"], [["punctuation:no_comma"]], [[]])


def test_the_reward_is_the_share_of_instructions_or_all_of_them() -> None:
    ids = [["punctuation:no_comma", "startend:quotation"]] * 3 + [None]
    arguments: list[Any] = [[{}, None]] * 3 + [None]
    completions = ['"a"', "a", "a, b", "a"]
    assert ifeval(completions, ids, arguments) == [1.0, 0.5, 0.0, None]
    assert ifeval(completions, ids, arguments, level="prompt") == [1.0, 0.0, 0.0, None]


def test_loose_forgives_a_line_around_the_answer() -> None:
    text = 'Sure, here it is:\n**"a"**'
    ids, arguments = [["startend:quotation"]], [[{}]]
    assert ifeval([text], ids, arguments) == [0.0]
    assert ifeval([text], ids, arguments, loose=True) == [1.0]
    assert set(loosened("a\n*b*\nc")) == {
        "a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b",
    }  # fmt: skip
