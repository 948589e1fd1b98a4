"""Corpus suites: the value of pooled counts, checks by the paired bootstrap, and a whole round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.checks import check
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.measurement.reuse import joined, rest_of
from align.gate.statistics.comparison import variance_of
from align.gate.statistics.sequential import stopping
from align.gate.strict import rate_checks
from align.gate.suites.kinds import kind_of
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.kinds.corpus import CorpusSuite
from align.gate.suites.suites import build_suites
from align.report.explanation.explain import explain
from align.report.status import plain, status_of
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import UserError
from tests.unit.align.gate.suites.test_gate_suites import ENCODER, EOS, ROUND, SCHEMES
from tests.unit.align.gate.suites.test_gate_suites import campaign as suites_campaign
from tests.unit.campaigns import ENFORCE, Starter, Watcher, rounds
from tests.unit.campaigns import campaign as small

TRIPLE = {"name": "triple_f1", "options": {"parts": 2, "separator": "="}}
"""Pairs of digits around a sign that the tiny model's tokenizer knows."""


def suite(folder: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> CorpusSuite:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"name": "facts", "prompts": str(path), "metric": TRIPLE, "items": len(rows)}
    config = suites_campaign([ROUND], [{**entry, **settings}])
    facts = build_suites(config, SCHEMES, ENCODER)[0]
    assert isinstance(facts, CorpusSuite)
    return facts


def measured(facts: CorpusSuite, answers: Sequence[str], snapshot: str = "parent") -> ItemResults:
    """Return the results of an engine that gives these answers; None fails."""
    said = {
        ENCODER.encode(prompt): (*ENCODER.tokenizer(answer).input_ids, EOS)
        for prompt, answer in zip(facts.prompts, answers, strict=True)
    }
    engine = ScriptedEngine(
        lambda ids, seed: (said[ids], [0.0] * len(said[ids])), eos_ids=ENCODER.eos_ids
    )
    return evaluate(engine, [facts], ENCODER, snapshot, 0)["facts"]


def rows_of(number: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"max _ {i // 10} {i % 10} =", "answer": f"{i % 10} = {i // 10}", "half": i % 2}
        for i in range(number)
    ]


def test_its_value_is_that_of_all_counts_and_its_items_keep_theirs(tmp_path: Path) -> None:
    rows = [
        {"prompt": "max _ 1 =", "answer": ["1 = 2"]},
        {"prompt": "max _ 2 =", "answer": [["3", "4"], ["5", "6"], ["7", "8"]]},
    ]
    results = measured(suite(tmp_path, rows), ["1 = 2", "3 = 5"])
    assert results.counts == ((1.0, 0.0, 0.0), (0.0, 1.0, 3.0))
    assert results.values == (1.0, 0.0)
    # 2 / (2 + 1 + 3), where the mean of the items' own values is one half.
    assert results.mean == pytest.approx(1 / 3)
    assert results.beside == {"precision": 0.5, "recall": 0.25}
    assert not results.is_pass_fail
    results.save(tmp_path / "r.parquet")
    again = ItemResults.load(tmp_path / "r.parquet")
    assert again == results and again.mean == results.mean and again.formula == results.formula
    with pytest.raises(ValueError, match="a formula and counts of every item"):
        replace(results, formula=None)


