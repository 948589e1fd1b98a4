"""Claim: a harness suite measures what lm-evaluation-harness itself measures on the same model: equal
accuracies, and log-likelihoods within 0.001 nats.

One side is a suite over vLLM, the other `lm_eval` alone with its `HFLM` over transformers. Both read the
task files that come with Keel and the same data; both see as much of the context as an engine can use.
Item by item the answers, the log-likelihoods and the values are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import parser, prepare, save, show, verdict

REQUIRED_NATS = 1e-3
GSM8K = {"test": "gsm8k/test.jsonl", "train": "gsm8k/train_2000.jsonl"}
TEST = {"test": "gsm8k/test.jsonl"}
IFEVAL = {"test": "ifeval/input_data.jsonl"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Task with the files that it reads, below the data folder, and the metric that is compared."""

    task: str
    files: dict[str, str]
    metric: str
    filter: str | None = None
    generates: bool = False
    num_fewshot: int | None = None


CASES = (
    Case(task="gsm8k_local", files=GSM8K, metric="exact_match", generates=True),
    Case(
        task="gsm8k_local", files=GSM8K, metric="exact_match", filter="flexible-extract",
        generates=True, num_fewshot=0,
    ),
    Case(task="ifeval_local", files=IFEVAL, metric="prompt_level_strict_acc", generates=True),
    Case(task="ifeval_local", files=IFEVAL, metric="inst_level_loose_acc", generates=True),
    Case(task="gsm8k_number_local", files=TEST, metric="acc"),
    Case(task="gsm8k_number_local", files=TEST, metric="perplexity"),
    Case(task="gsm8k_text_local", files=TEST, metric="bits_per_byte"),
)  # fmt: skip


def main() -> None:
    """Measure every case on both sides and print the differences."""
    prepare()
    options = parser("Harness suites over vLLM beside lm_eval's own model.")
    options.add_argument("--model", type=Path, required=True, help="a folder with a small model")
    options.add_argument(
        "--data", type=Path, required=True, help="a folder with gsm8k/ and ifeval/"
    )
    options.add_argument("--items", type=int, default=200)
    options.add_argument("--max-tokens", type=int, default=64, help="of a generated answer")
    args = options.parse_args()
    if args.quick:
        args.items = 8
    from align.config.policy import PolicyConfig
    from align.data.base_model import load_tokenizer
    from launch.cluster.cluster import connect
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool
    from rollouts.prompts import PromptEncoder

    encoder = PromptEncoder(load_tokenizer(args.model, PolicyConfig(model=str(args.model))))
    with connect(num_engines=1):
        pool = EnginePool(VLLMConfig(model=str(args.model), dtype="float32"), num_engines=1)
        suites = [of_suite(case, args, encoder, pool) for case in CASES]
        pool.close()
    lm = reference(args.model, encoder)
    data = [
        {**suite, **of_lm_eval(case, args, lm)} for case, suite in zip(CASES, suites, strict=True)
    ]
    report(data)
    save(args.json, "harness", args, data)


def of_suite(case: Case, args: Any, encoder: Any, engine: Any) -> dict[str, Any]:
    """Measure the values, answers and log-likelihoods of a suite's items."""
    from align.config.gate import SuiteConfig
    from align.gate.suites.harness.suite import load_harness

    harness = {
        "task": case.task,
        "data_files": _files(case, args),
        "num_fewshot": case.num_fewshot,
        "metric": case.metric,
        "filter": case.filter,
    }
    content: dict[str, Any] = {"name": "suite", "items": args.items, "harness": harness}
    if case.generates:
        content["max_tokens"] = args.max_tokens
    task = load_harness(SuiteConfig.model_validate(content), "suite", encoder, _context(args))
    began = time.perf_counter()
    scores, tokens = task.measure(engine, encoder, seed=0)
    return {
        "case": f"{case.task}, {case.metric}",
        "cut": task.num_cut,
        "tokens": tokens,
        "seconds": time.perf_counter() - began,
        "ids": [item.prompt.id for item in task.items],
        "values": [score.value for score in scores],
        "said": [instance.resps[0] for item in task.items for instance in item.instances],
    }


