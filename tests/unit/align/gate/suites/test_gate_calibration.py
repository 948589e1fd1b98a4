"""Calibration suites: Brier scores and calibration errors by hand, refused rows, and a whole round."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.checks import check
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.measurement.reuse import joined, rest_of
from align.gate.statistics.sequential import stopping
from align.gate.suites.kinds.calibration import (
    ACCURACY,
    CALIBRATION_ERROR,
    CalibrationSuite,
    brier,
    figures,
)
from align.gate.suites.suites import build_suites
from align.report.explanation.explain import explain
from align.report.status import plain, status_of
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder
from tests.unit.align.gate.suites.test_gate_suites import ENCODER, ROUND, SCHEMES
from tests.unit.align.gate.suites.test_gate_suites import campaign as suites_campaign
from tests.unit.campaigns import ENFORCE, Starter, Watcher, rounds
from tests.unit.campaigns import campaign as small
from tests.unit.chats import IDS, build

ROWS: list[dict[str, Any]] = [
    {"prompt": "rev _ 1 2 =", "choices": ["2 1", "1 2", "3"], "answer": 0},
    {"prompt": "rev _ 3 4 =", "choices": ["3 4", "4 3"], "answer": 1},
    {"prompt": "rev _ 5 6 =", "choices": ["6 5", "5", "6"], "answer": 0},
]


def spec(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, **settings: Any) -> dict[str, Any]:
    """Write rows to a file and return a suite of them all; settings are those of ``calibration``."""
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(path), **settings}
    return {"name": "facts", "calibration": source, "items": max(1, len(rows)), "margin": 0.1}


def suite(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    encoder: PromptEncoder = ENCODER,
    context: int | None = None,
    **settings: Any,
) -> CalibrationSuite:
    config = suites_campaign([ROUND], [spec(folder, rows, **settings)])
    (facts, _) = build_suites(config, SCHEMES, encoder, context)
    assert isinstance(facts, CalibrationSuite)
    return facts


def engine(suite: CalibrationSuite, *items: Sequence[float]) -> ScriptedEngine:
    """Return an engine under which the choices of every item have these likelihoods."""
    known = {
        (item.prompt_ids, ids): math.log(likelihood) if likelihood else -math.inf
        for item, likelihoods in zip(suite.choice_items, items, strict=True)
        for ids, likelihood in zip(item.choice_ids, likelihoods, strict=True)
    }

    def score(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]) -> Sequence[float]:
        return [known[prompt_ids, completion_ids], *(0.0 for _ in completion_ids[1:])]

    return ScriptedEngine(lambda ids, seed: ((), ()), scorer=score)


def measured(suite: CalibrationSuite, *items: Sequence[float]) -> ItemResults:
    return evaluate(engine(suite, *items), [suite], ENCODER, "snap", seed=0)[suite.name]


# numbers by hand


@pytest.mark.parametrize(
    ("probabilities", "right", "score"),
    [
        ([1.0, 0.0], 0, 0.0),
        ([1.0, 0.0], 1, 2.0),
        ([0.5, 0.5], 0, 0.5),
        ([0.5, 0.25, 0.25], 0, 0.25 + 2 * 0.0625),
        ([0.2, 0.3, 0.5], 1, 0.04 + 0.49 + 0.25),
    ],
)
def test_brier_scores_by_hand(probabilities: list[float], right: int, score: float) -> None:
    assert brier(probabilities, right) == pytest.approx(score, abs=1e-15)


def test_an_item_is_its_negated_brier_score_of_the_choices_alone(tmp_path: Path) -> None:
    """Likelihoods .02, .01 and .01 are probabilities one half, a quarter and a quarter."""
    results = measured(suite(tmp_path), (0.02, 0.01, 0.01), (0.3, 0.1), (0.5, 0.5, 0.0))
    assert results.values == pytest.approx((-0.375, -(2 * 0.75**2), -0.5))
    assert results.probabilities[1] == pytest.approx((0.25, 0.75)), "the right one first"
    assert results.answers == ("2 1 (50%)", "3 4 (75%)", "6 5 (50%)")
    # Right, wrong, and a tie of two of which one is right.
    assert results.beside[ACCURACY] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("bins", "error"),
    [
        (1, abs(2 - 2.8) / 4),  # One bin: accuracy .5 against a mean confidence of .7.
        (2, (abs(1 - 0.5) + abs(1 - 2.3)) / 4),  # (0, .5] holds .5; (.5, 1] holds .6, .7 and 1.
        (10, (abs(1 - 0.5) + abs(1 - 0.6) + 0.7 + 1.0) / 4),  # Each by itself.
    ],
)
def test_calibration_errors_by_hand(bins: int, error: float) -> None:
    items = [(0.5, 0.3, 0.2), (0.6, 0.4), (0.3, 0.7), (0.0, 1.0)]
    found = figures(items, bins)
    assert found == {ACCURACY: 0.5, CALIBRATION_ERROR: pytest.approx(error)}


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    items = [(0.75, 0.25)] * 3 + [(0.25, 0.75)]
    assert figures(items, 15) == {ACCURACY: 0.75, CALIBRATION_ERROR: 0.0}
    assert figures([], 15) == figures([()], 15) == {}


@pytest.mark.parametrize(
    ("normalise", "lengths"), [("none", (1, 1, 1)), ("tokens", (2, 2, 1)), ("bytes", (3, 3, 1))]
)
def test_choices_are_compared_by_their_length(
    tmp_path: Path, normalise: str, lengths: tuple[int, ...]
) -> None:
    facts = suite(tmp_path, ROWS[:1], normalise=normalise)
    assert [len(ids) for ids in facts.choice_items[0].choice_ids] == [2, 2, 1]
    weights = [p ** (1 / length) for p, length in zip((0.2, 0.1, 0.1), lengths, strict=True)]
    results = measured(facts, (0.2, 0.1, 0.1))
    assert results.probabilities[0] == pytest.approx([w / sum(weights) for w in weights])


# what must not matter


def test_the_order_of_choices_does_not_matter(tmp_path: Path) -> None:
    turned = [
        {**row, "choices": row["choices"][::-1], "answer": len(row["choices"]) - 1 - row["answer"]}
        for row in ROWS
    ]
    likelihoods = [(0.02, 0.03, 0.05), (0.3, 0.1), (0.5, 0.2, 0.3)]
    first = suite(tmp_path)
    one = measured(first, *likelihoods)
    second = suite(tmp_path, turned)
    other = measured(second, *(item[::-1] for item in likelihoods))
    assert other.values == pytest.approx(one.values)
    assert other.beside == pytest.approx(one.beside)
    assert first.hash != second.hash, "its items are others"


def test_a_likelihood_that_all_choices_share_does_not_matter(tmp_path: Path) -> None:
    facts = suite(tmp_path, ROWS[:1])
    one, tiny = (measured(facts, [scale * p for p in (0.2, 0.3, 0.5)]) for scale in (1.0, 1e-200))
    assert tiny.values == pytest.approx(one.values)


def test_figures_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    facts = suite(tmp_path, bins=1)
    whole = measured(facts, (0.9, 0.05, 0.05), (0.8, 0.2), (0.4, 0.3, 0.3))
    part, rest = facts.part([0, 2]), facts.part([1])
    first = measured(part, (0.9, 0.05, 0.05), (0.4, 0.3, 0.3))
    second = measured(rest, (0.8, 0.2))
    assert rest_of(facts, [first]) == rest
    together = joined(facts, [second, first], facts.hash)
    assert together == whole
    assert together.beside == pytest.approx(whole.beside)
    mean = (2 * first.beside[CALIBRATION_ERROR] + second.beside[CALIBRATION_ERROR]) / 3
    assert together.beside[CALIBRATION_ERROR] != pytest.approx(mean)


def test_the_hash_follows_what_decides_a_value_and_nothing_else(tmp_path: Path) -> None:
    first = suite(tmp_path).hash
    assert suite(tmp_path, bins=3).hash == first
    assert suite(tmp_path, [{**row, "note": "x"} for row in ROWS]).hash == first
    changed = [
        suite(tmp_path, normalise="tokens"),
        suite(tmp_path, [{**ROWS[0], "answer": 1}, *ROWS[1:]]),
        suite(tmp_path, [{**ROWS[0], "choices": ["2 1", "1 2", "4"]}, *ROWS[1:]]),
        suite(tmp_path, [{**ROWS[0], "prompt": "rev _ 2 2 ="}, *ROWS[1:]]),
    ]
    assert len({first, *(s.hash for s in changed)}) == 5


# results and the gate


def test_results_come_back_from_disk(tmp_path: Path) -> None:
    results = measured(suite(tmp_path), (0.9, 0.05, 0.05), (0.8, 0.2), (0.4, 0.3, 0.3))
    results.save(tmp_path / "r.parquet")
    again = ItemResults.load(tmp_path / "r.parquet")
    assert again == results
    assert (again.beside, again.probabilities) == (results.beside, results.probabilities)
    assert CalibrationSuite.side_sentence(again) == (
        "accuracy 66.7%, expected calibration error 0.500 on 3 items"
    )
    with pytest.raises(ValueError, match="probabilities of every item, or of none"):
        replace(results, probabilities=((1.0,),))


def test_an_item_without_any_probability_failed(tmp_path: Path) -> None:
    facts = suite(tmp_path)
    results = measured(facts, (0.0, 0.0, 0.0), (0.2, 0.8), (0.4, 0.3, 0.3))
    assert results.statuses == ("failed", "scored", "scored")
    assert results.values[0] == min(results.values)
    with pytest.raises(RunError, match="none of the 3 items") as caught:
        measured(facts, (0.0, 0.0, 0.0), (0.0, 0.0), (0.0, 0.0, 0.0))
    assert caught.value.cause == "no choice has a probability"


def test_the_gate_compares_brier_scores_within_their_range(tmp_path: Path) -> None:
    rows = [{"prompt": f"rev _ {i} =", "choices": ["1", "2"], "answer": 0} for i in range(10)]
    rows += [{"prompt": f"copy _ {i} =", "choices": ["1", "2"], "answer": 1} for i in range(10)]
    rows += [{"prompt": f"rev _ {i} {i} =", "choices": ["1", "2"], "answer": 1} for i in range(10)]
    facts = suite(tmp_path, rows)
    assert stopping(facts).early is not None, "its range is known, so it may stop early"
    before, after = (
        replace(measured(facts, *[(p, 1 - p)] * 30), snapshot=name)
        for name, p in (("parent", 0.5), ("candidate", 0.25))
    )
    rule = facts.rule
    assert rule.value_range == (-2.0, 0.0)
    found = check(rule, after, before, role="retention", against="parent", margin=0.1, alpha=0.05)
    assert found.test == "bounded"
    # A third is right about "1": 20 items gain .5 - .125, 10 lose 1.125 - .5.
    assert found.difference == pytest.approx((20 * 0.375 - 10 * 0.625) / 30)
    assert (found.won, found.lost) == (20, 10)
    assert "of Brier score gained" in found.sentence
    assert not facts.rule.demands.truncation_margin and not facts.rule.demands.failure_margin


# refused before anything starts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ["2 1"]}, "has 1 choice, at least 2 are needed"),
        ({"choices": []}, "has 0 choices, at least 2"),
        ({"choices": "2 1"}, "holds a str, expected a list of texts"),
        ({"choices": ["1", 2]}, "choice 1 is a int, expected a text: 2"),
        ({"choices": ["1", None]}, "choice 1 is a NoneType"),
        ({"choices": ["1", "2", "1"]}, "choices 0 and 2 are the same: '1'"),
        ({"choices": ["1 2", "1  2"]}, "choices 0 and 1 are the same tokens"),
        ({"choices": ["1", ""]}, "choice 1 has no tokens: ''"),
        ({"choices": ["1", "  "]}, "choice 1 has no tokens"),
        ({"answer": 3}, "the answer is 3, and the item has choices 0 to 2"),
        ({"answer": -1}, "the answer is -1"),
        ({"answer": True}, "the answer is True, expected the index"),
        ({"answer": "1 2"}, "the answer is '1 2', expected the index"),
        ({"answer": 1.0}, "the answer is 1.0, expected the index"),
        ({"answer": None}, "the answer is None"),
        ({"prompt": "  "}, "the prompt in column 'prompt' is empty"),
        ({"prompt": 7}, "holds a int, expected text or messages"),
    ],
)
def test_bad_rows_are_named_by_their_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        suite(tmp_path, [ROWS[1], {**ROWS[0], **change}])
    assert said in caught.value.what
    assert str(caught.value.where).endswith(f"{tmp_path / 'facts.jsonl'}:2")


@pytest.mark.parametrize("column", ["choices", "answer", "prompt"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in ROWS[0].items() if name != column}
    with pytest.raises(UserError, match=f"no column '{column}'") as caught:
        suite(tmp_path, [{**row, f"{column}s": 0}])
    assert str(caught.value.where).endswith(f"{tmp_path / 'facts.jsonl'}:1")
    assert f"did you mean '{column}s'" in (caught.value.remedy or "")


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"item": "rev _ 1 =", "options": ["1", "2"], "label": 1}]
    facts = suite(tmp_path, rows, column="item", choices="options", answer="label")
    assert facts.choice_items[0].right == 1


def test_rows_that_come_twice_and_files_that_are_too_short_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 1 items twice: .*:3 is .*:1"):
        suite(tmp_path, [*ROWS[:2], ROWS[0]])
    with pytest.raises(UserError, match=r"asks for 4 items and .* has 3"):
        build_suites(suites_campaign([ROUND], [{**spec(tmp_path), "items": 4}]), SCHEMES, ENCODER)


def test_an_item_that_is_trained_on_or_too_long_is_refused(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"prompt": ROWS[1]["prompt"], "answer": "1"}) + "\n")
    own = {"items": 20, "prompts": "demo://rev?n=50&seed=3"}
    config = suites_campaign([{**ROUND, "prompts": str(train), "suite": own}], [spec(tmp_path)])
    with pytest.raises(UserError, match="shares 1 of its 3 items"):
        build_suites(config, SCHEMES, ENCODER)
    rows = [ROWS[0], {**ROWS[1], "prompt": "rev _ " + "3 4 " * 60 + "="}]
    with pytest.raises(UserError, match=r"take 126 tokens, the engines hold 100") as caught:
        suite(tmp_path, rows, context=100)
    assert str(caught.value.where).endswith(f"{tmp_path / 'facts.jsonl'}:2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 1.0}, "samples nothing; remove temperature"),
        ({"samples": 2, "temperature": 1.0}, "samples nothing; remove temperature"),
        ({"max_tokens": 4}, "samples nothing; remove max_tokens"),
        ({"range": [0, 1]}, "samples nothing; remove range"),
        ({"zero_tolerance": "all"}, "samples nothing; remove zero_tolerance"),
        ({"truncation_margin": 0.1}, "samples nothing; remove truncation_margin"),
        ({"metric": "exact_match"}, "text and calibration take none"),
        ({"text": "a.txt"}, "set exactly one"),
        ({"rotate": {}}, "rotate is for suites of prompts"),
        ({"against": "base"}, "against is for suites of prompts"),
        ({"calibration": {"source": "a.jsonl", "heldout": 0.1}}, "heldout is 0.1"),
        ({"calibration": "demo://rev"}, "holds prompts and no choices"),
        (
            {"calibration": {"source": "a.jsonl", "normalise": "words"}},
            "'none', 'tokens' or 'bytes'",
        ),
        ({"calibration": {"source": "a.jsonl", "bins": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_of_other_suites_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        suites_campaign(suites=[{"name": "facts", "calibration": "facts.jsonl", **change}])


def test_a_campaign_without_such_a_suite_has_the_content_that_it_always_had() -> None:
    assert "calibration" not in suites_campaign().content()["suites"][0]
    config = suites_campaign(suites=[{"name": "facts", "calibration": "facts.jsonl"}])
    assert config.content()["suites"][0]["calibration"]["source"].endswith("facts.jsonl")


# chats


def test_a_choice_of_a_chat_is_the_assistants_turn_without_its_end(tmp_path: Path) -> None:
    encoder = PromptEncoder(build())
    rows = [{"prompt": "a", "choices": ["b c", "d"], "answer": 0}]
    chat = suite(tmp_path, rows, encoder, chat=True, system="be brief")
    item = chat.choice_items[0]
    words = "<|im_start|> system be brief <|im_end|> <|im_start|> user a <|im_end|> <|im_start|> assistant"
    assert item.prompt_ids == tuple(IDS[word] for word in words.split())
    assert item.choice_ids == ((IDS["b"], IDS["c"]), (IDS["d"],))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]
    same = suite(tmp_path, [{**rows[0], "prompt": messages}], encoder)
    assert same.choice_items == chat.choice_items
    plain = suite(tmp_path, rows, encoder)
    assert plain.choice_items[0].prompt_ids == (IDS["a"],)
    with pytest.raises(UserError, match="choice 1 has no tokens") as caught:
        suite(tmp_path, [{**rows[0], "choices": ["b", ""]}], encoder, chat=True)
    assert str(caught.value.where).endswith(f"{tmp_path / 'facts.jsonl'}:1")


# a whole round


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Watcher]:
    """One round with a calibration suite that decides, on the tiny model."""
    folder = tmp_path_factory.mktemp("calibration")
    rows = [
        {
            "prompt": f"max _ {i} {j} =",
            "choices": [str(max(i, j)), str(min(i, j))],
            "answer": 0,
        }
        for i in range(10)
        for j in range(i)
    ]
    watcher = Watcher()
    config = small(
        folder, suites=[{**spec(folder, rows), "margin": 0.5, "budget": 0.8}], rounds=rounds({}),
        gate=ENFORCE,
    )  # fmt: skip
    run_campaign(config, start_engine=Starter(), observer=watcher)
    return config, watcher


def test_a_round_is_judged_by_it(ran: tuple[CampaignConfig, Watcher]) -> None:
    from align.gate.evidence import stored_evidence

    config, watcher = ran
    verdict = watcher.verdicts["round0"].verdict
    (found,) = (c for c in verdict.checks if c.suite == "facts" and c.what == "value")
    assert (found.test, found.n, found.role) == ("bounded", 45, "retention")
    notes = [note for note in watcher.notes if " on facts: accuracy " in note]
    assert len(notes) == 2, "the base and the candidate"
    assert all("expected calibration error 0." in note for note in notes)
    evidence = stored_evidence(config)
    again, recorded = evidence.recompute("round0")
    assert again.to_json() == recorded.to_json() == verdict.to_json()
    means = {e.snapshot: e.mean for e in evidence.ledger.evaluations() if e.suite == "facts"}
    assert all(-2.0 < mean < 0.0 for mean in means.values())


def test_its_figures_stand_in_the_explanation_and_the_status(
    ran: tuple[CampaignConfig, Watcher],
) -> None:
    from align.gate.evidence import stored_evidence

    told = explain(stored_evidence(ran[0]), "round0")
    (story,) = (story for story in told.suites if story.suite == "facts")
    assert story.beside.startswith("accuracy ")
    rows = plain(status_of(stored_evidence(ran[0])))["matrix"]
    assert [row["round"] for row in rows] == ["base", "round0"]
    for row in rows:
        assert set(row["figures"]) == {"facts"}
        assert set(row["figures"]["facts"]) == {ACCURACY, CALIBRATION_ERROR}
