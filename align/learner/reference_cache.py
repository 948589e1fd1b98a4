"""Reference logprobs that were computed before, by sequence and by snapshot.

Rows of a file come again in every epoch and every round, and a reference does not change. Samples of the
policy never come again, so nothing is kept of them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from itertools import chain

from align.algorithms.rows import DATA, Row
from rollouts.types import SnapshotId

MAX_TOKENS = 1 << 24
"""Tokens whose logprobs are kept (128 MiB); beyond them the least recently used go."""

ReferenceWeights = tuple[tuple[SnapshotId, float], ...]
"""Snapshots whose logprobs are averaged, and their shares."""


class ReferenceCache:
    """Logprobs of rows from files under their references. Every rank keeps the same."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens, self._tokens = max_tokens, 0
        self._kept: OrderedDict[bytes, array[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def recall(self, row: Row, reference: ReferenceWeights, temperature: float) -> Row | None:
        """Return the row with its reference logprobs; None where they have to be computed."""
        key = _key(row, reference, temperature)
        if row.policy != DATA or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return replace(row, reference_logprobs_T=tuple(self._kept[key]))

    def keep(self, rows: Iterable[Row], reference: ReferenceWeights, temperature: float) -> None:
        """Remember what was computed for rows."""
        for row in rows:
            if row.policy != DATA or row.reference_logprobs_T is None:
                continue
            key = _key(row, reference, temperature)
            self._tokens += row.num_sampled - len(self._kept.pop(key, ()))
            self._kept[key] = array("d", row.reference_logprobs_T)
        while self._tokens > self._max_tokens:
            self._tokens -= len(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._tokens = 0


def _key(row: Row, reference: ReferenceWeights, temperature: float) -> bytes:
    digest = blake2b(repr((reference, temperature)).encode(), digest_size=16)
    observed = tuple(chain.from_iterable(row.observed))
    for numbers in (row.prompt_ids, row.completion_ids, observed):
        digest.update(array("q", (len(numbers), *numbers)).tobytes())
    return digest.digest()
