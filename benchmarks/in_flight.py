"""Claim: engines that take new weights while they sample give fresher tokens for no longer steps.

Sampling is the slower part here: more completions than an engine samples at a time. Steps that wait until
the engine has finished before it takes the weights, and steps that hand them over (`sampling.in_flight`),
take turns on the same engine and learner. A token's age is the number of learner steps between the weights
that sampled it and those that learn from it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import (
    middle,
    parser,
    prepare,
    quickest,
    save,
    show,
    spread,
    verdict,
    write_model,
)
from benchmarks.given import work
from benchmarks.step import ours

LARGEST = 1.1
"""Largest ratio of the seconds of a step that hands weights over to those of one that waits."""
STEPS = 3
"""Number of steps in a turn; the first does not count, since its samples began the other way."""


def main() -> None:
    """Measure in turns and print."""
    prepare()
    args = _arguments()
    by_way: dict[str, list[dict[str, float]]] = {"waits": [], "in flight": []}
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", "3M")
        with ours(model, args) as side:
            side.step(0)
            number = 1
            for _ in range(args.turns):
                for way, steps in by_way.items():
                    side.in_flight = way == "in flight"
                    taken = [side.step(number + index) for index in range(STEPS)]
                    steps += taken[1:]
                    number += STEPS
    report(by_way, args)
    save(args.json, "in_flight", args, by_way)


def report(by_way: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print the table and the verdict."""
    rows, seconds, ages = [], [], []
    for way, steps in by_way.items():
        walls = [step["wall_s"] for step in steps]
        # Samples that are requested a step ahead are one step old unless their weights changed meanwhile.
        old = [1.0 - step["fresher"] for step in steps]
        rows.append([way, spread(walls), spread(old)])
        seconds.append(middle(walls))
        ages.append(middle(old))
    ratio = seconds[1] / seconds[0]
    show(
        f"One step of {args.prompts} x {args.group} x {args.tokens} tokens, {args.dtype}, one engine "
        f"that samples {args.max_num_seqs} at a time",
        [
            "engines take new weights",
            "s a step, median [min, max]",
            "age of a token, learner steps",
        ],
        rows,
        f"in flight a step takes {ratio:.2f} times as long, at most {LARGEST}, and tokens are younger: "
        f"{verdict(ratio <= LARGEST and ages[1] < ages[0])}",
    )


def _arguments() -> Any:
    options = parser("Weights handed over while engines sample, beside engines that finish first.")
    work(options)
    options.add_argument("--turns", type=int, default=6)
    options.add_argument("--max-num-seqs", type=int, default=32, help="completions at a time")
    options.set_defaults(
        algorithm="grpo", dtype=quickest(), tokens=128, engines=1, threads=1, staleness=1,
        in_flight=True, micro_batch_tokens=None,
    )  # fmt: skip
    args = options.parse_args()
    if args.quick:
        args.turns, args.prompts, args.tokens = 1, 2, 8
    return args


if __name__ == "__main__":
    main()
