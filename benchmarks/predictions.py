"""Claim: the formulas of `keel plan --gpu` are within 15% of the memory and 30% of the time of learner
steps that are measured here.

One process builds a learner for each case, takes steps, and is asked for its largest resident memory over
what it had before (reset by ``/proc/self/clear_refs``) and for the processor seconds of a step on one
thread. The first case calibrates the processor: its seconds give the one rate that all other times are
predicted with. ``--published`` predicts steps that NeMo RL publishes of its own runs on H100s instead, with
the shares of `DeviceConfig` as they stand.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil

from benchmarks.common import SIZES, parser, prepare, save, show, verdict, write_model

MEMORY, TIME = 0.15, 0.30
"""Largest relative errors."""
PROMPT_TOKENS = 16
CASES: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("GRPO, one anchor", "28M", {}, {}),
    ("no anchor", "28M", {}, {"anchors": {"new": []}}),
    (
        "completions of 192 tokens",
        "28M",
        {},
        {"sampling": {"prompts_per_step": 1, "max_tokens": 192}},
    ),
    ("activation checkpointing", "28M", {"gradient_checkpointing": True}, {}),
    ("LoRA of rank 16", "28M", {"lora": {"rank": 16}}, {}),
    ("critic of its own", "28M", {}, {"algorithm": {"name": "ppo", "critic": {"model": None}}}),
    ("16 layers", "50M", {}, {}),
)
"""Cases: a name, a size, and what changes in the policy and in the round."""
ROUND: dict[str, Any] = {
    "name": "measured", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1000,
    "sampling": {"group_size": 4, "prompts_per_step": 2, "max_tokens": 64},
    "anchors": {"new": [{"to": "base", "beta": 0.04, "estimator": "k2"}], "past": [], "general": []},
    "replay": {"past": 0.0, "general": 0.0},
}  # fmt: skip
SHAPES: dict[str, dict[str, int]] = {
    "50M": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096,
    }
}  # fmt: skip


class Published(NamedTuple):
    """A step that somebody else measured."""

    model: str
    ahead: bool
    """True if half of the devices sample the next step while the others learn."""
    devices: int
    tensor_parallel: int
    longest: int
    """Longest row, prompt and completion."""
    mean: int
    completions: int
    seconds: float


PUBLISHED = (
    Published("Llama-3.1-8B", False, 16, 1, 4096, 1060, 2048, 97.7),
    Published("Qwen3-32B", False, 32, 4, 4096, 3206, 2048, 393.0),
    Published("Qwen3-30B-A3B", False, 32, 4, 4096, 3154, 2048, 225.0),
    Published("Qwen3-235B-A22B", False, 128, 16, 8192, 5671, 512, 506.0),
    Published("Llama-3.1-8B", True, 16, 1, 4096, 1129, 2048, 74.6),
    Published("Qwen3-32B", True, 64, 4, 4096, 3207, 2048, 215.0),
    Published("Qwen3-30B-A3B", True, 32, 2, 4096, 3158, 2048, 244.0),
    Published("Qwen3-235B-A22B", True, 256, 8, 8192, 5691, 512, 241.0),
)
"""Steps in BF16 on H100s by NeMo RL 0.4 (docs/about/performance-summary.md of NVIDIA-NeMo/RL)."""
PUBLISHED_PROMPT, PUBLISHED_GROUP, PUBLISHED_SHARE = 128, 32, 0.8
"""Length of prompts, completions of each, and the engines' share of memory, which are not published."""
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "Qwen3-32B": {
        "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "tie_word_embeddings": False,
    },
    "Qwen3-235B-A22B": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "tie_word_embeddings": False,
    },
}  # fmt: skip


def main() -> None:
    """Measure every case and print it beside its prediction."""
    prepare()
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=3, help="measured, after one that warms up")
    options.add_argument("--published", action="store_true", help="predict published steps")
    args = options.parse_args()
    if args.published:
        report_published()
        return
    cases = CASES[:2] if args.quick else CASES
    data = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, size, policy, changes) in enumerate(cases):
            model = Path(folder) / size
            if not model.exists():
                write_model(model, size, with_eos=True, shapes={**SIZES, **SHAPES})
            config = campaign_of(model, policy, changes)
            if not number:
                measure(config, model, 1)  # Libraries come into memory.
            data.append(
                {"name": name, **measure(config, model, args.steps), **predicted(config, model)}
            )
            print(data[-1], flush=True)
    report(data)
    save(args.json, "predictions", args, data)


def campaign_of(model: Path, policy: dict[str, Any], changes: dict[str, Any]) -> Any:
    """Return the campaign of a case."""
    from align.config.campaign import CampaignConfig

    merged = {
        key: {**ROUND[key], **value} if isinstance(ROUND.get(key), dict) else value
        for key, value in changes.items()
    }
    return CampaignConfig.model_validate(
        {
            "name": "predictions",
            "policy": {"model": str(model), "threads": 1, **policy},
            "rounds": [{**ROUND, **merged}],
        }
    )


