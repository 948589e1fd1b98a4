"""Programs that draw a campaign's curves, besides ``metrics.jsonl``, which is always written.

Each tracker is one file and one line in `TRACKERS`, and is imported when a campaign asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from align.report.trackers.base import Tracker
from align.report.trackers.observer import TrackedObserver
from align.store.paths import StorePaths
from rollouts.errors import UserError, nearest

TRACKERS: Mapping[str, str] = {
    "tensorboard": "align.report.trackers.tensorboard:TensorBoardTracker",
    "wandb": "align.report.trackers.wandb:WandbTracker",
    "mlflow": "align.report.trackers.mlflow:MlflowTracker",
    "trackio": "align.report.trackers.trackio:TrackioTracker",
}
"""Classes that take the folder to write into and the campaign's name."""

__all__ = ["TRACKERS", "TrackedObserver", "Tracker", "open_tracker"]


def open_tracker(name: str, folder: Path, campaign: str) -> Tracker:
    """Open a tracker that writes below a store's folder.

    Raises:
        UserError: no such tracker, or its package is not installed; the remedy names the extra.
    """
    if name not in TRACKERS:
        raise UserError(
            f"there is no tracker {name!r}", where="trackers", remedy=nearest(name, list(TRACKERS))
        )
    module, _, tracker = TRACKERS[name].partition(":")
    try:
        opened: Tracker = getattr(import_module(module), tracker)(
            StorePaths(folder).tracker(name), campaign
        )
    except ImportError as error:
        raise UserError(
            f"the tracker {name!r} needs a package that is not installed ({error})",
            where="trackers",
            remedy=f"pip install 'keel-align[{name}]', or leave the tracker out",
        ) from error
    return opened
