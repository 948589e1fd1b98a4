"""Harness tasks: what is refused before a run, how requests reach an engine, and what items are worth."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.config.gate import GateConfig, SuiteConfig
from align.config.policy import PolicyConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.demo.world import demo_prompts
from align.gate.case import NO_TARGET, Case
from align.gate.checks import check
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.suites.harness.lm import cut, engine_lm
from align.gate.suites.harness.suite import load_harness
from align.gate.suites.harness.task import HarnessTask
from align.gate.suites.harness.values import item_value
from align.gate.suites.suites import Suite, build_suites
from align.gate.summary import verdict_rows
from align.gate.verdict import decide
from rollouts.engines.scripted import ScriptedEngine
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder

ENCODER = PromptEncoder(build_tokenizer())
EOS = ENCODER.eos_ids[0]
DOCS = [{"question": f"rev _ {i} 1 4 1 5 =", "answer": f"5 1 4 1 {i}"} for i in range(6)]
TASK: dict[str, Any] = {
    "task": "reverse",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["rev"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
CHOICE: dict[str, Any] = {
    **TASK,
    "output_type": "multiple_choice",
    "doc_to_choice": ["1", "2 3"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}, {"metric": "exact_match"}, {"metric": "mcc"}],
}


def words(text: str) -> tuple[int, ...]:
    return tuple(ENCODER.tokenizer(text).input_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A folder with a task and its data."""

    path: Path

    def write(self, task: dict[str, Any], docs: Sequence[Any] = DOCS, extra: str = "") -> None:
        """The task file is JSON, which is YAML too; ``extra`` is YAML after it."""
        lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in task.items())
        (self.path / "task.yaml").write_text(lines + extra)
        (self.path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))

    def suite(self, items: int = 6, max_tokens: int | None = None, **harness: Any) -> SuiteConfig:
        given = {
            "task": "reverse",
            "include_path": str(self.path),
            "data_files": {"test": str(self.path / "docs.jsonl")},
            **harness,
        }
        content = {"name": "reverse", "items": items, "max_tokens": max_tokens, "harness": given}
        return SuiteConfig.model_validate(content)

    def load(self, items: int = 6, context: int | None = 64, **harness: Any) -> HarnessTask:
        return load_harness(self.suite(items, **harness), "suites.0", ENCODER, context)

    def refused(self, items: int = 6, context: int = 64, **harness: Any) -> UserError:
        with pytest.raises(UserError) as caught:
            self.load(items, context, **harness)
        return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(path=tmp_path)
    made.write(TASK)
    return made


def saying(*said: str) -> ScriptedEngine:
    """Answers every prompt with the next of these, in a circle."""
    calls = iter(range(10**6))

    def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[Sequence[int], Sequence[float]]:
        ids = words(said[next(calls) % len(said)])
        return ids, [0.0] * len(ids)

    return ScriptedEngine(script, eos_ids=(EOS,))


def test_a_data_set_on_the_hub_is_refused_by_name(folder: Folder) -> None:
    folder.write({**TASK, "dataset_path": "openai/gsm8k", "dataset_name": "main"})
    error = folder.refused(data_files={})
    assert "'openai/gsm8k' from the network" in error.what
    assert "harness.data_files" in (error.remedy or "")
    assert folder.load().items, "local files take the data set's place"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"test": "https://example.org/docs.jsonl"}, "from the network"),
        ({"test": "hf://datasets/a/b.jsonl"}, "from the network"),
        ({"test": "nowhere.jsonl"}, "'nowhere.jsonl', which does not exist"),
        ({}, "names no data_files"),
    ],
)
def test_data_is_looked_for_before_it_is_loaded(
    folder: Folder, files: dict[str, str], said: str
) -> None:
    assert said in folder.refused(data_files=files).what


def test_a_metric_of_the_hub_is_refused(folder: Folder) -> None:
    folder.write({**TASK, "metric_list": [{"metric": "exact_mach"}]})
    error = folder.refused()
    assert "'exact_mach' is fetched from the network" in error.what
    assert "did you mean 'exact_match'" in (error.remedy or "")


CODE = "process_results: !function score.process\n"


