"""Search along the shares of a merge, in which the gate's own decisions choose.

That is honest for the reason that the ladder's interpolation is: every point is a full decision with a look
of its own, so whichever is taken, alpha was spent on it (the union bound). The candidate is the first point
that passes, in the order of the campaign file; nothing is picked by comparing how points did.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.round.repair.interpolate import Point


def next_share(points: Sequence[Point], shares: Sequence[float | None]) -> float | None:
    """Return the next of the shares to judge; None at the end of the search.

    A point that lost something rules out larger shares, and one without a gain at the target smaller ones,
    as on the ladder.

    >>> next_share([], [1.0, 0.6, 0.8])
    1.0
    >>> next_share([Point(share=1.0, lost=True, gained=True)], [1.0, 0.6, 0.8])
    0.6
    >>> next_share([Point(share=0.6, lost=False, gained=False)], [1.0, 0.6, 0.4, 0.8])
    1.0
    """
    left = [share for share in shares if share not in {point.share for point in points}]
    for point in points:
        if point.lost and not point.gained:
            return None
        left = [
            share
            for share in left
            if share is not None and (share < point.share if point.lost else share > point.share)
        ]
    return next(iter(left), None)
