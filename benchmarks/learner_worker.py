"""Our side of `benchmarks.learner`: a process with a learner that updates on given completions.

`benchmarks.worker` has the protocol of orders and answers. After every order the process also measures the
speed of matrix products on this machine at that moment, with the same threads and the same dtype.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import prepare
from benchmarks.given import given, task
from benchmarks.worker import answer, now, orders, since

MATRIX = {"cpu": 1024, "cuda": 8192}
"""Number of rows and columns of the matrices whose product is timed."""
PRODUCTS = 8
"""Number of products, of which the fastest counts."""


def main() -> None:
    """Begin the training and obey."""
    prepare()
    options = task(__doc__)
    options.add_argument("--micro-batch-tokens", type=int, default=0, help="0: the learner's own")
    chosen = options.parse_args()

    training, batch = begin_training(chosen), build_batch(chosen)
    learner = training.learner
    told: dict[str, Any] = {"parameters": sum(p.numel() for p in learner.policy.parameters())}
    for count in orders():
        taken = []
        for _ in range(count):
            # TRL's trainers ask their reference in every step: so must ours, as if the rows were new.
            learner.reference_cache.clear()
            start = now()
            metrics = training.update(batch)
            taken.append(since(start))
            told.setdefault("grad_norm", metrics["grad_norm"])
        answer(taken, matmul_flops=matmul_rate(learner.policy.dtype, learner.device), **told)


def begin_training(chosen: argparse.Namespace) -> Any:
    """A round of the algorithm on a learner of its own.

    Where TRL has a KL term ours has the same: `k2` has the gradient of its GRPO's, and `k1` is a KL in the
    reward, as in its RLOO.
    """
    from align.config.campaign import (
        AnchorConfig,
        AnchorsConfig,
        LoraConfig,
        OptimizerConfig,
        PolicyConfig,
        RoundSettings,
    )
    from align.learner.learner import Learner
    from align.learner.references import References
    from align.retention.methods import RetentionMethods

    beta = {"grpo": chosen.beta, "rloo": chosen.beta}.get(chosen.algorithm, 1.0)
    anchor = AnchorConfig(
        to="base", beta=beta, estimator="k1" if chosen.algorithm == "rloo" else "k2"
    )
    learner = Learner(
        chosen.model,
        PolicyConfig(
            model=str(chosen.model),
            threads=chosen.threads,
            dtype=chosen.dtype,
            lora=LoraConfig(rank=chosen.lora) if chosen.lora else None,
        ),
        folder_of=lambda _: chosen.model,
        scratch=chosen.model,
    )
    spec = RoundSettings(
        algorithm=_algorithm(chosen.algorithm),
        optimizer=OptimizerConfig(
            lr=chosen.lr, micro_batch_tokens=chosen.micro_batch_tokens or None
        ),
        anchors=AnchorsConfig(
            new=() if chosen.algorithm == "sft" else (anchor,), past=(), general=()
        ),
    )
    return learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=10**6,
        seed=0,
        penalties=RetentionMethods(),
    )


def build_batch(chosen: argparse.Namespace) -> Any:
    """Build the batch of every step."""
    from align.algorithms.rows import Batch, Row

    rows = [
        Row(
            prompt_ids=row.prompt_ids, completion_ids=row.completion_ids,
            advantage=row.advantage, source="new",
            unit=index // 2 if chosen.algorithm == "dpo" else None,
        )
        for index, row in enumerate(given(chosen.algorithm, chosen))
    ]  # fmt: skip
    return Batch(rows=tuple(_algorithm(chosen.algorithm).examples(rows)))


def _algorithm(name: str) -> Any:
    from align.algorithms import algorithm_from

    source = {"dpo": {"pairs": "file"}, "kto": {"ratings": "file"}}
    return algorithm_from({"name": name, **source.get(name, {})})


def matmul_rate(dtype: Any, device: Any) -> float:
    """Measure the floating point operations a second of the fastest of some large matrix products.

    On a CPU in float32 the faster of torch's two libraries counts.
    """
    import torch

    from align.learner.model.linear import product

    side = MATRIX[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    ways = [torch.mm]
    if (device.type, dtype) == ("cpu", torch.float32):
        ways.append(product)
    seconds = []
    for _ in range(PRODUCTS):
        for multiply in ways:
            start = now()
            multiply(left, right)
            seconds.append(since(start)[0])
    return 2.0 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
