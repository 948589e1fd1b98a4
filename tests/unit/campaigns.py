"""Small campaigns over the tiny world, and observers, for tests that run rounds in this process."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from shutil import copytree
from typing import Any

from align.config.campaign import CampaignConfig
from align.round.plan import RoundOutcome, RoundPlan
from rollouts.engines.protocol import RolloutEngine
from tests.unit.hf_engine import HFEngine

ENFORCE = {"mode": "enforce", "underpowered": "warn"}
"""A gate that decides on the few items that a test can afford."""


def raw_campaign(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two rounds of two steps that the gate only observes; keys replace those of the campaign."""
    return {
        "name": "small",
        "policy": {"model": "demo://digits"},
        "store": str(folder / "store"),
        "defaults": {
            "sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6},
            "optimizer": {"lr": 3e-4},
            "replay": {
                "general_prompts": "demo://general?n=40",
                "past": 0.2,
                "general": 0.2,
                "buffer": 12,
            },
            "suite": {"items": 30, "temperature": 1.0},
        },
        "rounds": [
            {"name": "first", "prompts": "demo://rev?n=60", "rewards": ["exact_match"], "steps": 2},
            {"name": "second", "prompts": "demo://inc?n=60", "rewards": ["exact_match"], "steps": 2},
        ],
        "suites": [
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 30}
        ],
        "gate": {"mode": "observe"},
    } | changes  # fmt: skip


def campaign(folder: Path, **changes: Any) -> CampaignConfig:
    return CampaignConfig.model_validate(raw_campaign(folder, **changes))


def rounds(*changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One round per mapping, each over the first round of `raw_campaign`."""
    base: dict[str, Any] = {"prompts": "demo://rev?n=60", "rewards": ["exact_match"], "steps": 1}
    return [{**base, "name": f"round{i}", **change} for i, change in enumerate(changes)]


class Watcher:
    """An observer that remembers, and on request raises after a step."""

    def __init__(self, stop_at: tuple[str, int] | None = None, error: Any = RuntimeError) -> None:
        self.stop_at, self.error = stop_at, error
        self.notes: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.verdicts: dict[str, RoundOutcome] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((plan.spec.name, step))
        if self.stop_at == (plan.spec.name, step):
            raise self.error("stopped by the test")

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        self.verdicts[plan.spec.name] = outcome


class Copying(Watcher):
    """An observer that copies the store after some steps, as a process killed there would leave it.

    Args:
        folder: copies lie in it, by round and step: see `copy_after`.
    """

    def __init__(self, store: Path, folder: Path, *steps: tuple[str, int]) -> None:
        super().__init__()
        self._store, self._folder, self._steps = store, folder, steps

    def copy_after(self, round: str, step: int) -> Path:
        """Folder of a copy, in which the store is ``store``."""
        return self._folder / f"{round}-{step}"

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        super().on_step(plan, step, metrics)
        if (plan.spec.name, step) not in self._steps:
            return
        copy = self.copy_after(plan.spec.name, step) / "store"
        copytree(self._store, copy)
        with closing(sqlite3.connect(copy / "ledger.db")) as ledger, ledger:
            # The process that holds the lease is this one, and lives.
            ledger.execute("UPDATE lease_renewals SET start_ticks = 0")


class Starter:
    """Starts in-process engines and keeps them; ``lies`` are set as attributes on each."""

    def __init__(self, **lies: Any) -> None:
        self.lies = lies
        self.engines: list[HFEngine] = []

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        engine = HFEngine(model, trust_remote_code=config.policy.trust_remote_code)
        for name, value in self.lies.items():
            setattr(engine, name, value)
        self.engines.append(engine)
        return engine


def no_engine(config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
    """Fail: for campaigns that must not start an engine."""
    raise AssertionError("an engine was started")
