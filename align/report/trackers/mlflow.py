"""MLflow on this machine: ``mlflow ui --backend-store-uri sqlite:///STORE/mlflow/mlflow.db``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

from align.config.store import sqlite_url

MAX_BATCH = 1000
"""Metrics that MLflow takes at a time."""


class MlflowTracker:
    """One run per attempt at a round, in an experiment named like the campaign.

    Args:
        uri: another tracking store, such as ``file:FOLDER``; None: SQLite in the folder.
    """

    def __init__(self, folder: Path, campaign: str, uri: str | None = None) -> None:
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        self._client: Any = MlflowClient(tracking_uri=uri or sqlite_url(folder / "mlflow.db"))
        experiment = self._client.get_experiment_by_name(campaign)
        self._experiment = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(campaign, artifact_location=folder.as_uri())
        )
        self._name = ""
        self._run: Any = None

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step, in as few calls as MLflow allows."""
        from mlflow.entities import Metric

        if self._run is None or run != self._name:
            self.close()
            self._name = run
            self._run = self._client.create_run(self._experiment, run_name=run).info.run_id
        now = int(1000 * time())
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        for start in range(0, len(rows), MAX_BATCH):
            self._client.log_batch(self._run, metrics=rows[start : start + MAX_BATCH])

    def close(self) -> None:
        if self._run is not None:
            self._client.set_terminated(self._run)
            self._run = None
