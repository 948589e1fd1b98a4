"""Suites hold exactly their items, none of which is trained on; evaluation loses no item."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.algorithms.rows import Row
from align.config.campaign import CampaignConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.demo.world import demo_prompts
from align.data.examples import Unit
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.suites.sequences import document_starts, example_sequences, windows_of
from align.gate.suites.suites import Suite, build_suites
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt, Sampling

SCHEMES = {"demo": demo_prompts}
ENCODER = PromptEncoder(build_tokenizer())
EOS = ENCODER.eos_ids[0]
ROUND: dict[str, Any] = {
    "name": "reverse",
    "prompts": "demo://rev?n=50&seed=3",
    "rewards": ["exact_match"],
    "steps": 1,
    "suite": {"items": 20},
}
GENERAL: dict[str, Any] = {
    "name": "general",
    "prompts": "demo://general",
    "metric": "exact_match",
    "items": 30,
}


def campaign(
    rounds: Sequence[dict[str, Any]] = (ROUND,),
    suites: Sequence[dict[str, Any]] = (GENERAL,),
    **rest: Any,
) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": "test",
            "policy": {"model": "demo://digits"},
            "rounds": list(rounds),
            "suites": list(suites),
            **rest,
        }
    )


def build(config: CampaignConfig) -> list[Suite]:
    return build_suites(config, SCHEMES, ENCODER)


def jsonl(path: Path, prompts: Sequence[str]) -> str:
    rows = ({"prompt": prompt, "answer": "1"} for prompt in prompts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text_file(path: Path, words: int) -> dict[str, Any]:
    path.write_text(" ".join(str(i % 10) for i in range(words)))
    return {"name": "text", "text": str(path), "window": 10, "margin": 0.1, "budget": 0.2}


def answering(suite: Suite, right: float = 1.0) -> ScriptedEngine:
    """Right on the first ``right`` share of the suite's items, silent on the others."""
    known = suite.prompts[: round(right * len(suite.prompts))]
    answers = {
        ENCODER.encode(p): (*ENCODER.tokenizer(p.columns["answer"]).input_ids, EOS) for p in known
    }

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        said = answers.get(prompt_ids, (EOS,))
        return said, [0.0] * len(said)

    return ScriptedEngine(script, eos_ids=ENCODER.eos_ids)


def test_the_campaigns_suites_come_first_then_one_per_round() -> None:
    general, reverse = build(campaign())
    assert (general.name, general.target_of, len(general.prompts)) == ("general", None, 30)
    assert (general.margin, general.budget) == (0.05, 0.1)
    assert general.sampling == Sampling(max_tokens=64, temperature=0.0)
    assert (reverse.name, reverse.target_of, len(reverse.prompts)) == ("reverse", "reverse", 20)
    assert (reverse.margin, reverse.budget) == (0.05, 0.10)
    assert {p.columns["task"] for p in reverse.prompts} == {"rev"}


def test_demo_sources_are_measured_on_their_eval_split() -> None:
    general, reverse = build(campaign())
    expected = demo_prompts("demo://rev?split=eval&n=20&seed=3")
    assert [p.text for p in reverse.prompts] == [p.text for p in expected]
    assert [p.text for p in general.prompts] == [
        p.text for p in demo_prompts("demo://general?split=eval&n=30")
    ]


def test_a_training_source_is_never_measured_on_its_own_split() -> None:
    spec = {**ROUND, "prompts": "demo://rev?split=train&n=50&seed=3"}
    assert build(campaign([spec]))[1].prompts == build(campaign())[1].prompts


def test_margins_and_sampling_are_taken_as_given() -> None:
    own = {"items": 5, "margin": 0.1, "budget": 0.12, "temperature": 0.7, "max_tokens": 9}
    spec = {**GENERAL, "budget": 0.07, "role": "watch", "max_tokens": 8}
    general, reverse = build(campaign([{**ROUND, "suite": own}], [spec]))
    assert (general.budget, general.role) == (0.07, "watch")
    assert (reverse.margin, reverse.budget) == (0.1, 0.12)
    assert reverse.sampling == Sampling(max_tokens=9, temperature=0.7)


