"""Claim: full weights reach the workers of engines at half the speed of the bare link or better, whatever
the number of the learner's ranks, and no rank holds more than its part, a bucket and a tensor.

Ranks and workers are processes of this machine. The ranks hold a Llama in parts (FSDP2), gather one tensor
after another and broadcast buckets over gloo, as with ``rollouts.weight_transfer: gloo``. Workers copy what
comes; a broadcast of one buffer of as many bytes to the same processes is the bare link. Memory is by how
much a rank's largest resident memory grows while it sends.

``--engines N`` measures something else: the process that drives N simulated engines, at 95% of the ideal
rate or better and under 1 ms of processor a sample; see `benchmarks.scale_engines`.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
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
from benchmarks.scale_engines import drive, report_engines

REQUIRED = 0.5
"""Smallest share of the bare link's speed."""
TIMEOUT_S = 300.0
BUCKET_MIB = 16


def main() -> None:
    """Measure every number of ranks and workers, and print."""
    prepare()
    options = parser("Full weights from the learner's ranks to workers of engines over gloo.")
    options.add_argument("--size", choices=list(SIZES), default="28M")
    options.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    options.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--engines", type=int, help="drive so many simulated engines instead")
    options.add_argument("--wave-s", type=float, default=30.0, help="of 64 sequences")
    options.add_argument("--waves", type=int, default=2)
    options.add_argument("--group", type=int, default=16, help="completions of a prompt")
    args = options.parse_args()
    if args.engines:
        figures = drive(args.engines, args.wave_s, args.waves, args.group)
        report_engines(figures)
        save(args.json, "scale", args, figures)
        return
    if args.quick:
        args.size, args.workers, args.repeats = "3M", [1, 2], 2
    data = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / args.size, args.size)
        for ranks in args.ranks:
            data += [measure(model, ranks, workers, args.repeats) for workers in args.workers]
    report(data, args.size)
    save(args.json, "scale", args, data)


def measure(model: Path, ranks: int, workers: int, repeats: int) -> dict[str, Any]:
    """Measure the seconds of every sync and of the bare link."""
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        orders = [context.Queue() for _ in range(workers)]
        processes = [
            context.Process(target=_work, args=(orders[n], answers, n + 1)) for n in range(workers)
        ]
        figures = context.Queue()
        shared = (Path(folder), model, ranks, orders, answers, figures, repeats)
        processes += [context.Process(target=_learn, args=(rank, *shared)) for rank in range(ranks)]
        for process in processes:
            process.start()
        measured = [figures.get(timeout=TIMEOUT_S) for _ in range(ranks)]
        for process in processes:
            process.join(timeout=TIMEOUT_S)
    first = next(each for each in measured if "sync_s" in each)
    grown = [each["grown_bytes"] for each in measured]
    return {**first, "ranks": ranks, "workers": workers, "grown_bytes": grown}


