"""No claim but a floor: how long a learner step's matrix products take alone, on one thread.

Every product of one step is recorded with its sizes. Each kind is then timed by itself on tensors with the
same sizes and strides; its fastest time counts as often as the step computes it. The rest of the step is
everything else that a learner does: norms, activations, softmax, losses, copies, the optimizer. A learner
that computes the same numbers cannot be faster than its products.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import parser, prepare, save, show, write_model
from benchmarks.given import ALGORITHMS, LENGTHS, work
from benchmarks.learner_worker import begin_training, build_batch, matmul_rate
from benchmarks.worker import now, since

LINEAR = "_linear_pointwise"
"""Name of oneDNN's operator, whose second matrix is transposed."""
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", LINEAR)
"""Names of torch's operators that multiply matrices."""
Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides of a tensor."""
Kind = tuple[str, tuple[Layout, ...]]
"""Operator and the layouts of its matrices."""


def main() -> None:
    """Record, time and print."""
    prepare()
    options = parser("The floor of a learner step: its matrix products alone.")
    options.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=["grpo", "dpo"])
    options.add_argument("--lengths", nargs="*", choices=LENGTHS, default=["equal"])
    options.add_argument("--model", type=Path, help="a folder; without it a random model of 3M")
    options.add_argument("--repeats", type=int, default=20, help="times that each product is timed")
    options.set_defaults(threads=1, micro_batch_tokens=0)
    args = work(options).parse_args()
    if args.quick:
        args.repeats, args.prompts, args.tokens, args.algorithms = 2, 2, 8, ["grpo"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or write_model(Path(folder) / "model", "3M", with_eos=True)
        for algorithm, lengths in product(args.algorithms, args.lengths):
            task = Namespace(**{**vars(args), "algorithm": algorithm, "lengths": lengths})
            rows.append({"algorithm": algorithm, "lengths": lengths, **measure(task)})
    show(
        f"A learner step and its matrix products alone, {args.dtype}, 1 thread",
        ("", "step s", "products s", "share", "rate of a large product that they reach"),
        [
            (
                f"{row['algorithm']}, {row['lengths']}",
                f"{row['step_s']:.3f}",
                f"{row['products_s']:.3f}",
                f"{row['products_s'] / row['step_s']:.0%}",
                f"{row['flops'] / row['products_s'] / row['rate']:.0%}",
            )
            for row in rows
        ],
    )
    save(args.json, "products", args, rows)


def measure(task: Namespace) -> dict[str, float]:
    """Return the seconds of a step and of its products, their operations, and the machine's rate."""
    training, batch = begin_training(task), build_batch(task)
    learner = training.learner

    def step() -> float:
        learner.reference_cache.clear()
        start = now()
        training.update(batch)
        return float(since(start)[0])

    step()
    seconds = [step() for _ in range(3 if task.quick else 7)]
    counted = recorded(step)
    alone = sum(count * timed(kind, task.repeats) for kind, count in counted.items())
    return {
        "step_s": median(seconds),
        "products_s": alone,
        "flops": float(sum(count * operations(kind) for kind, count in counted.items())),
        "rate": matmul_rate(learner.policy.dtype, learner.device),
    }


def recorded(step: Callable[[], float]) -> Counter[Kind]:
    """Count the products of a step by kind."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    counted: Counter[Kind] = Counter()

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Mode that notes every product and computes it as usual."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            if name in PRODUCTS:
                matrices = [value for value in args if isinstance(value, torch.Tensor)]
                factors = matrices[:2] if name == LINEAR else matrices[-2:]
                counted[name, tuple((tuple(m.shape), m.stride()) for m in factors)] += 1
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]
        step()
    return counted


def operations(kind: Kind) -> int:
    """Count the floating point operations of a product."""
    name, ((left, _), (right, _)) = kind
    return 2 * prod(left) * (right[-2] if name == LINEAR else right[-1])


def timed(kind: Kind, repeats: int) -> float:
    """Measure the fastest of several products of this kind."""
    import torch

    name, layouts = kind
    left, right = (torch.empty_strided(*layout).normal_() for layout in layouts)
    if name == LINEAR:
        right = right.T
    multiply = torch.bmm if left.dim() == 3 else torch.mm
    multiply(left, right)
    seconds = []
    for _ in range(repeats):
        start = now()
        multiply(left, right)
        seconds.append(float(since(start)[0]))
    return min(seconds)


if __name__ == "__main__":
    main()
