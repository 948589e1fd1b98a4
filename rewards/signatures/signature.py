"""Arguments of a reward function, and the check that a rubric can call it.

Checked when a campaign is loaded, so that a misspelt option or a missing argument is one clear
message instead of a failed round.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.base import (
    RewardFunction,
    RewardPart,
    Sample,
    shown_completion,
    shown_environment,
    shown_prompt,
)
from rewards.signatures.parameters import RESERVED, parameters
from rollouts.errors import UserError, nearest


def required_columns(part: RewardPart) -> tuple[str, ...]:
    """List the dataset columns that a part requires."""
    return tuple(
        name for name in part.takes.required if name not in RESERVED and name not in part.options
    )


def arguments(
    part: RewardPart, samples_B: Sequence[Sample], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the keyword arguments of one call: only what the function takes, every list fresh.

    A sample whose prompt lacks a column that others have gives None in that column.
    """
    offered: dict[str, Any] = {
        "prompts": [shown_prompt(sample) for sample in samples_B],
        "completions": [shown_completion(sample) for sample in samples_B],
        "completion_ids": [list(sample.completion.token_ids) for sample in samples_B],
        **context,
    }
    environments = [shown_environment(sample) for sample in samples_B]
    if any(environments) or "environments" in part.takes.names:
        offered["environments"] = environments
    columns = dict.fromkeys(name for sample in samples_B for name in sample.prompt.columns)
    for name in columns:
        if name not in RESERVED:
            offered[name] = [sample.prompt.columns.get(name) for sample in samples_B]
    return {k: v for k, v in {**offered, **part.options}.items() if part.takes.take(k)}


def check_signature(
    name: str, function: RewardFunction, options: Mapping[str, Any], where: str | None
) -> None:
    """Raise a `UserError` unless a rubric can call ``function`` with these options."""
    try:
        takes = parameters(function)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"reward {name!r} has no readable signature",
            where=where,
            cause=str(error),
            remedy="wrap it in a def with named arguments",
        ) from error
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(
                f"reward {name!r} takes {parameter.name!r} by position only",
                where=where,
                cause="rewards are called by keyword",
                remedy="remove the '/' from its signature",
            )
    if not (takes.take("completions") or takes.take("completion_ids")):
        raise UserError(
            f"reward {name!r} is missing the argument 'completions'",
            where=where,
            cause=f"its arguments are ({', '.join(takes.names)})",
            remedy="give it the signature f(completions, **columns) -> list[float | None]",
        )
    options_taken = [name for name in takes.names if name not in RESERVED]
    for option in options:
        if option in RESERVED:
            raise UserError(
                f"option {option!r} of reward {name!r} is filled in by the rubric",
                where=where,
                remedy="remove it from options",
            )
        if not takes.take(option):
            raise UserError(
                f"reward {name!r} does not take the option {option!r}",
                where=where,
                remedy=nearest(option, options_taken)
                if options_taken
                else "remove it: the reward takes no options",
            )