def test_a_file_round_without_held_out_prompts_is_told_what_to_do(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ["a", "b"])
    with pytest.raises(UserError, match="no prompts to be measured on") as caught:
        build(campaign([{**ROUND, "prompts": train}], []))
    assert caught.value.where == "rounds.0.suite.prompts"
    assert "heldout: 0.1" in (caught.value.remedy or "")
    assert "keep at least 20" in (caught.value.remedy or "")


def test_repeated_and_incomplete_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ["a"])
    held_out = tmp_path / "eval.jsonl"
    jsonl(held_out, ["b", "c", "c", "b", "d"])
    own = {"items": 3, "prompts": str(held_out)}
    with pytest.raises(UserError, match="has 2 items twice") as caught:
        build(campaign([{**ROUND, "prompts": train, "suite": own}], []))
    assert f"{held_out}:3 is {held_out}:2, {held_out}:4 is {held_out}:1" in str(caught.value)
    held_out.write_text('{"prompt": "b", "answer": "1"}\n{"prompt": "c"}\n')
    own["items"] = 2
    with pytest.raises(UserError, match=r"column 'answer', which 1 rows do not have: .*jsonl:2"):
        build(campaign([{**ROUND, "prompts": train, "suite": own}], []))
    held_out.write_text("")
    with pytest.raises(UserError, match="holds no prompts"):
        build(campaign([{**ROUND, "prompts": train, "suite": own}], []))


def test_a_source_with_too_few_prompts_says_both_numbers(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ["a"])
    held_out = jsonl(tmp_path / "eval.jsonl", ["b", "c", "d"])
    own = {"items": 4, "prompts": held_out}
    with pytest.raises(UserError, match=r"asks for 4 items and .* has 3"):
        build(campaign([{**ROUND, "prompts": train, "suite": own}], []))


def test_an_item_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ["a", "b", "c"])
    held_out = jsonl(tmp_path / "eval.jsonl", ["d", "c", "b"])
    own = {"items": 3, "prompts": held_out}
    with pytest.raises(UserError) as caught:
        build(campaign([{**ROUND, "prompts": train, "suite": own}], []))
    message = str(caught.value)
    assert "'reverse' shares 2 of its 3 items with the training prompts of round" in message
    assert "the first: 'c'" in message


def test_an_item_of_the_general_pool_is_refused() -> None:
    pool = {"general_prompts": "demo://general?split=eval&n=2"}
    with pytest.raises(UserError, match="shares 2 of its 30 items with the general pool of round"):
        build(campaign([{**ROUND, "replay": pool}]))


def test_a_metric_that_lacks_its_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"prompt": "a"}\n')
    spec = {**GENERAL, "prompts": str(path), "items": 1}
    with pytest.raises(UserError, match="column 'answer'"):
        build(campaign(suites=[spec]))


def test_prompts_longer_than_the_context_are_refused() -> None:
    with pytest.raises(UserError, match="context of 16"):
        build(campaign(rollouts={"max_model_len": 16}))


@pytest.mark.parametrize(
    ("ids", "bos", "windows"),
    [
        ([1, 2, 3, 4, 5, 6, 7], None, ((1, 2, 3), (4, 5, 6))),
        ([9, 1, 2, 3, 4, 5], 9, ((9, 1, 2), (9, 3, 4))),
        ([1, 2, 3, 4], 9, ((9, 1, 2), (9, 3, 4))),
        ([1, 2], None, ()),
    ],
)
def test_windows_by_hand(
    ids: list[int], bos: int | None, windows: tuple[tuple[int, ...], ...]
) -> None:
    assert windows_of(ids, 3, bos) == windows


def test_a_text_suite_uses_what_the_text_gives(tmp_path: Path) -> None:
    text, _ = build(campaign(suites=[text_file(tmp_path / "t.txt", 85)]))
    assert (text.kind, len(text.sequences), {len(a) + len(b) for a, b in text.sequences}) == (
        "likelihood",
        8,
        {10},
    )
    spec = {**text_file(tmp_path / "t.txt", 120), "items": 9}
    assert len(build(campaign(suites=[spec]))[0].sequences) == 9
    with pytest.raises(UserError, match=r"fills 7 windows of 10 tokens, at least 8"):
        build(campaign(suites=[text_file(tmp_path / "t.txt", 79)]))


