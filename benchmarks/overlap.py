"""Claim: sampling one step ahead hides the faster of sampling and learning behind the slower.

There is one engine and one learner thread. Sampling alone, learning alone, and steps with
``max_staleness: 1`` take turns; the step may take at most 1.25 times the slower of the two parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import middle, parser, prepare, quickest, save, show, verdict, write_model
from benchmarks.given import work
from benchmarks.step import ours

LARGEST = 1.25
"""Largest ratio of a step's seconds to those of its slower part."""


def main() -> None:
    """Measure in turns and print."""
    prepare()
    args = _arguments()
    parts: dict[str, list[float]] = {"sample": [], "learn": [], "step": []}
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", "3M")
        with ours(model, args) as side:
            side.step(0)
            for number in range(1, args.turns + 1):
                taken = side.step(number)
                parts["step"].append(taken["wall_s"])
                _alone(side, number, parts)
    slower = max(middle(parts["sample"]), middle(parts["learn"]))
    ratio = middle(parts["step"]) / slower
    rows = [[name, f"{middle(values):.2f}"] for name, values in parts.items()]
    show(
        f"One step of {args.prompts} x {args.group} x {args.tokens} tokens, {args.dtype}, one engine "
        "and one learner thread",
        ["", "median s"],
        rows,
        f"a step takes {ratio:.2f} times its slower part, at most {LARGEST}: "
        f"{verdict(ratio <= LARGEST)}",
    )
    save(args.json, "overlap", args, parts)


def _alone(side: Any, number: int, parts: dict[str, list[float]]) -> None:
    """Measure both parts of a step one after another, once the samples requested ahead have arrived."""
    from align.learner.batching import build_batch

    side.pending[number + 1].groups()
    started = time.perf_counter()
    groups = side.ask(10**6 + number, number).groups()
    sampled = time.perf_counter()
    batch = build_batch(side.rubric.score(groups), side.spec.algorithm, replay_rewards=False)
    side.training.update(batch)
    parts["sample"].append(sampled - started)
    parts["learn"].append(time.perf_counter() - sampled)


def _arguments() -> argparse.Namespace:
    options = parser("A step that samples ahead, beside its two parts alone.")
    work(options)
    options.add_argument("--algorithm", choices=["grpo"], default="grpo")
    options.add_argument("--turns", type=int, default=8)
    options.add_argument("--micro-batch-tokens", type=int)
    options.set_defaults(
        dtype=quickest(), engines=1, threads=1, staleness=1, in_flight=False, max_num_seqs=128
    )
    args = options.parse_args()
    if args.quick:
        args.turns, args.prompts, args.tokens = 1, 2, 8
    return args


if __name__ == "__main__":
    main()
