"""Other programs that draw a campaign's curves. ``metrics.jsonl`` is always written; these are extras.

Each tracker is one file and one line here, and is imported when a campaign asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.report.trackers.base import Tracker, opened
from align.report.trackers.observer import TrackedObserver
from align.store.paths import StorePaths


def _tensorboard(folder: Path, campaign: str) -> Tracker:
    from align.report.trackers.tensorboard import TensorBoardTracker

    return TensorBoardTracker(folder)


def _wandb(folder: Path, campaign: str) -> Tracker:
    from align.report.trackers.wandb import WandbTracker

    return WandbTracker(folder, campaign)


def _mlflow(folder: Path, campaign: str) -> Tracker:
    from align.report.trackers.mlflow import MlflowTracker

    return MlflowTracker(folder, campaign)


def _trackio(folder: Path, campaign: str) -> Tracker:
    from align.report.trackers.trackio import TrackioTracker

    return TrackioTracker(folder, campaign)


TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""Makers of trackers that write into a folder, for a campaign's name."""

__all__ = ["TRACKERS", "TrackedObserver", "Tracker", "open_tracker"]


def open_tracker(name: str, folder: Path, campaign: str) -> Tracker:
    """Open a tracker that writes below a store's folder.

    Raises:
        UserError: no such tracker, or its package is not installed; the remedy names the extra.
    """
    return opened(name, TRACKERS, StorePaths(folder).tracker(name), campaign)
