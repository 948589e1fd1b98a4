"""Trackio on this machine: ``TRACKIO_DIR=STORE/trackio trackio show``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any


class TrackioTracker:
    """One run per attempt at a round, in a project named like the campaign.

    The library decides where it writes when it is imported: a process that has imported it before goes on
    writing there. Nothing leaves the machine unless the environment names a Space (``TRACKIO_SPACE_ID``).
    """

    def __init__(self, folder: Path, campaign: str) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        import trackio

        self._trackio: Any = trackio
        self._campaign = campaign
        self._name = ""
        self._run: Any = None

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the run's history."""
        if self._run is None or run != self._name:
            self.close()
            self._name = run
            with redirect_stdout(StringIO()):  # It greets, into the middle of the live display.
                self._run = self._trackio.init(
                    project=self._campaign,
                    name=run,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        if self._run is not None:
            with redirect_stdout(StringIO()):
                self._run.finish()
            self._run = None
