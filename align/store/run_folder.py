"""Names of the files that a round's attempts leave in its folder.

attempt-<n>/                metrics.jsonl, times.json, signals.json, rollouts/, artifacts/, critic/
attempt-<n>/<repair>/       the same of one repair
retired.json                parts of earlier rounds that the round overrides
checkpoint/step-<n>/        shared by the attempts, checkpoint.json written last
checkpoint-<repair>/        those of one repair
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.json"
"""The file of a checkpoint that holds the hashes of the others, and is written last."""
STAGING = "staging"
"""Folder of a checkpoint that is being written."""
METRICS = "metrics.jsonl"
_TABLES = "rollouts"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Folder of one attempt at a round, or of one repair of it."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON line of metrics for each learner step."""
        return self.path / METRICS

    @property
    def signals(self) -> Path:
        """Signals of reward hacking, and the results of canaries."""
        return self.path / "signals.json"

    @property
    def times(self) -> Path:
        """Seconds of wall time by phase."""
        return self.path / "times.json"

    @property
    def artifacts(self) -> Path:
        """Folder of the tensors that retention methods hand on."""
        return self.path / "artifacts"

    @property
    def critic(self) -> Path:
        """Folder of PPO's critic."""
        return self.path / "critic"

    @property
    def prompts(self) -> Path:
        """Prompts that an external program is handed."""
        return self.path / "prompts.jsonl"

    @property
    def output(self) -> Path:
        """Folder that an external program writes into."""
        return self.path / "output"

    @property
    def command_log(self) -> Path:
        """Everything that an external program printed."""
        return self.path / "command.log"

    def repair(self, label: str) -> RunFolder:
        """Return the folder of a repair of this attempt; without a label, this one."""
        return RunFolder(self.path / label)

    def repairs(self) -> list[RunFolder]:
        """List the folders of repairs that left metrics or rollouts."""
        folders = {
            p.parent for p in (*self.path.glob(f"*/{METRICS}"), *self.path.glob(f"*/{_TABLES}"))
        }
        return [RunFolder(path) for path in sorted(folders)]

    def artifact(self, method: str) -> Path:
        """Return the file of one retention method's tensors."""
        return self.artifacts / f"{method}.safetensors"

    def table(self, step: int) -> Path:
        """Return the table of what was sampled in a step, from 0."""
        return self.path / _TABLES / f"step-{step:04d}.parquet"

    def tables(self) -> dict[int, Path]:
        """Find the tables that exist, by step and in its order."""
        return _by_step((self.path / _TABLES).glob("step-*.parquet"))

    def steps(self) -> dict[int, dict[str, float]]:
        """Read the finite metrics of every learner step; a line that is still being written is left out."""
        steps: dict[int, dict[str, float]] = {}
        text = self.metrics.read_text("utf-8", "replace") if self.metrics.is_file() else ""
        for line in text.splitlines():
            try:
                values = json.loads(line)
                step = int(values.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            steps[step] = {
                name: float(value)
                for name, value in values.items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
        return steps


@dataclass(frozen=True, slots=True)
class RoundFolder:
    """Folder of a round: its attempts, and the checkpoints that they share."""

    path: Path

    @property
    def retired(self) -> Path:
        """Record of the parts of earlier rounds that the round overrides."""
        return self.path / "retired.json"

    def attempt(self, number: int) -> RunFolder:
        """Return the folder of an attempt; the first is 1."""
        return RunFolder(self.path / f"attempt-{number}")

    def attempts(self) -> list[RunFolder]:
        """List the attempts that left a folder, oldest first."""
        return [RunFolder(path) for path in _by_step(self.path.glob("attempt-*")).values()]

    def numbered_attempts(self) -> list[tuple[int, RunFolder]]:
        """List the attempts that left a folder with their numbers, oldest first."""
        folders = _by_step(self.path.glob("attempt-*"))
        return [(number, RunFolder(path)) for number, path in folders.items()]

    def checkpoints(self, repair: str = "") -> Path:
        """Return the folder of the round's checkpoints, or of those of one of its repairs."""
        return self.path / (f"checkpoint-{repair}" if repair else "checkpoint")

    def all_checkpoints(self) -> list[Path]:
        """List the folders of checkpoints that exist, those of repairs included."""
        return sorted(self.path.glob("checkpoint*"))

    def steps(self, repair: str = "") -> dict[int, dict[str, float]]:
        """Read the finite metrics of every learner step of the round, or of one of its repairs.

        An attempt that went on from a checkpoint replaces the steps that it did again.
        """
        steps: dict[int, dict[str, float]] = {}
        for attempt in self.attempts():
            steps |= attempt.repair(repair).steps()
        return dict(sorted(steps.items()))


def checkpoint_at(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after so many steps."""
    return folder / f"step-{step:08d}"


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Find the checkpoints of a folder by the number of their steps, in order."""
    return _by_step(folder.glob("step-*"))


def is_of_checkpoint(path: str) -> bool:
    """Tell if a file lies in a checkpoint."""
    return path.rpartition("/")[0].rpartition("/")[2].startswith("step-")


def tables_below(folder: Path) -> list[Path]:
    """List all tables of rollouts below a folder."""
    return sorted(folder.rglob(f"{_TABLES}/step-*.parquet"))


def _by_step(paths: Iterable[Path]) -> dict[int, Path]:
    """Sort files named ``step-12.parquet`` or ``attempt-3`` by their number."""
    return dict(sorted((int(path.stem.rpartition("-")[2]), path) for path in paths))
