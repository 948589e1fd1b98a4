"""Splits requests over engines so that all of them finish at about the same time.

Pure arithmetic on costs (tokens still to come); it knows neither Ray nor the time a token takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

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


def engine_for(
    n: int, loads: Mapping[int, int], max_num_seqs: int, home: int | None = None
) -> int | None:
    """Choose the engine that samples ``n`` more completions; None if all have enough to do.

    An engine has enough with a quarter of a batch waiting behind a full one: it never runs dry between two
    looks at it, and what is not sent yet can go to another engine. The engine that has the prompt's prefix
    is taken unless it is busier than the least busy one by more than a quarter of a batch: then reading
    the prompt again costs less than sampling in the larger batch.

    Args:
        loads: completions that each engine owes.
        home: engine that has the prefix.

    >>> engine_for(1, {0: 3, 1: 4}, 8), engine_for(1, {0: 3, 1: 4}, 8, home=1)
    (0, 1)
    >>> engine_for(1, {0: 3, 1: 6}, 8, home=1), engine_for(1, {0: 10, 1: 10}, 8)
    (0, None)
    """
    slack = max(1, max_num_seqs // 4)
    free = [i for i, load in loads.items() if not load or load + n <= max_num_seqs + slack]
    least = min(free, key=lambda index: (loads[index], index), default=None)
    if home in free and least is not None and loads[home] - loads[least] <= slack:
        return home
    return least