def test_several_answers_to_a_prompt_are_pooled(tmp_path: Path) -> None:
    facts = suite(tmp_path, rows_of(1), samples=2, temperature=1.0)
    turns = iter(["0 = 0", "1 = 1"])

    def script(ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        said = (*ENCODER.tokenizer(next(turns)).input_ids, EOS)
        return said, [0.0] * len(said)

    engine = ScriptedEngine(script, eos_ids=ENCODER.eos_ids)
    results = evaluate(engine, [facts], ENCODER, "base", 0)["facts"]
    assert results.counts == ((0.5, 0.5, 0.5),)
    assert results.mean == 0.5


def test_parts_join_to_the_value_of_the_whole(tmp_path: Path) -> None:
    facts = suite(tmp_path, rows_of(20))
    answers = [row["answer"] if i % 3 else "9" for i, row in enumerate(rows_of(20))]
    whole = measured(facts, answers)
    first = measured(facts.part(range(7)), answers[:7])
    rest = rest_of(facts, [first])
    assert isinstance(rest, CorpusSuite)
    together = joined(facts, [first, measured(rest, answers[7:])])
    assert together == whole and together.beside == whole.beside
    assert together.mean == whole.mean != first.mean


def test_the_gate_compares_by_the_bootstrap_and_says_the_unit(tmp_path: Path) -> None:
    facts = suite(tmp_path, rows_of(60))
    assert stopping(facts).early is None, "bets are for means"
    right = [row["answer"] for row in rows_of(60)]
    before = measured(facts, right)
    after = measured(facts, ["9", *right[1:]], "candidate")
    rule = facts.rule
    assert (rule.kind, rule.unit, kind_of(rule)) == ("corpus", "of F1", CorpusSuite)
    held = check(rule, after, before, role="retention", against="parent", margin=0.2, alpha=0.05)
    assert (held.test, held.outcome, held.lost, held.won) == ("bootstrap", "passed", 1, 0)
    assert held.difference == after.mean - before.mean == pytest.approx(2 * 59 / 120 - 1, abs=0.01)
    assert "of F1 lost against parent (1 lost, 0 won of 60" in held.sentence
    tight = check(rule, after, before, role="retention", against="parent", margin=0.02, alpha=0.05)
    assert tight.outcome == "too_few_items" or tight.outcome == "regressed"
    assert tight.needed is not None and tight.needed > 60
    assert held == check(
        rule, after, before, role="retention", against="parent", margin=0.2, alpha=0.05
    )
    assert variance_of(after, before) > 0.0
    rates = list(rate_checks(rule, after, {"parent": before}, alpha=0.05))
    assert {rate.test for rate in rates} == {"tango"}, "shares of answers are means as ever"


def test_clusters_widen_the_interval(tmp_path: Path) -> None:
    rows = [{**row, "half": i // 2} for i, row in enumerate(rows_of(80))]
    right = [row["answer"] for row in rows]
    wrong = [answer if i // 2 % 8 else "9" for i, answer in enumerate(right)]
    ends = []
    for settings in ({}, {"cluster": "half"}):
        facts = suite(tmp_path, rows, **settings)
        before, after = measured(facts, right), measured(facts, wrong, "candidate")
        compared = check(
            facts.rule, after, before, role="retention", against="parent", margin=0.25, alpha=0.05
        )
        ends.append(compared)
    alone, clustered = ends
    assert clustered.clusters == 40 and clustered.p > alone.p
    assert clustered.interval[0] < alone.interval[0]
    assert clustered.difference == alone.difference


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("span_f1", "corpus"),
        ({"name": "bleu", "options": {"tokenize": "none"}}, "corpus"),
        ("edit_success", "corpus"),
        ("exact_match", "prompts"),
        ({"name": "chrf", "weight": 0.5}, "prompts"),
        ({"name": "chrf", "normalise": "clip", "bounds": [0, 0.5]}, "prompts"),
    ],
)
def test_a_corpus_metric_alone_makes_a_corpus_suite(metric: Any, kind: str) -> None:
    config = suites_campaign(
        suites=[{"name": "facts", "prompts": "demo://general", "metric": metric, "items": 30}]
    )
    assert config.suites[0].source == kind
    compared = {**config.suites[0].model_dump(exclude_unset=True), "against": "base"}
    assert suites_campaign(suites=[compared]).suites[0].source == "against"


def test_the_suite_of_a_round_that_learns_from_one_is_one() -> None:
    by = [
        build_suites(suites_campaign([{**ROUND, "rewards": rewards}], ()), SCHEMES, ENCODER)[0]
        for rewards in (["chrf"], ["chrf", "exact_match"])
    ]
    assert type(by[0]) is CorpusSuite and type(by[1]) is AnswerSuite
    assert by[0].rule.unit == "of chrF"


def test_a_reference_that_cannot_be_read_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [*rows_of(2), {"prompt": "max _ 9 9 =", "answer": "1 = 2 = 3"}]
    with pytest.raises(UserError, match=r"facts.jsonl:3: .* has 3 parts and not 2") as caught:
        suite(tmp_path, rows)
    assert caught.value.where == "suites.0.prompts"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Watcher]:
    """One round that learns from chrF and is guarded by it, on the tiny model."""
    config = small(
        tmp_path_factory.mktemp("corpus"),
        suites=[
            {
                "name": "facts", "prompts": "demo://general", "metric": "chrf", "items": 40,
                "margin": 0.5, "budget": 0.8,
            }
        ],
        rounds=rounds({"rewards": ["chrf"]}),
        gate=ENFORCE,
    )  # fmt: skip
    watcher = Watcher()
    run_campaign(config, start_engine=Starter(), observer=watcher)
    return config, watcher


def test_a_round_is_judged_by_the_corpus_value(ran: tuple[CampaignConfig, Watcher]) -> None:
    from align.gate.evidence import stored_evidence

    config, watcher = ran
    verdict = watcher.verdicts["round0"].verdict
    values = {c.suite: c for c in verdict.checks if c.what == "value"}
    assert {c.test for c in values.values()} == {"bootstrap"}
    evidence = stored_evidence(config)
    again, recorded = evidence.recompute("round0")
    assert again.to_json() == recorded.to_json() == verdict.to_json()
    results = ItemResults.load(
        evidence.locate(verdict.inputs.candidate["facts"], values_hash(verdict))
    )
    totals = np.array(results.counts).sum(axis=0)
    assert results.formula is not None
    corpus = float(results.formula.values(totals[None, :])[0])
    (row,) = (r for r in plain(status_of(evidence))["matrix"] if r["round"] == "round0")
    assert row["scores"]["facts"] == pytest.approx(corpus)
    assert results.mean == pytest.approx(corpus) and len(results.counts) == 40
    (story,) = (s for s in explain(evidence, "round0").suites if s.suite == "facts")
    assert {compared.check.test for compared in story.comparisons} == {"bootstrap"}


def values_hash(verdict: Any) -> str:
    return next(rule.hash for rule in verdict.inputs.suites if rule.name == "facts")