def test_code_runs_only_where_it_is_asked_for(folder: Folder) -> None:
    folder.write(TASK, extra=CODE)
    mark = folder.path / "ran"
    (folder.path / "score.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "def process(doc, results):\n"
        "    return {'exact_match': [results[0] == doc['answer'], True]}\n"
    )
    error = folder.refused()
    assert error.what == "the task 'reverse' runs code: !function score.process"
    assert "allow_code: true" in (error.remedy or "")
    assert not mark.exists()
    task = folder.load(allow_code=True)
    scores, _ = task.measure(saying("5 1 4 1 0 <eos>"), ENCODER, seed=0)
    assert [score.value for score in scores] == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_allowed_code_is_a_process_without_secrets(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTRY_DSN", "https://key@sentry.example/1")
    folder.write(TASK, extra=CODE)
    (folder.path / "score.py").write_text(
        "import os\n"
        "def process(doc, results):\n"
        f"    bare = 'SENTRY_DSN' not in os.environ and os.getpid() != {os.getpid()}\n"
        "    return {'exact_match': float(bare)}\n"
    )
    task = folder.load(items=3, allow_code=True)
    scores, _ = task.measure(saying("5 <eos>"), ENCODER, seed=0)
    assert [score.value for score in scores] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_allowed_code_that_ends_its_process_fails_one_item(folder: Folder) -> None:
    folder.write(TASK, extra=CODE)
    (folder.path / "score.py").write_text(
        "import os\n"
        "def process(doc, results):\n"
        f"    if doc == {DOCS[1]!r}:\n"
        "        os._exit(3)\n"
        "    return {'exact_match': 1.0}\n"
    )
    task = folder.load(items=3, allow_code=True)
    for _ in range(2):
        scores, _ = task.measure(saying("5 <eos>"), ENCODER, seed=0)
        assert [score.value for score in scores] == [1.0, None, 1.0]
        assert scores[1].detail == "the task's code: the worker exited with code 3"


def test_allowed_code_that_never_ends_is_given_up(folder: Folder) -> None:
    folder.write(TASK, extra=CODE)
    (folder.path / "score.py").write_text("import time\ntime.sleep(600)\n")
    error = folder.refused(allow_code=True, deadline_s=1.0)
    assert "the code of the task 'reverse' did not load the task" in error.what
    assert "raise deadline_s" in (error.remedy or "")


def test_included_and_marked_code_is_found(folder: Folder) -> None:
    (folder.path / "more.txt").write_text(CODE)
    folder.write({**TASK, "include": "more.txt"})
    assert "!function score.process" in folder.refused().what
    folder.write({**TASK, "unsafe_code": True})
    assert "runs code: unsafe_code" in folder.refused().what


@pytest.mark.parametrize(
    "hidden",
    [
        "description: !function score.f\ndescription: plain\n",
        "metadata: {? !function score.f : 1}\n",
        "generation_kwargs: {until: [!function score.f ]}\ngeneration_kwargs: {}\n",
        "include: more.txt\nprocess_docs: null\n",
        "class: null\n",
        "unsafe_code: null\n",
    ],
)
def test_code_that_a_later_key_replaces_is_found(folder: Folder, hidden: str) -> None:
    mark = folder.path / "ran"
    (folder.path / "score.py").write_text(f"open({str(mark)!r}, 'w')\ndef f(*_): return ''\n")
    (folder.path / "more.txt").write_text("process_docs: !function score.f\n")
    folder.write(TASK, extra=hidden)
    assert "runs code: " in folder.refused().what
    assert not mark.exists()


def test_addresses_beside_a_local_folder_are_found(folder: Folder) -> None:
    kwargs = {"data_files": {"test": ["https://example.org/docs.jsonl"]}}
    folder.write({**TASK, "dataset_path": str(folder.path), "dataset_kwargs": kwargs})
    assert "https://example.org/docs.jsonl from the network" in folder.refused(data_files={}).what


def test_a_template_cannot_reach_python(folder: Folder) -> None:
    folder.write({**TASK, "doc_to_text": "{{ question.__class__.__mro__ }}"})
    error = folder.refused()
    assert "SecurityError" in error.what


def test_an_unknown_task_is_answered_with_the_nearest(folder: Folder) -> None:
    error = folder.refused(task="revers")
    assert error.where == "suites.0.harness.task"
    assert "did you mean 'reverse'" in (error.remedy or "")
    (folder.path / "broken.yaml").write_text("task: [")
    assert "broken.yaml cannot be read" in (folder.refused(task="broken").cause or "")
    assert "no folder" in folder.refused(include_path="nowhere").what


def test_a_group_is_no_suite(folder: Folder) -> None:
    (folder.path / "group.yaml").write_text("group: all\ntask: [reverse]\n")
    assert "'all' is a group of tasks" in folder.refused(task="all").what


def test_a_missing_package_names_its_extra(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert folder.refused().remedy == "pip install 'keel-align[harness]', or leave the suite out"


def test_metrics_and_filters_are_the_tasks_own(folder: Folder) -> None:
    assert folder.refused(metric="acc").remedy == "Known: exact_match"
    assert folder.refused(filter="strict").remedy == "Known: none"
    folder.write(CHOICE)
    assert folder.load().metric == "acc"
    assert "only for all items together" in folder.refused(metric="mcc").what


def test_documents_must_be_there(folder: Folder) -> None:
    error = folder.refused(items=7)
    assert "asks for 7 items and the task 'reverse' has 6" in error.what
    assert error.remedy == "set items to 6 or less"
    folder.write(TASK, extra="process_docs: !function score.none\n")
    (folder.path / "score.py").write_text("def none(docs):\n    return docs.select([])\n")
    assert "has no documents" in folder.refused(allow_code=True).what


def test_a_task_that_does_not_fit_its_data_says_so(folder: Folder) -> None:
    folder.write({**TASK, "doc_to_text": "{{quesion}}"})
    assert "'quesion' is undefined" in folder.refused().what
    folder.write({**TASK, "test_split": "validation"})
    assert "cannot load the task 'reverse'" in folder.refused().what


def test_what_engines_cannot_do_is_refused(folder: Folder) -> None:
    folder.write({**TASK, "generation_kwargs": {"until": ["rev"], "num_beams": 4}})
    assert "num_beams, which engines do not know" in folder.refused().what
    folder.write(TASK)
    assert "generates up to 6 tokens" in folder.refused(context=8).what
    folder.write(CHOICE)
    assert "an answer of 2 tokens, and engines score 1 to 1" in folder.refused(context=3).what


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "a.txt"}, "set exactly one"),
        ({"metric": "exact_match"}, "harness.metric"),
        ({"temperature": 0.5}, "says itself how it samples"),
        ({"window": 64}, "says itself how it samples"),
        ({"rotate": {"share": 0.5}}, "rotate is for suites of prompts"),
    ],
)
def test_settings_of_other_suites_are_refused(
    folder: Folder, changes: dict[str, Any], said: str
) -> None:
    content = folder.suite().model_dump(exclude_unset=True)
    with pytest.raises(ValueError, match=said):
        SuiteConfig.model_validate({**content, **changes})


