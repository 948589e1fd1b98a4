"""Rewards of test_sampling.py in a file of their own: worker processes that load them import little."""

from __future__ import annotations

from typing import Any

CALLS: list[int] = []


def flaky(completions: list[str], **_: Any) -> list[float]:
    """Cannot score the first group of training; evaluations ask about 30 items at once."""
    training = len(completions) != 30
    broken = [float("nan")] * (4 if training and not CALLS else 0)
    CALLS.extend([1] * training)
    return broken + [float(len(c)) for c in completions[len(broken) :]]


def constant(completions: list[str], **_: Any) -> list[float]:
    """A reward that says nothing."""
    return [1.0] * len(completions)
