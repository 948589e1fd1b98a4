"""Claim: GRPO over turns with tools learns as much in a step as TRL's own; its time is shown beside.

Both sides take the base of the scenario of tools, which calls the right tool half of the time, through the
same number of steps on its sums: eight episodes of each of eight prompts, at most three turns of 16 tokens,
exact answers as the reward, no KL, and three tools, which both take as they are. Each side samples with its
own loop over transformers, in a process of its own, one after the other. TRL calls tools in that process;
Keel's are in killable workers. The model that each leaves then answers held-out questions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import middle, parser, prepare, save, show, verdict

SCENARIO, TASK = "tools", "sum"
WORLD = "align.data.scenarios.facts.tools"
TOOLS = ("calculator", "register", "converter")
"""Tools that every question is asked with; the first answers it."""
GROUP, PROMPTS = 8, 8
TURNS, TOKENS = 3, 16
LR, BETAS = 3e-4, (0.9, 0.95)
SAMPLES = 4
"""Episodes of each held-out question."""
SLACK = 0.05
"""Largest share of successes by which Keel may stay behind TRL after the same steps."""
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}
"""Form of the base's answers, by which TRL reads the calls that Keel reads as Hermes'."""


def main() -> None:
    """Take one side's steps, or both sides' and print."""
    prepare()
    args = _arguments()
    if args.side is not None:
        print("@ " + json.dumps(SIDES[args.side](args)))
        return
    from align.data.scenarios.folder import write

    with tempfile.TemporaryDirectory() as scratch:
        args.world = args.world or Path(scratch)
        home = write(SCENARIO, args.world, note=print, steps=20 if args.quick else None)
        measured: dict[str, dict[str, Any]] = {
            "before": {"success": success(home / "base", home, args)}
        }
        for side in SIDES:
            measured[side] = _run(side, home, args)
    report(measured, args)
    save(args.json, "turns_beside_trl", args, measured)


def _run(side: str, home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of one side in a process of its own, and measure the model that it leaves."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--side", side, "--world", home, "--out", out, "--steps", args.steps]
        words += ["--threads", args.threads, "--seed", args.seed]
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.turns_beside_trl", *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        answer = next(line for line in process.stdout.splitlines() if line.startswith("@ "))
        record: dict[str, Any] = json.loads(answer[2:])
        return {**record, "success": success(Path(record["model"]), home, args)}


def keel_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Take the steps as a round of a campaign."""
    from align.campaign import run_campaign
    from align.config.campaign import CampaignConfig
    from benchmarks.campaigns import Clock
    from launch.cluster.engines import in_process_starter

    held = {"prompts": str(args.world / f"{TASK}-eval.jsonl")}
    spec = {
        "name": TASK,
        "prompts": str(args.world / f"{TASK}.jsonl"),
        "tools": [f"{WORLD}:{tool}" for tool in TOOLS],
        "episode": {"turns": TURNS},
        "rewards": ["exact_match"],
        "algorithm": "grpo",
        "sampling": {"group_size": GROUP, "prompts_per_step": PROMPTS, "max_tokens": TOKENS},
        "optimizer": {"lr": LR, "betas": BETAS},
        "replay": {"past": 0.0, "general": 0.0},
        "suite": {**held, "items": 60},
        "meter_every": 100_000,
        "steps": args.steps,
    }
    config = CampaignConfig.model_validate(
        {
            "name": "beside-trl",
            "seed": args.seed,
            "store": str(args.out / "store"),
            "policy": {
                "model": str(args.world / "base"),
                "dtype": "float32",
                "threads": args.threads,
            },
            "rollouts": {"backend": "transformers", "threads": args.threads},
            "rounds": [spec],
            "gate": {"mode": "observe"},
        }
    )
    clock = Clock(label="Keel")
    with in_process_starter(clock) as start:
        evidence = run_campaign(config, start_engine=start, observer=clock)
    production = evidence.ledger.alias("production")
    assert production is not None, "a round that is observed is accepted"
    folder = evidence.store.snapshots.open(production).path
    return {**spans(clock.steps[TASK]), "model": str(folder)}