def test_the_digest_follows_what_decides_a_value(folder: Folder, tmp_path: Path) -> None:
    digest = folder.load().digest
    assert folder.load().digest == digest
    moved = Folder(path=tmp_path / "moved")
    moved.path.mkdir()
    moved.write(TASK)
    assert moved.load().digest == digest
    assert folder.load(items=5).digest != digest
    assert folder.load(num_fewshot=1, data_files=_split(folder)).digest != digest
    moved.write({**TASK, "generation_kwargs": {"until": ["?"], "max_gen_toks": 6}})
    assert moved.load().digest != digest
    moved.write(TASK, docs=[*DOCS[:-1], {**DOCS[-1], "answer": "1"}])
    assert moved.load().digest != digest


def test_the_digest_covers_code_and_what_is_cut(folder: Folder) -> None:
    folder.write(TASK, extra=CODE)
    code = "def process(doc, results):\n    return {'exact_match': 1.0}\n"
    digests = set()
    for text in (code, code + "# changed\n"):
        (folder.path / "score.py").write_text(text)
        digests.add(folder.load(allow_code=True).digest)
    folder.write(TASK)
    digests |= {folder.load(context=context).digest for context in (64, 60, 14, 13)}
    assert len(digests) == 2 + 3, "a context that cuts nothing decides nothing"