def measure(config: Any, model: Path, steps: int) -> dict[str, Any]:
    """Measure the largest memory of a learner that takes steps, and the processor seconds of each."""
    from align.learner.learner import Learner
    from align.learner.references import References
    from align.retention.methods import RetentionMethods

    trim()
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    learner = Learner(model, config.policy, folder_of=lambda _: model, scratch=model)
    training = learner.begin(
        config.rounds[0],
        References(base="base", parent="base"),
        num_steps=1000,
        seed=0,
        penalties=RetentionMethods(),
    )
    batch, seconds = batch_of(config.rounds[0]), []
    for _ in range(steps + 1):
        learner.reference_cache.clear()
        started = time.process_time()
        training.update(batch)
        seconds.append(time.process_time() - started)
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    grown = (int(line.split()[1]) << 10) - before
    del learner, training, batch
    return {"memory": grown, "seconds": min(seconds[1:])}


def trim() -> None:
    """Give freed memory back to the system, so that it does not count as the next case's."""
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def batch_of(spec: Any) -> Any:
    """Make up the completions of a step."""
    from align.algorithms.rows import Batch, Row

    random, rows = Random(0), []
    for _ in range(spec.sampling.prompts_per_step):
        prompt = tuple(random.choices(range(3, 98), k=PROMPT_TOKENS))
        for _ in range(spec.sampling.group_size):
            completion = tuple(random.choices(range(3, 98), k=spec.sampling.max_tokens))
            rows.append(
                Row(
                    prompt_ids=prompt, completion_ids=completion, advantage=random.gauss(0.0, 1.0),
                    source="new",
                )
            )  # fmt: skip
    return Batch(rows=tuple(rows))


def predicted(config: Any, model: Path) -> dict[str, Any]:
    """Predict the bytes of a case, and the operations of a step."""
    from align.learner.learner import MICRO_BATCH_TOKENS
    from align.report.forecast.devices import DeviceConfig
    from align.report.forecast.prediction import Texts, learning_s, rank_memory, rows_of
    from align.report.forecast.shape import shape_of

    spec, shape = config.rounds[0], shape_of(model)
    rows = rows_of(spec, Texts(prompt=PROMPT_TOKENS))
    memory = rank_memory(config, spec, model, shape, rows, budget=MICRO_BATCH_TOKENS["cpu"])
    unit = DeviceConfig(
        memory_gib=1,
        tflops=1,
        tflops_float32=1,
        memory_gbs=1e6,
        link_gbs=1,
        network_gbs=1,
        learning=1,
    )
    flops = learning_s(config, spec, model, shape, unit, rows) * 1e12
    return {"predicted_memory": memory.total, "flops": flops}


def report(data: Sequence[dict[str, Any]]) -> None:
    """Print the cases; the first gives the processor's rate."""
    rate = data[0]["flops"] / data[0]["seconds"]
    rows, passed = [], True
    for number, case in enumerate(data):
        seconds = case["flops"] / rate
        memory_error = case["predicted_memory"] / case["memory"] - 1
        time_error = seconds / case["seconds"] - 1
        passed &= abs(memory_error) <= MEMORY and abs(time_error) <= TIME
        rows.append(
            [
                case["name"],
                f"{case['memory'] / 2**20:.0f}",
                f"{case['predicted_memory'] / 2**20:.0f}",
                f"{100 * memory_error:+.0f}%",
                f"{case['seconds']:.2f}",
                f"{seconds:.2f}",
                f"{100 * time_error:+.0f}%" if number else "calibrates",
            ]
        )
    show(
        "Learner steps in float32, one thread",
        ["case", "MiB", "predicted", "error", "processor s a step", "predicted", "error"],
        rows,
        f"rate: {rate / 1e9:.0f} GFLOP/s; load of the machine {os.getloadavg()[0]:.1f}",
        f"At most {100 * MEMORY:.0f}% of memory, {100 * TIME:.0f}% of time: {verdict(passed)}",
    )


def report_published() -> None:
    """Print published steps beside what the formulas say of them."""
    from align.report.forecast import formulas
    from align.report.forecast.devices import DEVICES
    from align.report.forecast.shape import shape_from

    device, rows = DEVICES["h100"], []
    for step in PUBLISHED:
        shape = shape_from(CONFIGS[step.model])
        devices = step.devices // 2 if step.ahead else step.devices
        engines, answer = devices / step.tensor_parallel, step.mean - PUBLISHED_PROMPT
        load = formulas.SamplingLoad(
            prompts=step.completions / PUBLISHED_GROUP / engines,
            completions=step.completions / engines,
            prompt_tokens=PUBLISHED_PROMPT,
            completion_tokens=answer,
            longest=step.longest - PUBLISHED_PROMPT,
        )
        shared = {"devices": step.tensor_parallel, "number": 2}
        room = formulas.kv_tokens(shape, device, share=PUBLISHED_SHARE, **shared)
        at_once = min(256, room / step.mean)
        sampling = formulas.sampling_s(shape, device, load, at_once=at_once, **shared)
        batch = formulas.Rows(
            prompts=step.completions, completions=step.completions,
            prompt_tokens=PUBLISHED_PROMPT, completion_tokens=answer,
        )  # fmt: skip
        flops = formulas.learning_flops(shape, batch, references=1, checkpointed=True, extra=1)
        learning = flops / devices / formulas.rate(device, shape, 2, device.learning)
        total = max(sampling, learning) if step.ahead else sampling + learning
        rows.append(
            [
                f"{step.model} on {step.devices}{', one step ahead' if step.ahead else ''}",
                *(f"{value:.0f}" for value in (sampling, learning, total, step.seconds)),
                f"{total / step.seconds:.2f}",
            ]
        )
    show(
        "Steps of NeMo RL 0.4 on H100s, BF16",
        ["model", "sampling s", "learning s", "predicted s", "published s", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()
