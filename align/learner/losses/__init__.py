"""The algorithms a round may name. A new one is a new file here and one line in `ALGORITHMS`."""

from __future__ import annotations

from typing import Any

from align.learner.losses.base import Algorithm, PolicyGradient, PolicyInputs
from align.learner.losses.grpo import GRPO
from rollouts.errors import nearest

ALGORITHMS: dict[str, type[Algorithm]] = {
    "grpo": GRPO,
}

__all__ = ["ALGORITHMS", "GRPO", "Algorithm", "PolicyGradient", "PolicyInputs", "algorithm_from"]


def algorithm_from(value: Any) -> Any:
    """``grpo`` or ``{name: grpo, scale: none}`` as the algorithm's own config object."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        return value
    name = value.get("name", "grpo")
    if name not in ALGORITHMS:
        raise ValueError(f"no algorithm {name!r}; {nearest(str(name), list(ALGORITHMS))}")
    return ALGORITHMS[name].model_validate(value)
