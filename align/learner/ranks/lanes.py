"""Forward passes side by side on one machine's cores.

A product of a few thousand tokens with a small model's weights is too short to be worth dividing: on two
threads a step of three million parameters takes four fifths of its time on one. So a learner with several
threads gives each a lane, a part of them with passes of its own, and gradients are added at the end. Which
lane gets which pass follows from their sizes, so a step's sums have the same order in every run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import get_native_id
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
R = TypeVar("R")

LANE_NICENESS = 19
"""Niceness of lanes, the largest there is: Ray starts its workers, and with them engines, at 15."""

GRADIENT_BYTES = 1 << 29
"""Memory that the lanes' own gradients may take together; larger models have longer products, which are
worth dividing."""


class Lanes:
    """Threads that take work side by side.

    Args:
        count: lanes; with one, everything runs in the calling thread.
        threads: of all lanes together.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self._threads = count, threads
        share = max(1, threads // count)
        self._share = share
        self._pool = ThreadPoolExecutor(count, "lane", _prepare, (share,))

    def each(
        self, work: Callable[[int, T], R], items: Sequence[T], sizes: Sequence[int]
    ) -> list[R]:
        """Call ``work(lane, item)`` for every item; return the results in the items' order.

        The first error ends the call once every lane has stopped.
        """
        if self.count == 1 or len(items) < 2:
            return [work(0, item) for item in items]
        hands = dealt_evenly(sizes, self.count)

        def take(lane: int) -> list[tuple[int, R]]:
            return [(index, work(lane, items[index])) for index in hands[lane]]

        torch.set_num_threads(self._share)
        tasks = [self._pool.submit(take, lane) for lane in range(self.count)]
        wait(tasks)
        torch.set_num_threads(self._threads)
        results = dict(pair for task in tasks for pair in task.result())
        return [results[index] for index in range(len(items))]


def _prepare(threads: int) -> None:
    """Set a lane's own thread up: OpenMP threads are counted for each thread that asks for them.

    Engines that sample the next step meanwhile go first, so that no core is idle at the end while they
    finish. On Linux a thread has a priority of its own, and it may always be lowered.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), LANE_NICENESS)


class Gradients:
    """Gradients of some parameters, which all lanes add to. They begin with zeros."""

    def __init__(self, parameters: Iterable[nn.Parameter], lanes: int) -> None:
        self._parameters = list(parameters)
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._lanes: list[list[Tensor] | None] = [None] * lanes
        self._lanes[0] = [p.grad for p in self._parameters if p.grad is not None]

    def add(self, lane: int, loss: Tensor) -> None:
        """Add a loss's gradients to those of one lane."""
        if len(self._lanes) == 1:
            # Sharded parameters sum theirs over the ranks in hooks of this call.
            loss.backward()  # type: ignore[no-untyped-call]
            return
        totals = self._lanes[lane]
        if totals is None:
            totals = self._lanes[lane] = [torch.zeros_like(p) for p in self._parameters]
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)

    def restart(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set gradients of these parameters to zero after `collect`; those of others go on adding up."""
        for gradients in self._lanes[1:]:
            for gradient in gradients or ():
                gradient.zero_()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def collect(self) -> None:
        """Add every lane's gradients to those of the parameters, lane after lane."""
        first, *others = self._lanes
        for gradients in others:
            for total, gradient in zip(first or (), gradients or (), strict=False):
                total.add_(gradient)


def lanes_for(num_parameters: int, threads: int) -> int:
    """Return the number of lanes that a model's trained parameters leave room for.

    >>> lanes_for(3_000_000, threads=2), lanes_for(500_000_000, threads=2)
    (2, 1)
    """
    return max(1, min(threads, GRADIENT_BYTES // (4 * max(num_parameters, 1))))


def dealt_evenly(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Deal indices to hands, the largest size first, each to the hand that has least.

    Source: the longest-processing-time rule of Graham 1969, doi 10.1137/0117039; the fullest hand has at
    most 4/3 of what the best deal would give it.

    >>> dealt_evenly([3, 9, 4, 2], 2)
    [[1], [2, 0, 3]]
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    totals = [0] * hands
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = totals.index(min(totals))
        dealt[least].append(index)
        totals[least] += sizes[index]
    return dealt
