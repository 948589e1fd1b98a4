"""Keyword arguments that a reward takes, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONTEXT = ("trainer_state", "log_extra", "log_metric")
RESERVED = ("prompts", "completions", "completion_ids", "environments", *CONTEXT)
"""Names the rubric fills in. A dataset column or an option of such a name would hide them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Keyword arguments that a function takes."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    """Arguments without a default."""
    anything: bool
    """True if the function has ``**kwargs``."""

    def take(self, name: str) -> bool:
        """Tell if the function can be given ``name``."""
        return self.anything or name in self.names


def parameters(function: Callable[..., Any]) -> Parameters:
    """Read a signature. Raises `ValueError` or `TypeError` for objects that have none."""
    all_parameters = inspect.signature(function).parameters.values()
    by_keyword = [p for p in all_parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Parameters(
        names=tuple(p.name for p in by_keyword),
        required=tuple(p.name for p in by_keyword if p.default is p.empty),
        anything=any(p.kind is p.VAR_KEYWORD for p in all_parameters),
    )
