"""A small classifier as a reward: its weights by hand, and the files it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rewards.library.naive_bayes import NaiveBayes, log_odds, words
from rollouts.errors import UserError

DATA = Path(__file__).parents[2] / "data" / "labelled.jsonl"
ROWS = [json.loads(line) for line in DATA.read_text().splitlines()]


def test_words_are_counted_once_and_in_lower_case() -> None:
    assert words("It's LOVELY, lovely 2 day_s") == {"it's", "lovely", "day", "s"}


def test_weights_by_hand() -> None:
    found = log_odds([(words(text), own == "Good") for text, own in map(dict.values, ROWS)])
    # "lovely" is in 2 of 2 good texts and 0 of 1 bad ones: (2 + 1) / 4 against (0 + 1) / 3.
    assert found["lovely"] == pytest.approx(math.log((3 / 4) / (1 / 3)))
    assert found["day"] == pytest.approx(math.log((2 / 4) / (2 / 3)))


def test_a_probability() -> None:
    reward = NaiveBayes(data=str(DATA), positive="Good")
    assert reward(["nothing known"]) == [pytest.approx(2 / 3)]  # two of three texts are good
    odds = math.log(2) + math.log((3 / 4) / (1 / 3))
    assert reward(["Lovely! lovely"]) == [pytest.approx(1 / (1 + math.exp(-odds)))]
    chat = [{"role": "assistant", "content": "dull"}]
    assert reward([chat])[0] < 2 / 3


def test_the_other_label_has_the_rest() -> None:
    good, bad = (NaiveBayes(data=str(DATA), positive=label) for label in ("Good", "Bad"))
    for text in ("lovely day", "dull", ""):
        assert good.probability(text) + bad.probability(text) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": ""}, "needs data"),
        ({"data": "nowhere.jsonl"}, "cannot read its data"),
        ({"positive": "fine"}, "texts with the label 'fine' and texts without"),
        ({"label": "kind"}, "row 1 is not a JSON object with 'text' and 'kind'"),
        ({"smoothing": 0.0}, "smoothing must be above 0"),
    ],
)
def test_what_it_refuses(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        NaiveBayes(**{"data": str(DATA), "positive": "Good", **options})  # type: ignore[arg-type]
    assert words in str(caught.value)
