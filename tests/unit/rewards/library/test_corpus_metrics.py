"""Corpus metrics: counts by hand, equality with seqeval and sacrebleu, and what they refuse."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from rewards.library.corpus.formulas import (
    ASPECTS,
    F1,
    FORMULAS,
    BleuFormula,
    ChrfFormula,
    EditScore,
    formula_from,
)
from rewards.library.corpus.names import CORPUS_METRICS
from rewards.registry import REWARDS, corpus_metric
from rollouts.errors import UserError

# The example of sacrebleu's README, with one reference more than answer 2 needs.
ANSWERS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
# The example of seqeval's README.
TAGS = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
TAGGED = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]


def metric(name: str, **options: Any) -> Any:
    found = corpus_metric(name, options)
    assert found is not None
    return found


def value(of: Any, answers: list[str], right: list[Any], **columns: Any) -> float:
    """Return the value of all answers together."""
    return float(of.formula.value(np.array(of.counts(answers, right, **columns))))


def test_every_corpus_metric_is_a_reward_of_a_known_formula() -> None:
    for name in CORPUS_METRICS:
        assert metric(name).formula.name in FORMULAS
        assert REWARDS[name].range == (0.0, 1.0)
    assert corpus_metric("exact_match", {}) is None


@pytest.mark.parametrize("formula", [F1(), BleuFormula(), ChrfFormula(beta=3.0), EditScore()])
def test_a_formula_comes_back_from_its_content(formula: Any) -> None:
    assert formula_from(formula.content) == formula


# by hand


def test_spans_count_where_type_and_both_ends_are_right() -> None:
    spans = metric("span_f1")
    rows = [
        ("O B-PER I-PER", "B-PER I-PER O", (0.0, 1.0, 1.0)),  # one word off
        ("B-LOC O", "B-PER O", (0.0, 1.0, 1.0)),  # another type
        ("B-PER O B-LOC", "B-PER O O", (1.0, 1.0, 0.0)),
        ("Ada is here", "B-PER O O", (0.0, 0.0, 1.0)),  # no tags
        ("", "O O", (0.0, 0.0, 0.0)),
        ("B-PER B-PER", "B-PER", (1.0, 1.0, 0.0)),  # a tag too many
    ]
    answers, right, counts = map(list, zip(*rows, strict=True))
    assert spans.counts(answers, right) == counts
    assert spans(answers, right) == pytest.approx([0.0, 0.0, 2 / 3, 0.0, 1.0, 2 / 3])
    assert value(spans, answers, right) == pytest.approx(2 * 2 / (2 * 2 + 4 + 3))
    assert spans.counts(["B-PER"], [None]) == [(0.0, 0.0, 0.0)]
    assert spans(["B-PER"], [None]) == [None]


def test_a_scheme_demands_how_spans_begin() -> None:
    # Leniently "I-PER I-PER" is a span; in IOB2 nothing begins it.
    assert metric("span_f1").counts(["I-PER I-PER"], ["B-PER I-PER"]) == [(1.0, 0.0, 0.0)]
    assert metric("span_f1", scheme="IOB2").counts(["I-PER I-PER"], ["B-PER I-PER"]) == [
        (0.0, 0.0, 1.0)
    ]
    assert metric("span_f1", scheme="BILOU").counts(["B-PER L-PER U-LOC"], ["B-PER L-PER O"]) == [
        (1.0, 1.0, 0.0)
    ]


def test_triples_are_compared_as_sets() -> None:
    triples = metric("triple_f1")
    right = [["Ada", "born in", "London"], ["Ada", "wrote", "Notes"]]
    answer = "ada |  born in | london\nAda | wrote | Songs\nada | born in | London\nAda likes tea"
    assert triples.counts([answer], [right]) == [(1.0, 2.0, 1.0)]
    assert triples([answer], [right]) == [pytest.approx(2 / 5)]
    as_json = '[["Ada", "born in", "London"], ["Ada", "wrote", "Notes"]]'
    assert triples([as_json], ["Ada|born in|London\nAda|wrote|Notes"]) == [1.0]
    assert metric("triple_f1", parts=2)(["Ada | PER"], [[["Ada", "PER"]]]) == [1.0]
    for broken in ("[broken", "[" * 100_000, f"[[{'[' * 900}{']' * 900}]]", f"[[{'9' * 9000}]]"):
        assert triples([broken], [right]) == [0.0]
    assert triples([""], [[]]) == [1.0]


def test_edit_success_is_the_harmonic_mean_over_what_is_asked() -> None:
    edits = metric("edit_success")
    aspects = ["efficacy", "efficacy", "generality", "generality", "locality", "locality"]
    answers = ["Rome.", "Rome", "Rome", "Paris", "Oslo", "Oslo"]
    right = ["Rome", "rome", "Rome", "Rome", ["Oslo", "Bergen"], "Oslo"]
    assert edits(answers, right, aspects) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    # Shares 1, 1/2 and 1; nobody asks for portability.
    assert value(edits, answers, right, aspect=aspects) == pytest.approx(3 / (1 + 2 + 1))
    totals = np.array(edits.counts(answers, right, aspects)).sum(axis=0)
    assert edits.formula.figures(totals) == {"efficacy": 1.0, "generality": 0.5, "locality": 1.0}
    answers[2] = "Paris"
    assert value(edits, answers, right, aspect=aspects) == 0.0
    assert metric("edit_success", match="contains")(["It is Rome"], ["Rome"], ["efficacy"]) == [1.0]
    assert edits(["a"], [None], ["locality"]) == [None]
    assert ASPECTS == ("efficacy", "generality", "locality", "portability")


def test_bleu_by_hand() -> None:
    # "a b c d e" of "a b c d f": 4/5, 3/4, 2/3, 1/2 of the n-grams, no brevity penalty.
    bleu = metric("bleu", tokenize="none")
    assert bleu.counts(["a b c d e"], ["a b c d f"]) == [(5, 5, 4, 3, 2, 1, 5, 4, 3, 2)]
    assert value(bleu, ["a b c d e"], ["a b c d f"]) == pytest.approx(
        (4 * 3 * 2 / (5 * 4 * 3 * 2)) ** 0.25
    )
    # Pooled counts are no mean: an empty answer costs brevity alone, exp(1 - 10 / 5).
    both = value(bleu, ["a b c d e", ""], ["a b c d f", "g h i j k"])
    assert both == pytest.approx((4 * 3 * 2 / (5 * 4 * 3 * 2)) ** 0.25 * np.exp(-1.0))
    assert bleu(["a b c d e", ""], ["a b c d f", "g h i j k"])[1] == 0.0


# equality with the libraries


def test_spans_are_those_of_seqeval() -> None:
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    assert (
        value(metric("span_f1"), TAGGED, TAGS) == f1_score(TAGS, [t.split() for t in TAGGED]) == 0.5
    )
    strict = metric("span_f1", scheme="IOB2")
    random = np.random.default_rng(5)
    for _ in range(20):
        right = [[str(t) for t in random.choice(["O", "B-A", "I-A", "B-B"], 9)] for _ in range(4)]
        tags = [[str(t) for t in random.choice(["O", "B-A", "I-A", "I-B"], 9)] for _ in range(4)]
        answers = [" ".join(row) for row in tags]
        assert value(metric("span_f1"), answers, right) == pytest.approx(f1_score(right, tags))
        expected = f1_score(right, tags, mode="strict", scheme=IOB2)
        assert value(strict, answers, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bleu", {}),
        ("bleu", {"tokenize": "char", "lowercase": True}),
        ("chrf", {}),
        ("chrf", {"word_order": 2, "beta": 3, "char_order": 4}),
    ],
)
@pytest.mark.parametrize(
    "answers", [ANSWERS, ["The dog.", "No.", "xyz"], ["zzz", "yyy", "xxx"], ["", "", ""]]
)
def test_translations_score_as_by_sacrebleu(
    name: str, options: dict[str, Any], answers: list[str]
) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    library = {"bleu": BLEU, "chrf": CHRF}[name]
    streams = [list(column) for column in zip(*REFERENCES, strict=True)]
    expected = library(**options).corpus_score(answers, streams).score
    own = metric(name, **options)
    assert 100 * value(own, answers, REFERENCES) == pytest.approx(expected, abs=1e-9)
    alone = library(**options, **({"effective_order": True} if name == "bleu" else {}))
    for answer, references, score in zip(
        answers, REFERENCES, own(answers, REFERENCES), strict=True
    ):
        assert 100 * score == pytest.approx(alone.sentence_score(answer, references).score)


def test_sacrebleus_own_example_has_its_known_scores() -> None:
    assert round(100 * value(metric("bleu"), ANSWERS, REFERENCES), 2) == 48.53
    assert round(100 * value(metric("chrf"), ANSWERS, REFERENCES), 2) == 59.73


# refused


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("span_f1", {"scheme": "IOB3"}, "scheme 'IOB3' is not known"),
        ("triple_f1", {"parts": 1}, "parts must be a whole number of at least 2"),
        ("bleu", {"tokenize": "13b"}, "tokenize '13b' is not known"),
        ("chrf", {"beta": 0}, "beta must be a number above 0"),
        ("edit_success", {"match": "fuzzy"}, "match 'fuzzy' is not known"),
    ],
)
def test_wrong_options_are_refused_before_a_run(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        metric(name, **options)
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("name", "package"), [("span_f1", "seqeval"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")]
)
def test_a_missing_package_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(sys.modules):
        if module.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=package) as caught:
        metric(name)
    assert "keel-align[metrics]" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("span_f1", {"answer": ["B-PER person"]}, "'person', which is no tag"),
        ("triple_f1", {"answer": [[["a", "b"]]]}, "2 parts"),
        ("edit_success", {"answer": ["a"], "aspect": ["speed"]}, "'aspect' holds 'speed'"),
    ],
)
def test_a_reference_that_cannot_be_read_is_named(
    name: str, columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        metric(name)(["a"], **columns)
    assert said in caught.value.what
