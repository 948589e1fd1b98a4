"""Queue of completions: those that are decoded now, and those that wait until there is memory for them.

A batch is filled again once half of its rows have left, or once as many wait as run. Rows that go on are
then read once more together with the new ones, which costs less than decoding a batch that is half empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
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
        new_batch: makes an empty batch.
        max_rows: most rows of a batch.
        max_tokens: most tokens that a batch may keep, padding included; one row may always run.
    """

    def __init__(
        self,
        new_batch: Callable[[], DecodingBatch],
        *,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        self._waiting: deque[OpenCompletion] = deque()
        self._new_batch, self._batch = new_batch, new_batch()
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._admitted = 0
        self._running: list[OpenCompletion] = []
        self._whole = False

    @property
    def running(self) -> list[OpenCompletion]:
        """Completions in the batch, in the order of its rows."""
        return self._running

    @property
    def is_empty(self) -> bool:
        """True if every completion is finished."""
        return not self._running and not self._waiting

    def add(self, completions: Iterable[OpenCompletion]) -> None:
        """Let completions wait behind those that wait already."""
        self._waiting.extend(completions)

    def drop(self, unwanted: Callable[[OpenCompletion], bool]) -> None:
        """Forget completions, whether they wait or run."""
        self._waiting = deque(each for each in self._waiting if not unwanted(each))
        remaining = [i for i, each in enumerate(self._running) if not unwanted(each)]
        if len(remaining) < len(self._running):
            self._keep(remaining)

    def next_logits(self, *, reread: bool) -> Tensor:
        """Return the logits of every running completion's next token.

        Args:
            reread: what was read before counts no more, since the weights are others.
        """
        # Rows that were begun last wait again where the batch outgrows its memory.
        longest = max((each.length for each in self._running), default=0)
        fitting = max(1, self._max_tokens // (longest + 1))
        if len(self._running) > fitting:
            self._waiting.extendleft(reversed(self._running[fitting:]))
            self._keep(list(range(fitting)))
        # A pass that failed may have left a batch that lacks a token of some rows.
        is_new = self._admit() or reread or not self._whole
        self._whole = False
        if is_new:
            # The cache before goes first: memory never has to hold two.
            self._batch = self._new_batch()
            logits_BV = self._batch.read(
                [each.row for each in self._running], [each.mix for each in self._running]
            )
        else:
            logits_BV = self._batch.step([each.token_ids[-1] for each in self._running])
        self._whole = True
        return logits_BV

    def pop_finished(self) -> list[OpenCompletion]:
        """Take finished completions out of the batch and return them."""
        finished = [each for each in self._running if each.finish is not None]
        if finished:
            self._keep([i for i, each in enumerate(self._running) if each.finish is None])
        return finished

    def _admit(self) -> bool:
        """Begin waiting rows where half of the batch has left, or where they at least double it."""
        joining = self._num_joining()
        half_has_left = 2 * len(self._running) <= self._admitted
        if not joining or not (half_has_left or joining >= len(self._running)):
            return False
        self._running += [self._waiting.popleft() for _ in range(joining)]
        self._admitted = len(self._running)
        return True

    def _num_joining(self) -> int:
        """Count the waiting rows that fit beside those that run."""
        rows = len(self._running)
        width = max((each.length for each in self._running), default=0)
        for row in islice(self._waiting, max(0, self._max_rows - rows)):
            width = max(width, row.length + min(HEADROOM, row.limit - len(row.token_ids)))
            if rows and (rows + 1) * width > self._max_tokens:
                break
            rows += 1
        return rows - len(self._running)

    def _keep(self, indices: list[int]) -> None:
        self._running = [self._running[index] for index in indices]
        if self._running and self._whole:
            self._batch.keep(indices)
