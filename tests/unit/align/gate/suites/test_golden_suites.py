"""One suite of every kind against numbers on record: hashes, rules, results, files and verdicts.

A store names its results by these hashes and recomputes its verdicts from these files, so none of them may
change. ``python -m tests.unit.align.gate.suites.test_golden_suites`` prints them as they are now.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.algorithms.rows import Row
from align.config.campaign import CampaignConfig
from align.data.examples import Unit
from align.data.examples.round_data import RoundData
from align.gate.case import Case
from align.gate.checks import Check
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.statistics.rules import CURRENT_RULE
from align.gate.statistics.sequential import stopping
from align.gate.suites.implicit import Reference, save_logprobs
from align.gate.suites.suites import Suite, build_suites
from align.gate.suites.win_rate import Duel, save_answers
from align.gate.verdict import Verdict, decide
from rollouts.engines.scripted import ScriptedEngine
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.unit.align.gate.suites.test_gate_suites import (
    ENCODER,
    GENERAL,
    ROUND,
    SCHEMES,
    answering,
    campaign,
    text_file,
)
from tests.unit.align.gate.suites.test_harness import CHOICE, DOCS, TASK

RECORD = Path(__file__).parents[3] / "data" / "golden_suites.json"
CONTEXT = 128
BY_SCIPY = ("paired_t", "exact")
"""Tests whose distributions are scipy's; by the first rule, so is that of clusters."""