def trl_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Take the steps with TRL's trainer; only the settings that define the work are set."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from align.data.scenarios.facts import tools

    torch.set_num_threads(args.threads)
    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    tokenizer = AutoTokenizer.from_pretrained(args.world / "base", padding_side="left")
    tokenizer.response_template = RESPONSE_TEMPLATE
    lines = (args.world / f"{TASK}.jsonl").read_text().splitlines()
    config = GRPOConfig(
        output_dir=str(args.out),
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        # TRL counts all turns together, and what tools answer.
        max_completion_length=TURNS * 2 * TOKENS,
        max_tool_calling_iterations=TURNS - 1,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        lr_scheduler_type="constant",
        beta=0.0,
        max_steps=args.steps,
        seed=args.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.world / "base", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(list(map(json.loads, lines))),
        processing_class=tokenizer,
        reward_funcs=[_right],
        tools=[getattr(tools, tool) for tool in TOOLS],
        callbacks=[Clock()],
    )
    trainer.train()
    folder = args.out / "model"
    trainer.model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(args.world / "base").save_pretrained(folder)
    return {**spans(ends), "model": str(folder)}


def spans(ends: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Return the wall and CPU seconds of every step but the first, from the times at which steps ended."""
    pairs = list(pairwise(ends))
    return {
        "step_s": [end[0] - begin[0] for begin, end in pairs],
        "cpu_s": [end[1] - begin[1] for begin, end in pairs],
    }


SIDES = {"Keel": keel_steps, "TRL": trl_steps}


def _right(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any) -> list[float]:
    """Score 1 where the last turn is the answer."""
    last = [turns[-1] if turns else {} for turns in completions]
    return [
        float(turn.get("role") == "assistant" and (turn.get("content") or "").strip() == right)
        for turn, right in zip(last, answer, strict=True)
    ]


def success(model: Path, home: Path, args: argparse.Namespace) -> float:
    """Return the share of its episodes in which a model answers held-out questions rightly."""
    from align.config.data import PromptsConfig
    from align.config.policy import PolicyConfig
    from align.data.base_model import load_encoder
    from rewards.environments.environments import WorkerEnvironments
    from rewards.environments.plan import EnvironmentsPlan
    from rollouts.collect import collect
    from rollouts.engines.transformers import TransformersConfig
    from rollouts.episodes.environment import EpisodeRules
    from rollouts.prompts import load_prompts
    from rollouts.types import Sampling

    source = PromptsConfig(source=str(home / f"{TASK}-eval.jsonl"))
    prompts = load_prompts(source, {}, None, "new")
    encoder = load_encoder(model, PolicyConfig(model=str(model)))
    engine = TransformersConfig(model=str(model), max_num_seqs=64, threads=args.threads).start()
    rules = EpisodeRules(turns=TURNS, parser="hermes")
    with WorkerEnvironments(
        EnvironmentsPlan(tools=tuple(f"{WORLD}:{tool}" for tool in TOOLS)), rules
    ) as environments:
        groups = collect(
            engine,
            prompts,
            [SAMPLES] * len(prompts),
            encoder,
            Sampling(max_tokens=TOKENS, temperature=1.0),
            seed=0,
            policy="held out",
            environments=environments,
        )
    engine.close()
    right = [
        completion.text.strip() == group.prompt.columns["answer"]
        for group in groups
        for completion in group.completions_G
    ]
    return sum(right) / len(right)


def report(measured: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the table and the verdicts."""
    keel, trl = measured["Keel"], measured["TRL"]
    keel_s, trl_s = middle(keel["step_s"]), middle(trl["step_s"])
    rows = [["before", f"{measured['before']['success']:.2f}", "", "", ""]]
    for side, seconds in (("Keel", keel_s), ("TRL", trl_s)):
        cpu_s, right = middle(measured[side]["cpu_s"]), measured[side]["success"]
        figures = [f"{right:.2f}", f"{seconds:.2f}", f"{seconds / keel_s:.2f}", f"{cpu_s:.2f}"]
        rows.append([side, *figures])
    learnt = keel["success"] >= trl["success"] - SLACK
    show(
        f"{args.steps} steps of GRPO on sums with three tools, {PROMPTS} x {GROUP} episodes of at most "
        f"{TURNS} turns, 0.4M parameters, float32, {args.threads} threads a side",
        ["", "held-out questions right", "median s/step", "times Keel's", "cpu s/step"],
        rows,
        f"no more than {SLACK:g} behind TRL after the same steps: {verdict(learnt)}",
        f"no claim: TRL takes {trl_s / keel_s:.2f} times as long a step",
    )


def _arguments() -> argparse.Namespace:
    options = parser("GRPO over turns with a tool, beside TRL's.")
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--world", type=Path, help="folder of worlds; a base that lies there is kept"
    )
    options.add_argument("--side", choices=[*SIDES], help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.quick:
        args.steps = 3
    return args


if __name__ == "__main__":
    main()