def test_the_hash_follows_the_text(tmp_path: Path) -> None:
    spec = text_file(tmp_path / "t.txt", 80)
    before = build(campaign(suites=[spec]))[0].hash
    Path(spec["text"]).write_text("7 " * 80)
    assert build(campaign(suites=[spec]))[0].hash != before


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    spec = {"name": "text", "text": str(tmp_path / "none.txt")}
    with pytest.raises(UserError, match=r"none\.txt"):
        build(campaign(suites=[spec]))


def test_the_hash_follows_what_decides_a_value_and_nothing_else() -> None:
    first = build(campaign())[0]
    assert build(campaign())[0].hash == first.hash
    lax = {**GENERAL, "margin": 0.5, "budget": 0.6, "role": "watch"}
    assert build(campaign(suites=[lax]))[0].hash == first.hash
    changes: list[dict[str, Any]] = [
        {"items": 29},
        {"temperature": 0.5},
        {"max_tokens": 7},
        {"metric": "contains"},
        {"metric": {"name": "exact_match", "weight": 2.0}},
        {"prompts": "demo://general?seed=1"},
    ]
    hashes = {build(campaign(suites=[{**GENERAL, **change}]))[0].hash for change in changes}
    assert len(hashes | {first.hash}) == len(changes) + 1


def test_the_hash_follows_the_code_of_a_metric_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text("def good(completions, **_):\n    return [1.0 for _ in completions]\n")
    spec = {**GENERAL, "metric": f"{file}:good"}
    before = build(campaign(suites=[spec]))[0].hash
    file.write_text("def good(completions, **_):\n    return [0.5 for _ in completions]\n")
    assert build(campaign(suites=[spec]))[0].hash != before


def test_evaluate_gives_one_value_per_item() -> None:
    general, _ = build(campaign())
    results = evaluate(answering(general, right=0.4), [general], ENCODER, "snap", seed=7)["general"]
    assert results.values == (1.0,) * 12 + (0.0,) * 18
    assert results.item_ids == tuple(p.id for p in general.prompts)
    assert (results.snapshot, results.suite_hash) == ("snap", general.hash)
    assert (results.mean, results.failed, results.is_pass_fail) == (0.4, 0, True)


def test_items_are_sampled_with_the_same_seeds_for_every_snapshot() -> None:
    general, _ = build(campaign())
    engines = [answering(general), answering(general)]
    for engine, snapshot in zip(engines, ("one", "two"), strict=True):
        evaluate(engine, [general], ENCODER, snapshot, seed=7)
    assert engines[0].requests == engines[1].requests
    assert len({r.seed for r in engines[0].requests}) == 30
    assert {r.n for r in engines[0].requests} == {1}


def test_a_failed_item_counts_as_the_worst_and_is_counted() -> None:
    general, _ = build(campaign())
    engine = answering(general)
    engine.fail_request(f"7/2/{general.prompts[2].id}", "engine 0 died")
    results = evaluate(engine, [general], ENCODER, "snap", seed=7)["general"]
    assert len(results.values) == 30
    assert (results.values[2], results.statuses[2], results.failed) == (0.0, "failed", 1)
    assert results.finishes[2] == "failed"
    assert results.mean == pytest.approx(29 / 30)


def test_a_failed_item_is_no_better_than_the_worst_score() -> None:
    suite = replace(build(campaign())[0], rubric=Graded(), value_range=None)
    engine = answering(suite)
    engine.fail_request(f"7/0/{suite.prompts[0].id}", "engine 0 died")
    results = evaluate(engine, [suite], ENCODER, "snap", seed=7)["general"]
    assert results.values[0] == -3.0


class Graded:
    """Scores item ``i`` with ``-(i % 4)``; failed rollouts fail."""

    def score(self, groups: Sequence[Any], trainer_state: Any = None) -> list[Any]:
        from rollouts.types import Score, ScoredGroup

        def grade(index: int, group: Any) -> Score:
            if group.completions_G[0].finish_reason == "failed":
                return Score(value=None, status="failed", detail="no completion")
            return Score(value=-float(index % 4), status="scored")

        return [ScoredGroup(group=g, scores_G=(grade(i, g),)) for i, g in enumerate(groups)]


