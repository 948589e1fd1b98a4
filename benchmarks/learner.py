"""Claim: on the same completions our learner takes at most two thirds of the time of TRL's trainers, in
no more memory.

Nothing is sampled: both sides get the same token ids, advantages, pairs or ratings, and a step ends when
the weights have moved. Each side is a process, the sides take turns, and TRL runs once for every number of
threads in ``--trl-threads``; its fastest run counts. Their first gradients must have the same norm, which
shows that they do the same work.

A step is also compared with this machine's speed: 6 floating point operations per parameter and trained
token, 2 per token that is only measured, over the rate of a large matrix product in the same process at the
same time. Padding, attention and recomputation do not count as work.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import (
    QWEN,
    SIZES,
    middle,
    parser,
    prepare,
    save,
    show,
    verdict,
    write_model,
)
from benchmarks.given import ALGORITHMS, LENGTHS, PROMPT_TOKENS, given, work, work_of
from benchmarks.worker import Worker

REQUIRED = 1.5
"""Smallest ratio of TRL's seconds per step to ours."""
AIM = 0.6
"""Share of the machine's rate that we aim for."""
OPERATIONS = {"grpo": 6 + 2, "rloo": 6 + 2, "dpo": 6 + 2, "sft": 6, "kto": 6 + 2 + 2 * 2}
"""Operations per parameter and token of the batch: the trained pass, the reference's pass, and for KTO a
pass of both models over as many mismatched answers."""
SAME = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative difference of the first gradient's norm."""


def main() -> None:
    """Measure in alternation and print."""
    prepare()
    args = arguments(parser("The learner alone, against TRL's trainers.")).parse_args()
    if args.quick:
        args.turns, args.steps, args.prompts, args.tokens = 1, 1, 2, 8
        args.lengths, args.trl_threads = ["ragged"], args.trl_threads[:1]
    compare("learner", args)


def arguments(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of this benchmark and of `benchmarks.gpu`."""
    cores = len(os.sched_getaffinity(0))
    options.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=list(ALGORITHMS))
    options.add_argument("--lengths", nargs="*", choices=LENGTHS, default=list(LENGTHS))
    options.add_argument("--size", choices=[*SIZES, QWEN], default="3M")
    options.add_argument("--turns", type=int, default=4, help="turns of each side")
    options.add_argument("--steps", type=int, default=2, help="steps in a turn")
    options.add_argument("--threads", type=int, default=cores, help="of our learner")
    options.add_argument("--trl-threads", type=int, nargs="*", default=sorted({1, cores}))
    options.add_argument("--trl-passes", type=int, default=1, help="forward passes of a TRL step")
    options.add_argument("--micro-batch-tokens", type=int, default=0, help="0: the learner's own")
    return work(options)


def compare(name: str, args: argparse.Namespace) -> None:
    """Measure all algorithms on all lengths, one after another; then print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", args.size, with_eos=True)
        data = [
            measure(model, algorithm, lengths, args)
            for lengths in args.lengths
            for algorithm in args.algorithms
        ]
    report(data, args)
    save(args.json, name, args, data)


def measure(model: Path, algorithm: str, lengths: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure turns of a few steps for each side; the first two steps of a side are warm-up."""
    shared = {**work_of(args), "algorithm": algorithm, "lengths": lengths}
    ours = Worker.start(
        "benchmarks.learner_worker",
        model,
        threads=args.threads,
        micro_batch_tokens=args.micro_batch_tokens,
        **shared,
    )
    rivals = [
        Worker.start(
            "benchmarks.trl_worker",
            model,
            threads=threads,
            completions="given",
            passes=args.trl_passes,
            out=model.parent / "out",
            **shared,
        )
        for threads in args.trl_threads
    ]
    rates = []
    try:
        for side in (ours, *rivals):
            side.steps(1, keep=False)
            side.steps(1, keep=False)
        for _ in range(args.turns):
            for side in (ours, *rivals):
                side.steps(args.steps)
            rates.append(ours.answer["matmul_flops"])
    finally:
        for side in (ours, *rivals):
            side.close()
    rows = given(algorithm, argparse.Namespace(**shared))
    return {
        "algorithm": algorithm,
        "lengths": lengths,
        "tokens": sum(PROMPT_TOKENS + len(row.completion_ids) for row in rows),
        "parameters": ours.answer["parameters"],
        "matmul_flops": rates,
        "ours": _figures(ours),
        "trl": [_figures(rival) for rival in rivals],
    }


def _figures(side: Worker) -> dict[str, Any]:
    return {
        "threads": side.threads,
        "wall_s": side.wall_s,
        "cpu_s": side.cpu_s,
        "grad_norm": side.answer["grad_norm"],
        "peak_mib": side.answer["device_mib"] or side.answer["rss_mib"],
    }


def report(data: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print a row for each algorithm and kind of lengths."""
    rows = []
    for figures in data:
        ours, step_s = figures["ours"], middle(figures["ours"]["wall_s"])
        best = min(figures["trl"], key=lambda run: middle(run["wall_s"]))
        trl_s, least_mib = middle(best["wall_s"]), min(run["peak_mib"] for run in figures["trl"])
        work_flop = OPERATIONS[figures["algorithm"]] * figures["parameters"] * figures["tokens"]
        possible_s = work_flop / middle(figures["matmul_flops"])
        off = abs(ours["grad_norm"] / best["grad_norm"] - 1)
        assert off <= SAME[args.dtype], (
            f"both sides must do the same work: gradients {off:.1%} apart"
        )
        good = trl_s / step_s >= REQUIRED and ours["peak_mib"] <= least_mib
        rows.append(
            [f"{figures['algorithm']}, {figures['lengths']}", f"{figures['tokens'] / step_s:,.0f}",
             f"{figures['tokens'] / trl_s:,.0f} ({best['threads']})", f"{trl_s / step_s:.2f}x",
             f"{possible_s / step_s:.0%}", f"{possible_s / trl_s:.0%}", f"{ours['peak_mib']:.0f}",
             f"{least_mib:.0f}", verdict(good)]
        )  # fmt: skip
    rate = middle([rate for figures in data for rate in figures["matmul_flops"]]) / 1e9
    show(
        f"One learner step: {args.prompts} x {args.group} completions of up to {args.tokens} tokens, "
        f"{args.size} parameters, {args.dtype}, {args.threads} thread(s)",
        ["", "tokens/s", "TRL's (threads)", "faster", "of matmul", "TRL's", "peak MiB", "TRL's",
         f"{REQUIRED:g}x, no more MiB"],
        rows,
        f"of matmul: useful operations over those of a large matrix product here, {rate:,.0f} GFLOP/s; "
        f"aimed at {AIM:.0%}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
