"""Claim: new weights reach every engine within 0.2 s (3M parameters) and 0.6 s (28M), and those of a real
model (``--model FOLDER``) within 1.5 times the time of copying them in memory and loading them.

The benchmark times `EnginePool.sync`, from the learner's tensors through Ray's object store to engines that
have loaded them, dropped their caches and reported the new version, and a plain copy of the same bytes in
memory. After the last sync the engines' logprobs are compared with the learner's own, which would show a
sync that is fast but wrong.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common import (
    SIZES,
    middle,
    parser,
    prepare,
    save,
    show,
    spread,
    verdict,
    write_model,
)

REQUIRED_S = {"3M": 0.2, "28M": 0.6}
REQUIRED_SHARE = 1.5
"""Largest ratio of a sync's seconds to those of a copy and of the engine's own loading, for a real
model."""
TOLERANCE = 1e-4
"""Largest difference of logprobs in nats, with float32 on both sides."""


def main() -> None:
    """Measure every size on every number of engines and print."""
    prepare()
    options = parser("Weight sync from the learner to its engines.")
    options.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    options.add_argument("--engines", type=int, nargs="*", default=[1, 2])
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--model", type=Path, help="a model folder in place of the made-up ones")
    args = options.parse_args()
    if args.quick:
        args.repeats = 2
    from launch.cluster.cluster import connect

    data = []
    with connect(num_engines=max(args.engines)), tempfile.TemporaryDirectory() as folder:
        for size in args.sizes if args.model is None else [args.model.name]:
            model = args.model or write_model(Path(folder) / size, size)
            data += [measure(model, size, count, args.repeats) for count in args.engines]
    report(data)
    save(args.json, "sync", args, data)


def measure(model: Path, size: str, engines: int, repeats: int) -> dict[str, Any]:
    """Measure the seconds of every sync and copy, and the gap between engines and learner."""
    import torch

    from align.config.campaign import PolicyConfig, RoundSettings
    from align.learner.learner import Learner
    from align.learner.references import References
    from align.retention.methods import RetentionMethods
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool

    policy = PolicyConfig(model=str(model))
    pool = EnginePool(VLLMConfig(model=str(model), max_model_len=256), num_engines=engines)
    learner = Learner(model, policy, folder_of=lambda _: model, scratch=model)
    learner.begin(
        RoundSettings(),
        References(base="base", parent="base"),
        num_steps=1,
        seed=0,
        penalties=RetentionMethods(),
    )
    parameters = learner.policy.parameters()
    pool.sync(learner.weights("warm-up"))
    synced, copied, loaded = [], [], []
    for number in range(repeats):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        started = time.perf_counter()
        report = pool.sync(learner.weights(f"sync/{number}"))
        synced.append(time.perf_counter() - started)
        assert report.num_engines == engines, "an engine was replaced on the way"
        loaded.append(report.load_s)
        copied.append(_copy_s(parameters))
    gap = _gap(pool, learner)
    pool.close()
    return {
        "size": size,
        "engines": engines,
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
        "sync_s": synced,
        "copy_s": copied,
        "load_s": loaded,
        "gap": gap,
    }


def _copy_s(parameters: list[Any]) -> float:
    """Measure the seconds to copy all parameters into memory that is already mapped."""
    import torch

    targets = [torch.zeros_like(p) for p in parameters]
    started = time.perf_counter()
    with torch.no_grad():
        for target, source in zip(targets, parameters, strict=True):
            target.copy_(source)
    return time.perf_counter() - started


def _gap(pool: Any, learner: Any) -> float:
    """Return the largest logprob difference, engines against learner, as `gap_of` measures it."""
    from align.algorithms.rows import Row
    from rollouts.engines.protocol import ScoreRequest

    random = Random(0)
    tokens = [tuple(random.randrange(3, 90) for _ in range(40)) for _ in range(8)]
    rows = [
        Row(
            prompt_ids=t[:8], completion_ids=t[8:], sampler_logprobs_T=(0.0,) * 32, advantage=None,
            source="new", owner=None, round=None, policy="",
        )
        for t in tokens
    ]  # fmt: skip
    requests = [ScoreRequest(prompt_ids=t[:8], completion_ids=t[8:]) for t in tokens]
    pairs = zip(pool.score(requests), learner.completion_logprobs(rows), strict=True)
    gaps = [
        abs(a - b) / max(1.0, abs(a))
        for engine_T, learner_T in pairs
        for a, b in zip(engine_T, learner_T, strict=True)
    ]
    return float(max(gaps))


def report(data: list[dict[str, Any]]) -> None:
    """Print the table; every row has its own requirement."""
    rows = []
    for figures in data:
        least = middle(figures["copy_s"]) + middle(figures["load_s"])
        limit = REQUIRED_S.get(figures["size"], REQUIRED_SHARE * least)
        good = middle(figures["sync_s"]) <= limit and figures["gap"] <= TOLERANCE
        rows.append(
            [f"{figures['size']}, {figures['engines']} engine(s)", f"{figures['bytes'] / 2**20:.0f}",
             spread(figures["sync_s"]), f"{middle(figures['copy_s']):.4f}",
             f"{middle(figures['load_s']):.3f}", f"{middle(figures['sync_s']) / least:.2f}x",
             f"{figures['gap']:.1e}",
             f"{limit:.2g} {verdict(good)}"]
        )  # fmt: skip
    columns = ["", "MiB", "sync s, median [min, max]", "plain copy s", "load s", "sync / both",
               "max |dlogp|", "allowed s"]  # fmt: skip
    show(
        "Weight sync through Ray, float32, learner and engines with one thread each", columns, rows
    )


if __name__ == "__main__":
    main()
