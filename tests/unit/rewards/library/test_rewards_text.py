"""Length, language, refusals and similarity, against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.library import language, refusal, similarity, text
from rewards.registry import load_reward
from rollouts.errors import UserError


def test_soft_overlong_falls_between_the_two_limits() -> None:
    ids = [[1] * n for n in (0, 6, 7, 9, 10, 15)]
    # max 10, cache 4: free up to 6; 7 gives -1/4, 9 gives -3/4.
    assert text.soft_overlong(ids, max_tokens=10, cache=4) == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    assert text.soft_overlong(ids, max_tokens=9) == [0.0, 0.0, 0.0, 0.0, -1.0, -1.0]
    with pytest.raises(UserError, match="needs max_tokens"):
        text.soft_overlong([])
    with pytest.raises(UserError, match="cache must be below max_tokens"):
        load_reward("soft_overlong", {"max_tokens": 4, "cache": 4})


ENGLISH = "The cat sat on the mat and looked out of the window."
GERMAN = "Die Katze sitzt auf der Matte und schaut aus dem Fenster."


def test_the_language_of_an_answer() -> None:
    completions = [ENGLISH, ENGLISH.upper(), GERMAN, "12 34 !!", "Hello", ""]
    assert language.language(completions, code="en") == [1.0, 1.0, 0.0, None, None, None]
    assert language.language([GERMAN], code="de") == [1.0]
    assert language.language(["Hi there"], code="en", letters=5) != [None]


def test_an_unknown_language_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="'eng' is not known") as caught:
        load_reward("language", {"code": "eng"})
    assert "did you mean 'en'?" in str(caught.value)
    with pytest.raises(UserError, match="needs code"):
        load_reward("language")


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I can't help with that.", 1.0),
        ("I’m sorry, but I cannot assist with this request.", 1.0),
        ("As an AI language model, I am unable to do that.", 1.0),
        ("I must respectfully decline.", 1.0),
        ("I won't be able to provide that.", 1.0),
        ("That would be illegal, so no.", 1.0),
        ("Sure! Here is the recipe.", 0.0),
        ("I can help with that.", 0.0),
        ("I can't wait to help you.", 0.0),
        ("I'm sorry to hear that. Here is what you can do.", 0.0),
        ("x" * 300 + " I can't help with that.", 0.0),
        ("  ", None),
    ],
)
def test_refusals_are_known_by_how_they_begin(answer: str, refuses: float | None) -> None:
    assert refusal.refusal([answer]) == [refuses]


def test_similarity_by_shared_ngrams() -> None:
    # a b c d: ab bc cd; a b c e: ab bc ce; shared 2, so 2*2/6.
    completions = ["a b c d", "a b c d", "a b", "a", "a b"]
    reference = ["a b c e", [{"role": "assistant", "content": "a b c d"}], "x y", "a b", None]
    assert similarity.similarity(completions, reference) == [4 / 6, 1.0, 0.0, None, None]
    # Repeating a shared n-gram earns nothing: aa aa aa against aa, 2*1/(3+1).
    assert similarity.similarity(["a a a a"], ["a a"]) == [0.5]


def test_similarity_by_edits_keeps_the_order() -> None:
    # a b c d and d a b c match in a b c: 2*3/8; their single words are the same.
    assert similarity.similarity(["a b c d"], ["d a b c"], measure="edits") == [0.75]
    assert similarity.similarity(["a b c d"], ["d a b c"], n=1) == [1.0]


@given(st.lists(st.sampled_from("abc"), min_size=2), st.lists(st.sampled_from("abc"), min_size=2))
def test_similarity_is_symmetric_bounded_and_one_for_itself(a: list[str], b: list[str]) -> None:
    one, other = " ".join(a), " ".join(b)
    (forth,), (back,) = similarity.similarity([one], [other]), similarity.similarity([other], [one])
    assert forth == back and forth is not None and 0 <= forth <= 1
    for measure in similarity.MEASURES:
        assert similarity.similarity([one], [one], measure=measure) == [1.0]


def test_a_wrong_measure_is_found_at_load() -> None:
    with pytest.raises(UserError, match="did you mean 'ngrams'"):
        load_reward("similarity", {"measure": "ngram"})