def _split(folder: Folder) -> dict[str, str]:
    """Worked examples from the same file."""
    path = str(folder.path / "docs.jsonl")
    folder.write({**TASK, "training_split": "train", "fewshot_split": "train"})
    return {"test": path, "train": path}


def test_a_document_counts_once(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.write(TASK, docs=[*DOCS[:5], DOCS[0]])
    with caplog.at_level(logging.WARNING):
        assert len(folder.load().items) == 5
    assert "1 documents are duplicates" in caplog.text


def test_long_prompts_lose_their_beginning_and_are_counted(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task = folder.load(context=6 + 2 + 5)
    assert task.num_cut == 6
    assert "6 of 6 requests of task reverse do not fit" in caplog.text
    engine = saying("5 1 4 1 0")
    task.measure(engine, ENCODER, seed=0)
    assert engine.requests[0].prompt_ids == words("1 4 1 5 =")


def test_scored_pairs_keep_their_continuation(folder: Folder) -> None:
    folder.write(CHOICE)
    task = folder.load(context=7)
    assert task.num_cut == 12
    engine = saying("9")
    task.measure(engine, ENCODER, seed=0)
    assert [(r.prompt_ids, r.completion_ids) for r in engine.scored[:2]] == [
        (words("1 4 1 5 ="), words("1")),
        (words("4 1 5 ="), words("2 3")),
    ]


def test_every_token_of_a_long_text_is_scored_once(folder: Folder) -> None:
    text = "rev _ 3 1 4 1 5 = 5 1 4 1 3"
    folder.write(
        {
            **TASK,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
        docs=[{"text": text}],
    )
    engine = saying("9")
    (score,), tokens = folder.load(items=1, context=7).measure(engine, ENCODER, seed=0)
    assert tuple(t for r in engine.scored for t in r.completion_ids) == words(text)
    assert engine.scored[0].prompt_ids == (EOS,)
    assert all(len(r.prompt_ids) + len(r.completion_ids) <= 6 for r in engine.scored)
    assert (score.value, tokens) == (-1.0, len(words(text)))


def test_one_greedy_answer_serves_all_choices(folder: Folder) -> None:
    folder.write(CHOICE)
    engine = saying("2 3")
    scores, tokens = folder.load(metric="exact_match").measure(engine, ENCODER, seed=0)
    assert len(engine.requests) == 6
    assert {request.sampling.max_tokens for request in engine.requests} == {2}
    assert [score.value for score in scores] == [0.0] * 6
    assert tokens == 6 * (1 + 2) + 6 * 2
    engine = saying("1 3")
    scores, _ = folder.load(metric="exact_match").measure(engine, ENCODER, seed=0)
    assert [score.value for score in scores] == [1.0] * 6
    engine = saying("1")
    folder.load(metric="acc").measure(engine, ENCODER, seed=0)
    assert not engine.requests, "acc does not ask what greedy decoding gives"


def test_answers_are_cut_and_their_ends_told_apart(folder: Folder) -> None:
    engine = saying("5 1 4 1 0 rev", "5 1 4 1 1 <eos>", "9 9 9 9 9 9 9", "", "rev", "5 <eos>")
    scores, _ = folder.load().measure(engine, ENCODER, seed=0)
    assert [score.completion.text.strip() for score in scores] == [
        "5 1 4 1 0", "5 1 4 1 1", "9 9 9 9 9 9", "", "", "5",
    ]  # fmt: skip
    finishes = [score.completion.finish_reason for score in scores]
    assert finishes == ["stop", "stop", "length", "stop", "stop", "stop"]
    (sampling,) = {request.sampling for request in engine.requests if "rest" not in request.id}
    assert (sampling.stop_token_ids, sampling.stop_texts) == ((EOS,), ("rev",))
    assert (sampling.max_tokens, sampling.temperature) == (6, 0.0)


def test_an_engine_that_stopped_too_early_goes_on(folder: Folder) -> None:
    """vLLM finds ' 5' at the start of an answer that decodes to '5 1'."""
    folder.write({**TASK, "generation_kwargs": {"until": [" 5"], "max_gen_toks": 6}})
    engine = saying("5", "1 4 1 0 <eos>")
    (score, *_), _ = folder.load(items=1).measure(engine, ENCODER, seed=0)
    assert score.completion.text == "5 1 4 1 0"
    first, rest = engine.requests
    assert rest.prompt_ids == (*first.prompt_ids, *words("5"))
    assert (rest.sampling.max_tokens, rest.sampling.stop_texts) == (5, ())


def test_a_request_that_failed_is_a_failed_item(folder: Folder) -> None:
    engine = saying("5 1 4 1 0 <eos>")
    engine.fail_request("harness/1", "refused")
    scores, _ = folder.load().measure(engine, ENCODER, seed=0)
    assert [score.status for score in scores[:3]] == ["scored", "failed", "scored"]
    assert scores[1].value is None


def test_cutting_takes_the_earliest_stop() -> None:
    assert cut("a\nQuestion: b\n", ["Question:", "\n"]) == "a"
    assert cut("abc", ["", "d"]) == "abc"


def test_sampled_answers_depend_on_the_seed_alone(folder: Folder) -> None:
    options = {
        "until": ["rev"],
        "max_gen_toks": 6,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
    }
    folder.write({**TASK, "generation_kwargs": options})
    seeds = []
    for seed in (0, 0, 1):
        engine = saying("1")
        folder.load().measure(engine, ENCODER, seed=seed)
        seeds.append([r.seed for r in engine.requests if "rest" not in r.id])
        assert engine.requests[0].sampling.temperature == 0.7
        assert engine.requests[0].sampling.top_k == 5
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 6


def test_an_engine_is_a_model_to_lm_eval() -> None:
    from lm_eval.api.model import LM

    lm = engine_lm(saying("1"), ENCODER, 64)
    assert isinstance(lm, LM)
    assert (lm.rank, lm.world_size, lm.max_length) == (0, 1, 62)


@pytest.mark.parametrize(
    ("metric", "said", "better", "value"),
    [
        ("acc", True, True, 1.0),
        ("acc", 0, True, 0.0),
        ("ter", 0.25, False, -0.25),
        ("perplexity", -3.5, False, -3.5),
        ("word_perplexity", (-6.0, 3), False, -2.0),
        ("bits_per_byte", (-8 * math.log(2), 4), False, -2.0),
        ("inst_level_strict_acc", [True, True, False, False], True, 0.5),
        ("anything", None, True, None),
        ("anything", [], True, None),
    ],
)
def test_higher_is_better_in_every_value(
    metric: str, said: Any, better: bool, value: float | None
) -> None:
    assert item_value(metric, said, higher_is_better=better) == value


def campaign(folder: Folder, prompts: str = "demo://rev?n=50&seed=3") -> CampaignConfig:
    rounds = [{"name": "rev", "prompts": prompts, "rewards": ["exact_match"], "steps": 1}]
    return CampaignConfig.model_validate(
        {
            "name": "test",
            "policy": {"model": "demo://digits"},
            "rounds": [{**rounds[0], "suite": {"items": 20}}],
            "suites": [folder.suite().model_dump(exclude_unset=True)],
        }
    )


def built(config: CampaignConfig) -> Suite:
    return build_suites(config, {"demo": demo_prompts}, ENCODER, context=128)[0]


def test_a_harness_suite_is_a_suite_like_others(folder: Folder, tmp_path: Path) -> None:
    suite = built(campaign(folder))
    assert suite.kind == "items"
    engine = saying("5 1 4 1 0 <eos>")
    (results,) = evaluate(engine, [suite], ENCODER, "s" * 64, seed=0).values()
    assert results.values == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert results.item_ids == suite.item_ids
    assert results.answers[0] == "5 1 4 1 0"
    assert results.prompts[0] == DOCS[0]["question"]
    results.save(tmp_path / "results.parquet")
    assert ItemResults.load(tmp_path / "results.parquet") == results
    again = evaluate(saying("5 1 4 1 1 <eos>"), [suite], ENCODER, "t" * 64, seed=0)
    assert again["reverse"].item_ids == results.item_ids
    assert again["reverse"].values == (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def test_its_documents_must_not_be_trained_on(folder: Folder) -> None:
    path = folder.path / "train.jsonl"
    path.write_text(json.dumps({"prompt": DOCS[2]["question"], "answer": "1"}) + "\n")
    config = campaign(folder, str(path))
    own = {"items": 20, "prompts": "demo://rev?n=50&seed=3"}
    content = config.model_dump(exclude_unset=True)
    content["rounds"][0]["suite"] = own
    with pytest.raises(UserError, match="training prompts of round 'rev'"):
        built(CampaignConfig.model_validate(content))


def test_the_shipped_tasks_take_a_users_files(tmp_path: Path) -> None:
    solved = {"question": "How many legs have two dogs?", "answer": "They have 2 * 4.\n#### 8"}
    asked = {
        "key": 1,
        "prompt": "Write no comma.",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {}],
    }
    (tmp_path / "gsm8k.jsonl").write_text(f"{json.dumps(solved)}\n" * 2)
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(asked) + "\n")
    gsm8k, ifeval = str(tmp_path / "gsm8k.jsonl"), str(tmp_path / "ifeval.jsonl")
    found = {}
    for name, files, metric in (
        ("gsm8k_local", {"test": gsm8k, "train": gsm8k}, None),
        ("gsm8k_text_local", {"test": gsm8k}, None),
        ("gsm8k_number_local", {"test": gsm8k}, "acc"),
        ("ifeval_local", {"test": ifeval}, "inst_level_strict_acc"),
    ):
        harness = {"task": name, "data_files": files, "metric": metric}
        if name == "gsm8k_local":
            harness["num_fewshot"] = 1
        spec = SuiteConfig.model_validate({"name": "it", "items": 1, "harness": harness})
        task = load_harness(spec, "suites.0", ENCODER, 4096)
        (found[name],), _ = task.measure(saying("8 8 8 <eos>"), ENCODER, seed=0)
    assert found["gsm8k_local"].value == 0.0
    assert found["gsm8k_text_local"].value is not None
    assert found["gsm8k_text_local"].value < 0.0
    assert found["ifeval_local"].value == 0.5


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("perplexity", "nats"),
        ("word_perplexity", "nats per word"),
        ("byte_perplexity", "nats per byte"),
        ("bits_per_byte", "bits per byte"),
        ("acc", "of reward"),
    ],
)
def test_a_loss_of_likelihood_is_said_in_its_own_unit(
    folder: Folder, metric: str, unit: str
) -> None:
    rolling = {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
    }  # fmt: skip
    scored = {"output_type": "loglikelihood"} if metric in ("perplexity", "acc") else rolling
    folder.write({**TASK, **scored, "metric_list": [{"metric": metric}]})
    config = CampaignConfig.model_construct(
        policy=PolicyConfig(model="m"), suites=(folder.suite(),), rounds=(), gate=GateConfig()
    )
    (suite,) = build_suites(config, {}, ENCODER, 64)
    before = ItemResults(
        suite="reverse", suite_hash=suite.hash, snapshot="a", item_ids=suite.item_ids,
        values=(-1.25,) * 6, statuses=("scored",) * 6, finishes=("stop",) * 6,
    )  # fmt: skip
    after = replace(before, snapshot="b", values=(-1.5,) * 6)
    compared = check(
        suite.rule, after, before, role="retention", against="parent", margin=2.0, alpha=0.05
    )
    assert f"0.25 {unit} lost against parent" in compared.sentence
    case = Case(
        target=NO_TARGET, candidate={"reverse": after}, parent={"reverse": before},
        suites=(suite.rule,), gate=GateConfig(), accepted_rounds=(),
    )  # fmt: skip
    verdict = decide(case)
    changes = [row.change for row in verdict_rows(verdict) if row.suite == "reverse"]
    assert changes == ["-0.25" if unit == "of reward" else f"-0.25 {unit}"]
