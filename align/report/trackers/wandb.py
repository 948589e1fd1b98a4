"""Weights & Biases, offline: ``wandb sync STORE/wandb/offline-run-*`` sends runs when a person wants to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
    """One offline run per attempt at a round, in a project named like the campaign."""

    def __init__(self, folder: Path, campaign: str) -> None:
        import wandb

        self._wandb: Any = wandb
        self._folder, self._campaign = folder, campaign
        self._name = ""
        self._run: Any = None

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the run's history."""
        if self._run is None or run != self._name:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._name = run
            self._run = self._wandb.init(
                mode="offline",
                project=self._campaign,
                name=run,
                # The library makes a folder ``wandb`` of its own in here.
                dir=str(self._folder.parent),
                settings=self._wandb.Settings(silent=True, console="off", disable_git=True),
            )
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