class _ProcessClient:
    """Workers in processes, driven by queues; see `EngineClient`."""

    def __init__(self, orders: Sequence[Any], answers: Any) -> None:
        self._orders, self._answers, self.version = orders, answers, ""

    @property
    def num_workers(self) -> int:
        return len(self._orders)

    def open(self, info: Any) -> None:
        self.tell("open", info)

    def start_weight_update(self) -> None:
        """Do nothing: workers have no layers."""

    def update_weights(self, update_info: Any) -> None:
        self.tell("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Do nothing: workers serve nobody."""

    def tell(self, verb: str, info: Any) -> None:
        """Give every worker an order, and wait for all."""
        for order in self._orders:
            order.put((verb, info))
        for _ in self._orders:
            self._answers.get(timeout=TIMEOUT_S)


class _Copies:
    """Parameters of a worker, which takes copies as a layer of vLLM does; see `Reload`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}

    def take(self, pairs: Any) -> None:
        for name, tensor in pairs:
            if name in self.tensors:
                self.tensors[name].copy_(tensor)
            else:
                self.tensors[name] = tensor.clone()

    def check_whole(self) -> None:
        """Do nothing: a copy has no layers that could lack tensors."""


def _work(orders: Any, answers: Any, rank: int) -> None:
    """Take weights until told to stop."""
    import torch

    from rollouts.engines.transfer.backends import receive_buckets
    from rollouts.engines.transfer.buckets import TensorForm
    from rollouts.engines.transfer.link import Link, LinkAddress

    torch.set_num_threads(1)
    copies: Any = _Copies()
    link: Link | None = None
    while True:
        verb, info = orders.get(timeout=TIMEOUT_S)
        if verb == "open":
            link = Link(LinkAddress(**info["address"]), rank)
        elif verb == "update":
            assert link is not None
            forms = [TensorForm(n, d, tuple(shape)) for n, d, shape in info["forms"]]
            receive_buckets(link, forms, info["bucket_bytes"], copies)
        elif verb == "raw":
            assert link is not None
            link.broadcast(torch.empty(info, dtype=torch.uint8)).wait()
        answers.put(rank)
        if verb == "stop":
            return


def _learn(
    rank: int,
    folder: Path,
    model: Path,
    ranks: int,
    orders: Sequence[Any],
    answers: Any,
    figures: Any,
    repeats: int,
) -> None:
    """Send the weights of one rank's policy several times; the first rank reports the seconds."""
    import torch

    from align.config.policy import PolicyConfig
    from align.learner.model.policy import Policy
    from align.learner.ranks.ranks import Ranks
    from align.learner.sender import PolicyTensors
    from rollouts.engines.transfer.link import LinkAddress
    from rollouts.engines.transfer.sender import GlooSender

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    group = Ranks(rank, ranks)
    policy = Policy(model, PolicyConfig(model=str(model)), device=torch.device("cpu"), ranks=group)
    client: Any = _ProcessClient(orders, answers)
    address = LinkAddress(host="127.0.0.1", port=0, size=len(orders) + 1, timeout_s=TIMEOUT_S)
    source = PolicyTensors(policy)
    sender = GlooSender(source, client, address, rank=rank, bucket_bytes=BUCKET_MIB << 20)
    total = sum(form.nbytes for form in source.forms())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    synced, raw = [], []
    for _ in range(repeats + 1):
        group.exchange(None)
        started = time.perf_counter()
        sender.send()
        group.exchange(None)
        synced.append(time.perf_counter() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    answer: dict[str, Any] = {"grown_bytes": grown}
    if rank == 0:
        assert sender._link is not None
        buffer = torch.zeros(total, dtype=torch.uint8)
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for order in orders:
                order.put(("raw", total))
            sender._link.broadcast(buffer).wait()
            for _ in orders:
                answers.get(timeout=TIMEOUT_S)
            raw.append(time.perf_counter() - started)
        client.tell("stop", None)
        # The first of each warms buffers and sockets up.
        answer |= {"bytes": total, "sync_s": synced[1:], "raw_s": raw[1:]}
        answer["tensors"] = len(source.forms())
    figures.put(answer)
    group.exchange(None)
    sender.close()
    torch.distributed.destroy_process_group()


def report(data: Sequence[dict[str, Any]], size: str) -> None:
    """Print a line for each number of ranks and workers."""
    rows, passed = [], True
    for figures in data:
        share = middle(figures["raw_s"]) / middle(figures["sync_s"])
        passed &= share >= REQUIRED
        rows.append(
            [
                f"{figures['ranks']} -> {figures['workers']}",
                f"{figures['bytes'] / 2**20:.0f}",
                spread(figures["sync_s"]),
                spread(figures["raw_s"]),
                f"{100 * share:.0f}%",
                ", ".join(f"{grown / 2**20:.0f}" for grown in figures["grown_bytes"]),
            ]
        )
    show(
        f"Weights of {size} parameters, float32, over gloo in buckets of {BUCKET_MIB} MiB",
        ["ranks -> workers", "MiB", "sync, s", "bare link, s", "of the link", "memory, MiB a rank"],
        rows,
        f"At least {100 * REQUIRED:.0f}% of the bare link: {verdict(passed)}",
    )


if __name__ == "__main__":
    main()
