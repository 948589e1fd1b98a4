"""Splits requests over engines so that all of them finish at about the same time.

Pure arithmetic on costs (tokens still to come); it knows neither Ray nor the time a token takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

WAVES_PER_CALL = 4
"""Full batches that one call may hold: this bounds the time of a call, which has a deadline."""


def num_chunks(sequences: int, num_engines: int, max_num_seqs: int) -> int:
    """Return the number of calls into which to cut ``sequences`` completions.

    One per engine while everything fits into the engines at once, since a batch is quickest whole;
    beyond that at least two per engine, so that a fast engine can take work off a slow one.

    >>> num_chunks(128, 2, 64), num_chunks(129, 2, 64), num_chunks(2048, 2, 64)
    (2, 4, 8)
    """
    if sequences <= num_engines * max_num_seqs:
        return num_engines
    per_engine = math.ceil(sequences / (num_engines * WAVES_PER_CALL * max_num_seqs))
    return num_engines * max(2, per_engine)


def split(costs: Sequence[int], bins: int) -> list[tuple[int, ...]]:
    """Split the indices of ``costs`` into at most ``bins`` shares of nearly equal total, dearest share
    first.

    Longest processing time first: the dearest item goes to the lightest share so far; the heaviest
    share is at most 4/3 of the best possible (Graham 1969). Empty shares are left out.

    >>> split([5, 3, 3, 1], 2)
    [(0, 3), (1, 2)]
    """
    shares: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, share) for share in range(bins)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, share = heapq.heappop(heap)
        shares[share].append(index)
        heapq.heappush(heap, (load + costs[index], share))
    filled = [tuple(sorted(share)) for share in shares if share]
    return sorted(filled, key=lambda share: -sum(costs[i] for i in share))