def test_a_suite_that_failed_altogether_has_no_result() -> None:
    general, _ = build(campaign())
    engine = answering(general)
    for position, prompt in enumerate(general.prompts):
        engine.fail_request(f"7/{position}/{prompt.id}", "engine 0 died")
    with pytest.raises(RunError, match="none of the 30 items") as caught:
        evaluate(engine, [general], ENCODER, "snap", seed=7)
    assert "engine 0 died" in (caught.value.cause or "")


def test_cut_completions_are_counted() -> None:
    general, _ = build(campaign(suites=[{**GENERAL, "max_tokens": 2}]))
    results = evaluate(answering(general), [general], ENCODER, "snap", seed=7)["general"]
    assert (results.truncated, results.mean) == (30, 0.0)


def test_likelihood_is_the_mean_logprob_of_all_but_the_first_token(tmp_path: Path) -> None:
    text, _ = build(campaign(suites=[text_file(tmp_path / "t.txt", 80)]))
    engine = ScriptedEngine(
        lambda ids, seed: ((), ()),
        scorer=lambda prompt, rest: [-0.1 * (i + 1) for i in range(len(rest))],
    )
    results = evaluate(engine, [text], ENCODER, "snap", seed=0)["text"]
    assert results.values == pytest.approx((-0.5,) * 8)
    assert all(
        (r.prompt_ids, r.completion_ids) == (w, rest)
        for r, (w, rest) in zip(engine.scored, text.sequences, strict=True)
    )


def test_a_window_of_probability_zero_is_a_failure_not_an_infinity(tmp_path: Path) -> None:
    text, _ = build(campaign(suites=[text_file(tmp_path / "t.txt", 80)]))
    lowest = iter([-math.inf, *[-0.5] * 6, -0.7])
    engine = ScriptedEngine(
        lambda ids, seed: ((), ()), scorer=lambda prompt, rest: [next(lowest)] * len(rest)
    )
    results = evaluate(engine, [text], ENCODER, "snap", seed=0)["text"]
    assert results.failed == 1
    assert results.values[0] == results.values[-1] == pytest.approx(-0.7)


def test_results_come_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    results = ItemResults(
        suite="general",
        suite_hash="h",
        snapshot="s",
        item_ids=("a", "b", "c"),
        values=(0.1 + 0.2, -1e-300, math.pi),
        statuses=("scored", "abstained", "failed"),
        finishes=("stop", "length", "failed"),
    )
    path = tmp_path / "deep" / "general.parquet"
    results.save(path)
    assert ItemResults.load(path) == results
    assert [p.name for p in path.parent.iterdir()] == ["general.parquet"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not parquet"])
def test_damaged_results_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "general.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read") as caught:
        ItemResults.load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "change", [{"values": (1.0,)}, {"item_ids": ("a", "a")}, {"values": (1.0, math.nan)}]
)
def test_incomplete_results_cannot_exist(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "suite": "s",
        "suite_hash": "h",
        "snapshot": "x",
        "item_ids": ("a", "b"),
        "values": (1.0, 0.0),
        "statuses": ("scored", "scored"),
        "finishes": ("stop", "stop"),
    }
    with pytest.raises(ValueError, match="'s'"):
        ItemResults(**{**good, **change})


def test_what_was_asked_and_answered_is_kept_for_people(tmp_path: Path) -> None:
    """Beside the values, and no verdict depends on it."""
    import pyarrow.parquet as pq

    found = ItemResults(
        suite="s", suite_hash="h", snapshot="x", item_ids=("a", "b"), values=(1.0, 0.0),
        statuses=("scored", "scored"), finishes=("stop", "stop"),
        prompts=("one", "two"), answers=("1", "2"),
    )  # fmt: skip
    found.save(tmp_path / "items.parquet")
    table = pq.read_table(tmp_path / "items.parquet").to_pydict()
    assert (table["prompt"], table["answer"]) == (["one", "two"], ["1", "2"])
    assert ItemResults.load(tmp_path / "items.parquet") == found


def sampled(**changes: Any) -> Suite:
    """The general suite with several completions per item."""
    suite = build(campaign())[0]
    assert suite.sampling is not None
    return replace(suite, sampling=replace(suite.sampling, temperature=1.0), **changes)


