"""Right answers and right forms, against completions judged by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.library import layout, maths, verifiable
from rewards.registry import load_reward
from rollouts.errors import UserError

CHAT = [{"role": "assistant", "content": "The answer is (B)."}]


def test_a_list_of_answers_accepts_any_of_them() -> None:
    assert verifiable.exact_match(["a", "c", "a"], [["a", "b"], ["a", "b"], []]) == [1.0, 0.0, None]
    assert verifiable.contains(["so b it is"], [("a b", "b")]) == [1.0]


def test_normalised_match_forgives_case_punctuation_and_articles() -> None:
    completions = ["The Eiffel Tower!", "eiffel  tower", "Eiffel Towers", "An answer", "x"]
    answer = ["Eiffel tower", "the Eiffel-Tower"[4:], "Eiffel Tower", "answer", None]
    # "Eiffel-Tower" without its hyphen is one word.
    assert verifiable.normalised_match(completions, answer) == [1.0, 0.0, 0.0, 1.0, None]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (b) ", None),
        ("**C**.", "C"),
        ("The answer is (B).", "B"),
        ("Answer: D", "D"),
        ("A and B are wrong, so the answer is C", "C"),
        ("First I thought the answer is A. The final answer is **D**.", "D"),
        (r"Answer: A, hence \boxed{B}", "B"),
        (r"\boxed{\text{C}}", "C"),
        ("The answer is A or B", None),
        ("Answer: A, B, C or D", None),
        ("A dog", None),
        ("The answer is Banana", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_a_text_settles_on(text: str, letter: str | None) -> None:
    scores = [verifiable.multiple_choice([text], [one])[0] for one in "ABCD"]
    assert scores == [float(one == letter) for one in "ABCD"]


def test_multiple_choice_reads_letters_and_positions() -> None:
    assert verifiable.multiple_choice([CHAT] * 4, ["B", 1, "(b)", None]) == [1.0, 1.0, 1.0, None]
    assert verifiable.multiple_choice(["E"], ["E"], choices="ABCDE") == [1.0]
    with pytest.raises(UserError, match="none of the choices 'ABCD'"):
        verifiable.multiple_choice(["A"], [4])
    with pytest.raises(UserError, match="different capital letters"):
        load_reward("multiple_choice", {"choices": "ABA"})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>so</think><answer>4</answer>", 1.0),
        (" <think>\nso\n</think>\n<answer></answer>\n", 1.0),
        ("<think>so</think> then <answer>4</answer>", 0.0),
        ("<answer>4</answer><think>so</think>", 0.0),
        ("<think>so</think>", 0.0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0.0),
        ("<think>a<answer>4</answer></think>", 0.0),
        ("<think>so<answer>4</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tags_open_and_close_once_and_in_order(text: str, score: float) -> None:
    assert layout.tag_format([text]) == [score]


def test_text_outside_tags_can_be_allowed() -> None:
    text = "So: <a>1</a> and <b>2</b>."
    assert layout.tag_format([text], tags=["a", "b"], only=False) == [1.0]
    assert layout.tag_format([text], tags=["a", "b"]) == [0.0]


@pytest.mark.parametrize("tags", ["think", [], ["a", "a"], ["a b"], [3]])
def test_tags_are_different_names(tags: Any) -> None:
    with pytest.raises(UserError, match="tag"):
        layout.tag_format([], tags=tags)


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"age": 3}', 1.0),
        (' \n{"age": 3}\n', 1.0),
        ('```json\n{"age": 3}\n```', 1.0),
        ('{"age": -1}', 0.0),
        ('{"age": "3"}', 0.0),
        ('{"age": 3, "b": 1}', 0.0),
        ('Here: {"age": 3}', 0.0),
        ('{"age": 3', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_fits_its_schema(text: str, score: float) -> None:
    assert layout.json_schema([text], schema=SCHEMA) == [score]


def test_json_is_strict_about_fences_and_constants() -> None:
    assert layout.json_schema(['```json\n{"age": 3}\n```'], schema=SCHEMA, fence=False) == [0.0]
    assert layout.json_schema(["NaN", "1.5"], schema={"type": "number"}) == [0.0, 1.0]


def test_a_wrong_schema_is_found_at_load() -> None:
    with pytest.raises(UserError, match="no JSON Schema") as caught:
        load_reward("json_schema", {"schema": {"properties": {"a": {"type": "text"}}}}, "rewards.0")
    assert "properties/a/type" in str(caught.value)
    with pytest.raises(UserError, match="needs schema"):
        load_reward("json_schema")


def test_a_schema_fetches_nothing() -> None:
    remote = {"$ref": "http://127.0.0.1:9/schema.json"}
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        layout.json_schema(["1"], schema=remote)


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("42", "42", 1.0),
        ("so it is 42.", 42, 1.0),
        ("#### 1,000", "1000", 1.0),
        (r"The answer is $\frac{2}{4}$", "0.5", 1.0),
        (r"\boxed{\frac{1}{2}}", "1/2", 1.0),
        (r"\boxed{2x + 1}", "1+2x", 1.0),
        (r"$x \in \{1, 2\}$", r"$\{2, 1\}$", 1.0),
        (r"\boxed{41}", "42", 0.0),
        (r"First 42, then \boxed{41}", "42", 0.0),
        ("no idea", "42", 0.0),
        ("", "42", 0.0),
        ("42", None, None),
    ],
)
def test_numbers_and_expressions_are_compared_by_value(text: str, answer: Any, score: Any) -> None:
    assert maths.math_answer([text], [answer]) == [score]


def test_only_the_end_of_an_endless_answer_is_read() -> None:
    text = "x = 1 + 1. " * 20_000 + r"\boxed{7}"
    assert maths.math_answer([text], ["7"]) == [1.0]
    assert maths.math_answer(["7 " + "." * 50], ["7"], last=20) == [0.0]
