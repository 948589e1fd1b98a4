"""What a tracker is: it is told numbers, and keeps them where another program finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from rollouts.errors import UserError, nearest


class Tracker(Protocol):
    """A place for curves. A run is one attempt at one round; runs follow each other."""

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of one learner step, counted from 0; finite all."""
        ...

    def close(self) -> None:
        """Write out what is still in memory. Nothing is logged afterwards."""
        ...


def opened(
    name: str, known: Mapping[str, Callable[[Path, str], Tracker]], folder: Path, campaign: str
) -> Tracker:
    """The tracker of this name, or an error that says how to get it."""
    if name not in known:
        raise UserError(
            f"there is no tracker {name!r}", where="trackers", remedy=nearest(name, list(known))
        )
    try:
        return known[name](folder, campaign)
    except ImportError as error:
        raise UserError(
            f"the tracker {name!r} needs a package that is not installed ({error})",
            where="trackers",
            remedy=f"pip install 'keel-align[{name}]', or leave the tracker out",
        ) from error
