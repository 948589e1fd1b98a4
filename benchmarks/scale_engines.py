"""Engines of `benchmarks.scale --engines`: hundreds that sleep as long as GPUs decode, in few processes.

The pool, its dispatch and Ray's calls are real; an engine is a place in an actor with a thread for each of
them, since hundreds of processes do not fit on this machine. What is measured is the process that drives
them: seconds of its processor for a sample, and samples a second against engines that never wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

from benchmarks.common import show, verdict

SLOTS = 64
"""Sequences that an engine decodes at a time."""
TOKENS = 64
HOSTS = 2
"""Processes that the engines live in."""
RATE, SAMPLE_S = 0.95, 0.001
"""Smallest share of the ideal rate, and most processor seconds of a sample."""


class EngineHost:
    """Engines that share a process; each call sleeps for its own engine alone."""

    def start(self) -> int:
        """Do nothing: an engine that sleeps loads nothing."""
        return 0

    def sync(self, update: Any) -> Any:
        """Say that the weights have come."""
        from rollouts.engines.protocol import SyncReport

        return SyncReport(version=update.version, seconds=0.0, num_engines=1, load_s=0.0)

    def stream(self, wave_s: float, requests: Sequence[Any]) -> Iterator[list[tuple[int, Any]]]:
        """Decode batch after batch, and hand requests over as they are finished."""
        from rollouts.engines.protocol import SampleResult
        from rollouts.types import Completion

        completion = Completion(
            token_ids=(5,) * TOKENS, logprobs_T=(-0.5,) * TOKENS, text="", finish_reason="length",
            weight_versions=(),
        )  # fmt: skip
        for first in range(0, len(requests), each := max(1, SLOTS // requests[0].n)):
            part = requests[first : first + each]
            time.sleep(wave_s * ceil(sum(request.n for request in part) / SLOTS))
            for index, r in enumerate(part):
                result = SampleResult(id=r.id, completions=(completion,) * r.n)
                yield [(first + index, result)]


class _Verb:
    """A call of one engine, as Ray's handles spell it."""

    def __init__(self, method: Any, *before: Any) -> None:
        self._method, self._before = method, before

    def options(self, **options: Any) -> _Verb:
        return _Verb(self._method.options(**options), *self._before)

    def remote(self, *args: Any) -> Any:
        return self._method.remote(*self._before, *args)


class SharedActor:
    """One engine's handle: its calls go to the process that it shares."""

    def __init__(self, host: Any, wave_s: float) -> None:
        self.start, self.sync = _Verb(host.start), _Verb(host.sync)
        self.stream = _Verb(host.stream, wave_s)


@contextmanager
def shared_engines(engines: int, wave_s: float) -> Iterator[None]:
    """Let pools fill their slots with engines that share processes."""
    import ray

    from rollouts.pool.engine_slot import EngineSlot

    threads = ceil(engines / HOSTS) + 8
    kind = ray.remote(num_cpus=0, max_concurrency=threads)(EngineHost)
    hosts = [kind.remote() for _ in range(HOSTS)]
    slot_class: Any = EngineSlot
    fill, kill = slot_class.fill, slot_class.kill

    def share(slot: EngineSlot, weights: Any | None) -> None:
        slot.actor = SharedActor(hosts[slot.index % HOSTS], wave_s)
        slot.pid, slot.busy = None, False
        slot.deadline = time.monotonic() + slot.launch.start_deadline_s
        slot.starting = [slot.actor.start.remote()]

    def leave(slot: EngineSlot) -> None:
        slot.actor = None

    slot_class.fill, slot_class.kill = share, leave
    try:
        yield
    finally:
        slot_class.fill, slot_class.kill = fill, kill


def drive(engines: int, wave_s: float, waves: int, group: int) -> dict[str, Any]:
    """Sample one step with all engines busy for some waves, and measure the process that drives them."""
    import ray

    from rollouts.engines.protocol import SampleRequest, WeightUpdate
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool
    from rollouts.types import Sampling

    ray.init(num_cpus=engines, include_dashboard=False, logging_level="ERROR")
    try:
        with shared_engines(engines, wave_s):
            pool = EnginePool(
                VLLMConfig(model="simulated", max_num_seqs=SLOTS, device="cpu"),
                num_engines=engines,
                start_deadline_s=300.0,
            )
            pool.wait_ready()
            pool.sync(WeightUpdate(version="v1", tensors={}))
            requests = [
                SampleRequest(
                    id=str(i), prompt_ids=tuple(range(100)), n=group, seed=i,
                    sampling=Sampling(max_tokens=TOKENS),
                )
                for i in range(engines * waves * SLOTS // group)
            ]  # fmt: skip
            started, used = time.perf_counter(), time.process_time()
            samples = sum(
                len(result.completions)
                for batch in pool.submit(requests).arrivals()
                for _, result in batch
            )
            seconds, used = time.perf_counter() - started, time.process_time() - used
            pool.close()
    finally:
        ray.shutdown()
    assert samples == engines * waves * SLOTS
    return {
        "engines": engines, "samples": samples, "seconds": seconds, "ideal_s": wave_s * waves,
        "processor_s": used,
    }  # fmt: skip


def report_engines(figures: dict[str, Any]) -> None:
    """Print the share of the ideal rate, and what a sample costs."""
    share = figures["ideal_s"] / figures["seconds"]
    each = figures["processor_s"] / figures["samples"]
    show(
        f"{figures['engines']} simulated engines",
        ["samples", "s", "ideal s", "of the ideal", "processor ms a sample"],
        [
            [
                f"{figures['samples']:,}", f"{figures['seconds']:.1f}", f"{figures['ideal_s']:.1f}",
                f"{100 * share:.1f}%", f"{1000 * each:.3f}",
            ]
        ],
        f"At least {100 * RATE:.0f}% of the ideal: {verdict(share >= RATE)}; under "
        f"{1000 * SAMPLE_S:g} ms of processor a sample: {verdict(each < SAMPLE_S)}",
    )  # fmt: skip
