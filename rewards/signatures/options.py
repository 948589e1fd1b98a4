"""Checks of a reward's options, refused in one wording when a campaign is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rollouts.errors import UserError, nearest


def whole_number(option: str, value: Any, least: int = 1) -> None:
    """Refuse what is not an integer of at least ``least``; True is none."""
    if type(value) is not int or value < least:
        raise UserError(f"{option} must be a whole number of at least {least}, got {value!r}")


def positive(option: str, value: Any) -> None:
    """Refuse what is not a finite number above zero."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"{option} must be a number above 0, got {value!r}")


def fraction(option: str, value: Any) -> None:
    """Refuse what is not a number above 0 and at most 1."""
    positive(option, value)
    if value > 1:
        raise UserError(f"{option} must be at most 1, got {value!r}")


def one_of(option: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is not in ``choices``."""
    if value not in choices:
        remedy = nearest(str(value), list(choices))
        raise UserError(f"{option} {value!r} is not known", remedy=remedy)


def given(reward: str, option: str, value: Any, example: str) -> None:
    """Refuse an option that was left out or is empty."""
    if not value:
        raise UserError(f"{reward} needs {option}", remedy=f"add options: {{{option}: {example}}}")


def missing_package(reward: str, package: str, error: ImportError, extra: str) -> UserError:
    """Make the error for a package of an extra that is not installed."""
    return UserError(
        f"reward {reward!r} needs the package {package}",
        cause=str(error),
        remedy=f"pip install 'keel-align[{extra}]'",
    )
