"""Environments for tests: described in this process, which has transformers, and run in real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.environments import describe
from rewards.environments.plan import EnvironmentsPlan
from rewards.environments.toolset import load_toolset
from rewards.environments.worker import describe as described_here

WORLDS = Path(__file__).with_name("rewards") / "environments" / "worlds.py"
"""Tools and environments as users write them."""


def describe_here(monkeypatch: pytest.MonkeyPatch, plan: EnvironmentsPlan) -> None:
    """Read the signatures of a plan without a process of its own."""
    facts = {
        name: describe._described(described_here(environment))
        for name, environment in load_toolset(plan.worker_plan().options).items()
    }
    monkeypatch.setitem(describe._DESCRIBED, plan.digest(), facts)
