"""Harness suites on real vLLM against lm_eval's own `HFLM`: the same answers, the same likelihoods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.config.gate import SuiteConfig
from align.data.demo import BASE_MODEL
from align.data.demo.tokenizer import build_tokenizer
from align.data.demo.world import demo_prompts
from align.gate.suites.harness.lm import engine_lm
from align.gate.suites.harness.suite import load_harness
from align.gate.suites.harness.task import HarnessTask
from rollouts.engines.vllm import VLLMConfig
from rollouts.pool.pool import EnginePool
from rollouts.prompts import PromptEncoder

pytestmark = pytest.mark.usefixtures("ray_cluster")

ITEMS = 24
CONTEXT = 64
TASKS: dict[str, dict[str, Any]] = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "exact_match"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer.split(stop)[0]}}",
        "generation_kwargs": {"until": [" 7"], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "long": {
        "output_type": "generate_until",
        "doc_to_text": "9 9 9 9 9 9 9 9 {{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 54},
        "metric_list": [{"metric": "exact_match"}],
    },
    "worked": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc_norm"}],
        "training_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 5,
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "say": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
}
"""Tasks: of ``long`` exactly the nines are cut off, of ``worked`` the first examples; ``read`` needs
windows."""
CUT = {"long": ITEMS, "worked": 3 * ITEMS}
"""Requests that lose their beginning."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks over prompts of the tiny world, which its base model answers right now and then."""
    folder = tmp_path_factory.mktemp("tasks")
    prompts = demo_prompts(f"demo://rev?split=eval&n={ITEMS}") + demo_prompts(
        f"demo://general?split=eval&n={ITEMS}"
    )
    docs = [
        {
            "prompt": prompt.text,
            "answer": prompt.columns["answer"],
            "choices": [prompt.columns["answer"], "1 2 3 4 5", "9"],
            "text": " ".join(f"{one.text} {one.columns['answer']}" for one in prompts[i:][:8]),
            "stop": " 7",
        }
        for i, prompt in enumerate(prompts[ITEMS // 2 : ITEMS // 2 + ITEMS])
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, config in TASKS.items():
        data = {"dataset_path": "json", "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **config}))
    return folder


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[EnginePool]:
    pool = EnginePool(
        VLLMConfig(model=str(BASE_MODEL), max_num_seqs=32, kv_cache_mb=64, device="cpu")
    )
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    """lm_eval's own model over the same weights; its context is what an engine can use of one."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype="float32")
    tokenizer = build_tokenizer()
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=CONTEXT - 2, batch_size=1)


def load(folder: Path, name: str, metric: str) -> HarnessTask:
    harness = {
        "task": name,
        "include_path": str(folder),
        "data_files": {"test": str(folder / "docs.jsonl")},
        "metric": metric,
    }
    spec = SuiteConfig.model_validate({"name": name, "items": ITEMS, "harness": harness})
    return load_harness(spec, "suites.0", PromptEncoder(build_tokenizer()), CONTEXT)


def by_lm_eval(folder: Path, name: str, lm: Any) -> dict[str, Any]:
    """The same task through lm_eval alone, as its `simple_evaluate` would, with its logged samples."""
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    files = {"data_files": {"test": str(folder / "docs.jsonl")}}
    config = json.loads((folder / f"{name}.yaml").read_text())
    loaded = TaskManager(include_defaults=False).load({**config, "dataset_kwargs": files})
    loaded["tasks"][name].set_fewshot_seed(1234)
    found: dict[str, Any] = evaluate(lm, loaded, bootstrap_iters=0)
    return found


@pytest.fixture(scope="module")
def expected(folder: Path, reference: Any) -> dict[str, Any]:
    """Measure lm_eval's own model, by task."""
    return {name: by_lm_eval(folder, name, reference) for name in TASKS}


def logprobs(answers: Any) -> list[float]:
    return [float(one[0] if isinstance(one, tuple | list) else one) for one in answers]


@pytest.mark.parametrize("name", TASKS)
def test_items_get_what_lm_eval_gives_them(
    folder: Path, engine: EnginePool, expected: dict[str, Any], name: str
) -> None:
    samples = expected[name]["samples"][name]
    for metric in [one["metric"] for one in TASKS[name]["metric_list"]]:
        task = load(folder, name, metric)
        scores, _ = task.measure(engine, PromptEncoder(build_tokenizer()), seed=0)
        assert [item.prompt.id for item in task.items] == [
            f"{s['doc_hash'][:16]}-{s['prompt_hash'][:16]}" for s in samples
        ]
        assert task.num_cut == CUT.get(name, 0)
        if "perplexity" not in metric:
            assert [score.value for score in scores] == [float(s[metric]) for s in samples]
        if TASKS[name]["output_type"] == "generate_until":
            said = [score.completion.text for score in scores]
            assert said == [s["resps"][0][0] for s in samples]
            assert len(set(said)) > 3
        else:
            ours = logprobs(one.resps[0] for one in task.questions)
            theirs = logprobs(resps[0] for s in samples for resps in s["resps"])
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3
            assert max(theirs) - min(theirs) > 1.0, "all are alike: nothing was compared"


def test_the_base_model_is_right_now_and_then(expected: dict[str, Any]) -> None:
    """Otherwise equal accuracies would say nothing."""
    for name, metric in {"choose": "acc", "answer": "exact_match", "long": "exact_match"}.items():
        right = sum(float(s[metric]) for s in expected[name]["samples"][name])
        assert 0 < right < ITEMS, name


def test_lm_eval_takes_an_engine_for_a_model(
    folder: Path, engine: EnginePool, expected: dict[str, Any]
) -> None:
    lm = engine_lm(engine, PromptEncoder(build_tokenizer()), CONTEXT)
    for name in ("choose", "long"):
        assert by_lm_eval(folder, name, lm)["results"] == expected[name]["results"]
