"""Claim: with a vocabulary of 150,000 a step's logprobs take under 1 GiB, however many tokens it has.

The benchmark computes logprobs and entropy of 2,000 completion tokens over a head of 150,000 x 256, and the
gradient of their sum, once piece by piece and once with the whole table of logprobs. Each side runs in its
own process. The figure is its peak resident memory minus that of hidden states, head and the head's
gradient. Both must give the same gradient.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import parser, prepare, save, show, verdict

SIDES = ("pieces", "whole")
ALLOWED_MIB = 1024
SAME = 1e-5
"""Largest relative difference between the gradients' norms."""


def main() -> None:
    """Measure both sides, each in its own process, and print."""
    prepare()
    options = parser("Memory of the output head, in pieces and at once.")
    options.add_argument("--tokens", type=int, nargs="*", default=[1000, 2000])
    options.add_argument("--vocabulary", type=int, default=150_000)
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.side is not None:
        print(json.dumps(measure(args.side, args.tokens[0], args.vocabulary, args.hidden)))
        return
    if args.quick:
        args.tokens, args.vocabulary = [1000], 40_000
    data = [
        run(side, tokens, args.vocabulary, args.hidden) for tokens in args.tokens for side in SIDES
    ]
    report(data)
    save(args.json, "head", args, data)


def run(side: str, tokens: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    settings = {"side": side, "tokens": tokens, "vocabulary": vocabulary, "hidden": hidden}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.head", *words], stdout=subprocess.PIPE, check=True
    )
    return {**settings, **json.loads(done.stdout)}


def measure(side: str, tokens: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """Measure the growth of resident memory in MiB, the seconds, and the norm of the gradient."""
    import psutil
    import torch

    from align.algorithms.outputs import CHUNK, Outputs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch.nn.Linear(hidden, vocabulary, bias=False)
    head.weight.grad = torch.zeros_like(head.weight)
    hidden_ND = torch.randn(tokens, hidden, requires_grad=True)
    outputs = Outputs(
        hidden_ND=hidden_ND,
        head=head,
        targets_N=torch.randint(vocabulary, (tokens,)),
        temperature=1.0,
        dtype=torch.float32,
        vocabulary=vocabulary,
        chunk=CHUNK if side == "pieces" else tokens * vocabulary,
    )
    before = psutil.Process().memory_info().rss / 2**20
    started = time.perf_counter()
    (outputs.logprobs_N.sum() + outputs.entropy_N.sum()).backward()
    return {
        "seconds": time.perf_counter() - started,
        "growth_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before,
        "gradient_norm": float(torch.cat([head.weight.grad, hidden_ND.grad]).norm()),
        "in_pieces": not outputs.fits,
    }


def report(data: list[dict[str, Any]]) -> None:
    """Print the table; the claim is about the side in pieces, and the other side is for comparison."""
    rows = []
    for pieces, whole in zip(data[::2], data[1::2], strict=True):
        off = abs(pieces["gradient_norm"] / whole["gradient_norm"] - 1)
        good = pieces["in_pieces"] and pieces["growth_mib"] <= ALLOWED_MIB and off <= SAME
        rows.append(
            [f"{pieces['tokens']:,} tokens", f"{pieces['growth_mib']:,.0f}",
             f"{whole['growth_mib']:,.0f}", f"{pieces['seconds']:.1f}", f"{whole['seconds']:.1f}",
             f"{off:.0e}", f"{ALLOWED_MIB:,} {verdict(good)}"]
        )  # fmt: skip
    columns = ["", "MiB in pieces", "MiB at once", "s in pieces", "s at once", "gradient off by",
               "allowed MiB"]  # fmt: skip
    show(f"The output head over a vocabulary of {data[0]['vocabulary']:,}", columns, rows)


if __name__ == "__main__":
    main()
