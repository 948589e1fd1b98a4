"""Queue of completions: those that are decoded now, and those that wait until there is memory for them.

A batch is filled again once half of its rows have left. Rows that go on are then read once more together
with the new ones, which costs less than decoding with a batch that is half empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rollouts.engines.decoding.batch import DecodingBatch
from rollouts.engines.decoding.completions import OpenCompletion

if TYPE_CHECKING:
    from torch import Tensor

HEADROOM = 32
"""Tokens of a new row that are expected to come; rows of a batch that outgrows its memory wait again."""


class DecodingQueue:
    """Completions under way.

    Args:
        completions: all of them, in the order in which they are begun.
        new_batch: makes an empty batch.
        max_rows: most rows of a batch.
        max_tokens: most tokens that a batch may keep, padding included; one row may always run.
    """

    def __init__(
        self,
        completions: Iterable[OpenCompletion],
        new_batch: Callable[[], DecodingBatch],
        *,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        self._waiting = deque(completions)
        self._new_batch, self._batch = new_batch, new_batch()
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._admitted = 0
        self._running: list[OpenCompletion] = []

    @property
    def running(self) -> list[OpenCompletion]:
        """Completions in the batch, in the order of its rows."""
        return self._running

    @property
    def is_empty(self) -> bool:
        """True if every completion is finished."""
        return not self._running and not self._waiting

    def next_logits(self, *, reread: bool) -> Tensor:
        """Return the logits of every running completion's next token.

        Args:
            reread: what was read before counts no more, since the weights are others.
        """
        # Rows that were begun last wait again where the batch outgrows its memory.
        lengths = [len(each.prompt_ids) + len(each.token_ids) for each in self._running]
        fitting = max(1, self._max_tokens // max(1, max(lengths, default=0) + 1))
        if len(self._running) > fitting:
            self._waiting.extendleft(reversed(self._running[fitting:]))
            self._keep(list(range(fitting)))
        if self._admit() or reread:
            # The cache before goes first: memory never has to hold two.
            self._batch = self._new_batch()
            return self._batch.read(
                [each.row for each in self._running], [each.mix for each in self._running]
            )
        return self._batch.step([each.token_ids[-1] for each in self._running])

    def pop_finished(self) -> list[OpenCompletion]:
        """Take finished completions out of the batch and return them."""
        finished = [each for each in self._running if each.finish is not None]
        if finished:
            self._keep([i for i, each in enumerate(self._running) if each.finish is None])
        return finished

    def _admit(self) -> bool:
        """Begin waiting rows where half of the batch has left; False if none were begun."""
        if not self._waiting or 2 * len(self._running) > self._admitted:
            return False
        before = len(self._running)
        width = max((len(each.row) for each in self._running), default=0)
        while self._waiting and len(self._running) < self._max_rows:
            row = self._waiting[0]
            width = max(width, len(row.row) + min(HEADROOM, row.limit - len(row.token_ids)))
            if self._running and (len(self._running) + 1) * width > self._max_tokens:
                break
            self._running.append(self._waiting.popleft())
        self._admitted = len(self._running)
        return self._admitted > before

    def _keep(self, indices: list[int]) -> None:
        self._running = [self._running[index] for index in indices]
        if self._running:
            self._batch.keep(indices)