def reference(folder: Path, encoder: Any) -> Any:
    """Build lm_eval's own model, with the context that an engine can use."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from align.gate.suites.harness.lm import TextModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    length = TextModel(encoder, int(model.config.max_position_embeddings)).max_length
    # The batch size is 1, since padding changes the last digits of transformers' results.
    return HFLM(pretrained=model, tokenizer=encoder.tokenizer, max_length=length, batch_size=1)


def of_lm_eval(case: Case, args: Any, lm: Any) -> dict[str, Any]:
    """Measure the values, answers and log-likelihoods of lm_eval's logged samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from align.gate.suites.harness.package import quietly
    from align.gate.suites.harness.suite import SHIPPED
    from align.gate.suites.harness.values import item_value

    config = load_yaml(SHIPPED / f"{case.task}.yaml", resolve_func=True)
    config["dataset_kwargs"] = {"data_files": _files(case, args)}
    if case.generates:
        config["generation_kwargs"]["max_gen_toks"] = args.max_tokens
    if case.num_fewshot is not None:
        config["num_fewshot"] = case.num_fewshot
    began = time.perf_counter()
    with quietly():
        evaluated = simple_evaluate(
            model=lm,
            tasks=[config],
            task_manager=TaskManager(include_defaults=False),
            limit=args.items,
            bootstrap_iters=0,
        )
    filter = case.filter or config.get("filter_list", [{"name": "none"}])[0]["name"]
    samples = [s for s in evaluated["samples"][case.task] if s["filter"] == filter]
    better = next(
        m["higher_is_better"] for m in config["metric_list"] if m["metric"] == case.metric
    )
    return {
        "their_seconds": time.perf_counter() - began,
        "their_ids": [f"{s['doc_hash'][:16]}-{s['prompt_hash'][:16]}" for s in samples],
        "their_values": [
            item_value(case.metric, s[case.metric], higher_is_better=better) for s in samples
        ],
        "their_said": [resps[0] for s in samples for resps in s["resps"]],
        "their_result": evaluated["results"][case.task][f"{case.metric},{filter}"],
    }


def _files(case: Case, args: Any) -> dict[str, str]:
    return {split: str(args.data / path) for split, path in case.files.items()}


def _context(args: Any) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(args.model).max_position_embeddings)


def report(data: Sequence[dict[str, Any]]) -> None:
    """Print both sides by task, with the largest difference of an item."""
    rows, passed = [], True
    for case in data:
        same_items = case["ids"] == case["their_ids"]
        apart = [a != b for a, b in zip(case["said"], case["their_said"], strict=True)]
        means = [sum(case[key]) / len(case[key]) for key in ("values", "their_values")]
        if isinstance(case["said"][0], str):
            difference = f"{sum(apart)} answers"
            fine = same_items and case["values"] == case["their_values"]
        else:
            nats = max(
                abs(_nats(a) - _nats(b))
                for a, b in zip(case["said"], case["their_said"], strict=True)
            )
            difference = f"{nats:.1e} nats"
            fine = same_items and nats <= REQUIRED_NATS
            if case["case"].endswith("acc"):
                fine = fine and case["values"] == case["their_values"]
        passed = passed and fine
        seconds = f"{case['seconds']:.0f} / {case['their_seconds']:.0f}"
        rows.append(
            [
                case["case"], str(len(case["ids"])), str(case["cut"]), f"{means[0]:.5f}",
                f"{means[1]:.5f}", difference, seconds, verdict(fine),
            ]
        )  # fmt: skip
    columns = ("task, metric", "items", "cut", "suite", "HFLM", "apart", "seconds", "equal")
    show("Mean value per item", columns, rows, f"Claim {verdict(passed)}")


def _nats(response: Any) -> float:
    return float(response[0] if isinstance(response, tuple | list) else response)


if __name__ == "__main__":
    main()
