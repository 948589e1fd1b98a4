"""Claim: what `benchmarks.learner` claims, on a GPU: a random model of Qwen2-0.5B's shape in bfloat16.

Memory is what the device's allocator held at most. Nothing is downloaded; without a GPU it ends with
status 2.
"""

from __future__ import annotations

import sys

from benchmarks.common import QWEN, parser, prepare
from benchmarks.learner import arguments, compare

MISSING = "benchmarks.gpu needs a CUDA device and torch sees none; benchmarks.learner runs on a CPU"


def main() -> None:
    """Measure in alternation and print."""
    prepare()
    options = arguments(parser("The learner alone on a GPU, against TRL's trainers."))
    options.set_defaults(
        size=QWEN, dtype="bfloat16", prompts=8, group=8, tokens=256, trl_threads=[1], threads=1
    )
    args = options.parse_args()
    if args.quick:
        args.turns, args.steps, args.prompts, args.size = 1, 1, 2, "3M"
    import torch

    if not torch.cuda.is_available():
        print(MISSING, file=sys.stderr)
        sys.exit(2)
    compare("gpu", args)


if __name__ == "__main__":
    main()
