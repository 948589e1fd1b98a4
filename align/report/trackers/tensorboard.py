"""TensorBoard event files: ``tensorboard --logdir STORE/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorBoardTracker:
    """One folder of events per run."""

    def __init__(self, folder: Path, campaign: str) -> None:
        from tensorboard.summary import Writer

        self._folder, self._writer_of = folder, Writer
        self._run = ""
        self._writer: Writer | None = None

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars; they are on the disk when this returns."""
        if self._writer is None or run != self._run:
            self.close()
            self._run, self._writer = run, self._writer_of(str(self._folder / run))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