def test_several_completions_of_an_item_are_one_value() -> None:
    suite = sampled(samples=3)
    results = evaluate(answering(suite), [suite], ENCODER, "snap", seed=7)["general"]
    assert len(results.values) == 30
    assert results.mean == 1.0
    single = evaluate(answering(suite), [sampled()], ENCODER, "snap", seed=7)["general"]
    assert results.tokens is not None and single.tokens is not None
    assert results.tokens == 3 * single.tokens
    assert results.seconds is not None and results.seconds > 0.0


def test_clusters_are_stored_with_the_items(tmp_path: Path) -> None:
    suite = sampled(cluster="answer")
    results = evaluate(answering(suite), [suite], ENCODER, "snap", seed=7)["general"]
    assert results.clusters == tuple(str(p.columns["answer"]) for p in suite.prompts)
    results.save(tmp_path / "r.parquet")
    again = ItemResults.load(tmp_path / "r.parquet")
    assert again == results
    assert (again.clusters, again.tokens) == (results.clusters, results.tokens)
    with pytest.raises(ValueError, match="one cluster per item, or none"):
        replace(results, clusters=("a",))


def test_a_metric_that_leaves_its_range_stops_the_evaluation() -> None:
    suite = replace(build(campaign())[0], rubric=Graded(), value_range=(-2.0, 0.0))
    with pytest.raises(RunError, match=r"item .* got -3, outside -2 to 0") as caught:
        evaluate(answering(suite), [suite], ENCODER, "snap", seed=7)
    assert caught.value.where == "suite 'general'"


# what items of sequences have in common


def test_documents_begin_after_blank_lines_or_ends_of_text() -> None:
    assert list(document_starts("a\n\nb\n \t\n\nc\n\n")) == [0, 3, 9]
    assert list(document_starts("a\n\nb<|endoftext|>c")) == [0, 17]
    assert list(document_starts("a\n\nb<eos>c", "<eos>")) == [0, 9]
    assert list(document_starts("one line\nand another")) == [0]


def test_windows_of_a_document_come_in_one_cluster(tmp_path: Path) -> None:
    """Two windows of 10 tokens fit into each document of 20."""
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(["7 " * 20] * 5))
    spec = {"name": "text", "text": str(path), "window": 10, "margin": 0.1, "budget": 0.2}
    (text, *_) = build(campaign(suites=[spec]))
    labels = text.item_clusters
    assert len(labels) == len(text.sequences)
    assert len(set(labels)) == 5
    assert list(labels) == sorted(labels), "in the order of the text"
    (apart, *_) = build(campaign(suites=[{**spec, "cluster": "window"}]))
    assert apart.item_clusters == ()
    with pytest.raises(UserError, match="a text has no columns"):
        build(campaign(suites=[{**spec, "cluster": "source"}]))


def unit(prompt: str, answer: int, **columns: Any) -> Unit:
    asked = Prompt(id=f"id of {prompt}", text=prompt, columns=columns)
    good, bad = (
        Row(
            prompt_ids=(1,), completion_ids=(answer, side), advantage=value, source="new", round="r",
        )
        for side, value in ((5, 1.0), (6, -1.0))
    )  # fmt: skip
    return Unit(id=f"{prompt}/{answer}", prompt=asked, rows=(good, bad))


def test_pairs_of_a_prompt_come_in_one_cluster() -> None:
    pairs = [unit(f"prompt {i // 3}", i, source=f"site {i % 2}") for i in range(12)]
    labels = {
        cluster: example_sequences(pairs, 12, "rounds.0.data", cluster)["sequence_clusters"]
        for cluster in (None, "prompt", "source", "item")
    }
    assert labels[None] == labels["prompt"] == tuple(f"id of prompt {i // 3}" for i in range(12))
    assert labels["source"] == tuple(f"site {i % 2}" for i in range(12))
    assert labels["item"] == ()
    with pytest.raises(UserError, match="no column 'sources'") as caught:
        example_sequences(pairs, 12, "rounds.0.data", "sources")
    assert caught.value.where == "rounds.0.suite.cluster"


def test_windows_of_examples_come_by_their_document() -> None:
    rows = unit("p", 1).rows[:1]
    windows = [
        Unit(id=str(i), prompt=None, rows=rows, documents=(f"doc {i // 2}", "next"))
        for i in range(8)
    ]
    found = example_sequences(windows, 8, "rounds.0.data")
    assert found["sequence_clusters"] == tuple(f"doc {i // 2}" for i in range(8))