def harness(folder: Path, name: str, task: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Write a task over `DOCS` in a folder of its own and return its suite."""
    own = folder / name
    own.mkdir()
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in task.items())
    (own / "task.yaml").write_text(lines)
    (own / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    files = {"test": str(own / "docs.jsonl")}
    return {
        "name": name, "items": 6,
        "harness": {"task": "reverse", "include_path": str(own), "data_files": files},
        **settings,
    }  # fmt: skip


def calibration(folder: Path) -> dict[str, Any]:
    """Write multiple-choice items to a file and return a suite of them."""
    rows = [
        {"prompt": f"max _ {i} {i % 7} =", "choices": ["1", "2 3", f"{i % 3 + 4}"], "answer": i % 3}
        for i in range(40)
    ]
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(path), "normalise": "tokens", "bins": 5}
    return {"name": "facts", "calibration": source, "items": 40}


def unit(number: int, sides: int) -> Unit:
    """Return an example with one or two answers, two of them to each prompt."""
    prompt = Prompt(id=f"prompt {number // 2}", text=f"{number // 2}", columns={"source": "a"})
    rows = tuple(
        Row(
            prompt_ids=(1, number % 10), completion_ids=(2, side, number % 7), source="new",
            advantage=1.0 - 2.0 * side, round="r",
        )
        for side in range(sides)
    )  # fmt: skip
    return Unit(id=f"unit {number}", prompt=prompt, rows=rows, location=f"held.jsonl:{number}")


def golden_campaign(folder: Path) -> CampaignConfig:
    """Return a campaign with a suite of every kind and of every setting that decides a value."""
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{question}}"}
    pairs = {"algorithm": {"name": "dpo", "pairs": "file"}, "data": "pairs.jsonl", "steps": 1}
    words = (
        "demo://general?seed=1", "demo://general?seed=2", "demo://general?seed=3",
        "demo://general?seed=4", "demo://general?seed=5",
    )  # fmt: skip
    return campaign(
        rounds=[
            ROUND,
            {**pairs, "name": "implicit"},
            {**pairs, "name": "likely", "suite": {"pairs": "likelihood", "cluster": "item"}},
            {
                "name": "shown", "algorithm": "sft", "data": "shown.jsonl", "steps": 1,
                "suite": {"margin": 0.2},
            },
        ],
        suites=[
            GENERAL,
            {
                **GENERAL, "name": "sampled", "prompts": words[0], "temperature": 0.7, "top_p": 0.9,
                "min_p": 0.05, "stop": "9", "samples": 2, "cluster": "task", "max_tokens": 6,
                "family": "safety", "truncation_margin": 0.3,
            },
            {**GENERAL, "name": "strict", "prompts": words[1], "zero_tolerance": "all"},
            {**GENERAL, "name": "turning", "prompts": words[2], "items": 20, "rotate": {}},
            {
                **GENERAL, "name": "graded", "prompts": words[3], "range": [0, 2],
                "metric": {"name": "distinct_ngrams", "weight": 2.0, "options": {"n": 1}},
            },
            {
                **GENERAL, "name": "wins", "prompts": words[4], "against": "base",
            },
            text_file(folder / "text.txt", 120),
            harness(folder, "generated", TASK),
            harness(folder, "chosen", CHOICE),
            harness(
                folder, "perplexity", {**TASK, **rolling, "metric_list": [{"metric": "word_perplexity"}]},
                margin=0.3, budget=0.6, role="watch",
            ),
            calibration(folder),
        ],
    )  # fmt: skip


def golden_suites(folder: Path) -> tuple[CampaignConfig, list[Suite]]:
    """Return the campaign and its suites, with a reference and a rival where one needs them."""
    config = golden_campaign(folder)
    held = {
        "implicit": [unit(i, 2) for i in range(40)],
        "likely": [unit(i, 2) for i in range(40, 80)],
        "shown": [unit(i, 1) for i in range(80, 120)],
    }
    data = RoundData(prompts=dict.fromkeys(("reverse", *held), ()), held_out=dict(held))
    suites = build_suites(config, SCHEMES, ENCODER, CONTEXT, data=data)
    return config, [completed(suite, folder) for suite in suites]


def completed(suite: Suite, folder: Path) -> Suite:
    """Return a suite that can be measured, under an encoding that no version of a library changes."""
    suite = replace(suite, encoding="tokenizer")
    if suite.name == "implicit":
        save_logprobs(folder / "base.json", [-0.1 * (i % 9) - 2.0 for i in range(80)])
        known = Reference(weights=(("base", 1.0),), files=(folder / "base.json",))
        return replace(suite, reference=known)
    if suite.name == "wins":
        save_answers(folder / "answers.jsonl", [answer(p, i) for i, p in enumerate(suite.prompts)])
        duel = Duel(against="base", comparator="base", answers=folder / "answers.jsonl")
        return replace(suite, duel=duel)
    return suite


def answer(prompt: Prompt, number: int) -> RolloutGroup:
    said = Completion(
        token_ids=(1,), logprobs_T=(0.0,), text=prompt.columns["answer"] if number % 3 else "4",
        finish_reason="stop",
    )  # fmt: skip
    return RolloutGroup(prompt=prompt, prompt_ids=(1,), completions_G=(said,), policy="p", seed=0)


def engine_of(suite: Suite, right: float, slope: float) -> ScriptedEngine:
    """Return an engine that is right on a share of the items and scores by the ids alone."""

    def score(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]) -> Sequence[float]:
        start = sum(prompt_ids)
        return [
            -((7 * start + 3 * token + index) % 11) / 8 - slope
            for index, token in enumerate(completion_ids)
        ]

    if suite.num_answers and "answer" in suite.prompts[0].columns:
        engine = answering(suite, right)
        engine._scorer = score
        return engine
    return ScriptedEngine(lambda ids, seed: ((3, 1), (0.0, 0.0)), scorer=score)


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return a digest of the columns, their types and the header; not of what a library adds."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    header = json.loads((table.schema.metadata or {})[b"keel.item_results"])
    header.pop("seconds")
    types = {field.name: str(field.type) for field in table.schema}
    return digest([header, types, table.to_pydict()])


@cache
def goldens() -> dict[str, Any]:
    """Return what is on record, as it is now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, suites = golden_suites(folder)
        numbers: dict[str, Any] = {}
        measured: dict[str, dict[str, ItemResults]] = {"candidate": {}, "parent": {}}
        for suite in suites:
            for who, right, slope in (("candidate", 0.6, 0.0625), ("parent", 0.8, 0.0)):
                engine = engine_of(suite, right, slope)
                measured[who] |= evaluate(engine, [suite], ENCODER, who, seed=7)
            measured["candidate"][suite.name].save(folder / "results.parquet")
            after = measured["candidate"][suite.name]
            numbers[suite.name] = {
                "hash": suite.hash,
                "rule": digest(asdict(suite.rule)),
                "early": digest(asdict(stopping(suite).rule)),
                "part": suite.part([0, 2, 3]).hash,
                "first": suite.first(5).hash,
                "file": file_digest(folder / "results.parquet"),
                "mean": after.mean,
                "asked": digest([after.prompts, after.answers, after.clusters]),
            }
        for number in (1, 2):
            for name, those in (
                (f"rule {number}", [s for s in suites if s.name != "facts"]),
                (
                    f"rule {number}, calibration",
                    [s for s in suites if s.name in ("facts", "reverse")],
                ),
            ):
                case = Case(
                    target="reverse", candidate=measured["candidate"], parent=measured["parent"],
                    start=measured["parent"], best=measured["parent"],
                    suites=tuple(suite.rule for suite in those), gate=config.gate,
                    accepted_rounds=("implicit", "likely", "shown"), decided_by=number,
                )  # fmt: skip
                verdict = decide(case)
                exact = [
                    numbers_of(check)
                    for check in verdict.checks
                    if check.test not in BY_SCIPY and (number == CURRENT_RULE or not check.clusters)
                ]
                numbers[f"verdict by {name}"] = digest([decided(verdict), exact])
                numbers[f"p and intervals by {name}"] = [
                    numbers_of(check) for check in verdict.checks
                ]
                numbers[f"sentences by {name}"] = [check.sentence for check in verdict.checks]
        return numbers


def numbers_of(check: Check) -> list[float]:
    return [check.p, *check.interval]


def decided(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict without the words for it, and without what a distribution says."""
    words = ("sentence", "needed", "p", "interval")
    checks = [
        {k: v for k, v in asdict(check).items() if k not in words} for check in verdict.checks
    ]
    return {**verdict.to_dict(), "reasons": None, "checks": checks}


def test_what_is_on_record_stays() -> None:
    """To the last bit; numbers by Student's t and the beta distribution, which were not always scipy's, to
    nine digits."""
    record = json.loads(RECORD.read_text())
    assert goldens().keys() == record.keys()
    for name, values in goldens().items():
        if name.startswith("p and intervals"):
            values, record[name] = (
                np.asarray(values),
                pytest.approx(np.asarray(record[name]), rel=1e-9),
            )
        assert values == record[name], name


if __name__ == "__main__":
    print(json.dumps(goldens(), indent=1))
