"""Facts about environments, read in a worker before anything costly starts, and checks against rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.environments.plan import COLUMN, EnvironmentsPlan
from rewards.isolation.process import Worker, WorkerEnded
from rewards.signatures.parameters import Parameters
from rollouts.episodes.environment import Schema
from rollouts.errors import UserError, nearest
from rollouts.types import Prompt

logger = logging.getLogger(__name__)

_DESCRIBED: dict[str, Mapping[str, DescribedEnvironment]] = {}
"""Descriptions by `EnvironmentsPlan.digest`: a file that changed is described again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedEnvironment:
    """Facts about one environment that a campaign needs, without its code."""

    schemas: Sequence[Schema]
    """Tools as chat templates take them: the functions first, then the methods."""
    kind: str = ""
    """Name of the class; empty where there are only functions."""
    reset: Parameters | None = None
    """Arguments of ``reset``; None where there are only functions."""
    rewards: bool = False
    """True if it has ``get_reward``."""
    turn_rewards: bool = False
    """True if it has ``get_turn_reward``."""
    attributes: Sequence[str] | None = None
    """Public attributes that its objects can have; None: they cannot be known before an episode."""

    @property
    def has_object(self) -> bool:
        """True if an episode has an object with a state."""
        return self.reset is not None


def describe_environments(plan: EnvironmentsPlan) -> Mapping[str, DescribedEnvironment]:
    """Return the facts about every environment of a plan, by name; files are loaded in a worker.

    Raises:
        UserError: one cannot be loaded or constructed, a tool has no schema, or a file does not exist.
    """
    _check_files(plan)
    digest = plan.digest()
    if digest not in _DESCRIBED:
        _DESCRIBED[digest] = _read(plan)
    return _DESCRIBED[digest]


def _check_files(plan: EnvironmentsPlan) -> None:
    """Refuse files that the code is to read and that do not exist; those that were sent here do."""
    for i, file in enumerate(plan.files if plan.code is None else ()):
        if not Path(file).exists():
            raise UserError(
                f"there is no file or folder {file!r}",
                where=plan.place(f"episode.files.{i}"),
                cause="paths in a campaign file start from its folder",
                remedy="correct the path, or remove it",
            )


def _read(plan: EnvironmentsPlan) -> Mapping[str, DescribedEnvironment]:
    try:
        worker = Worker(replace(plan.worker_plan(describes=True), describe=True))
    except WorkerEnded as ended:
        raise UserError(
            f"{', '.join(plan.names)} cannot be loaded to read the tools",
            where=plan.where or None,
            cause=ended.failure.reason,
            remedy="correct the file: python -X faulthandler FILE should end by itself",
        ) from None
    worker.end()
    return {name: _described(facts) for name, facts in worker.about["environments"].items()}


def _described(facts: Mapping[str, Any]) -> DescribedEnvironment:
    takes = facts["reset"]
    reset = takes and Parameters(
        names=tuple(takes["names"]), required=tuple(takes["required"]), anything=takes["anything"]
    )
    return DescribedEnvironment(
        schemas=facts["schemas"],
        kind=facts["class"],
        reset=reset,
        rewards=facts["rewards"],
        turn_rewards=facts["turn_rewards"],
        attributes=facts.get("attributes"),
    )


def check_rewarded(
    described: Mapping[str, DescribedEnvironment], where: str, *, turns: bool
) -> None:
    """Refuse environments of which none gives the reward that is needed.

    Args:
        where: place of the setting that needs it.
        turns: rewards of turns are meant, not those of episodes.

    Raises:
        UserError: names the method that is missing.
    """
    if any(each.turn_rewards if turns else each.rewards for each in described.values()):
        return
    kinds = ", ".join(each.kind or "the tools" for each in described.values())
    method = "get_turn_reward" if turns else "get_reward"
    raise UserError(
        f"no reward is given: {kinds} has no method {method}",
        where=where,
        remedy=f"add def {method}(self) -> float, or "
        + ("set turn_rewards to false" if turns else "name a reward that scores the completions"),
    )


def check_turns(
    plan: EnvironmentsPlan, described: Mapping[str, DescribedEnvironment], turns: int
) -> None:
    """Refuse episodes of one turn where there are tools: none could ever be called.

    Args:
        turns: most turns of an episode.

    Raises:
        UserError: names the first tool.
    """
    schemas = [schema for each in described.values() for schema in each.schemas]
    if turns > 1 or not schemas:
        return
    name = schemas[0]["function"]["name"]
    raise UserError(
        f"turns is {turns} and the policy has tools, {name!r} first: it can call none of them",
        where=plan.place("episode.turns"),
        cause="an episode's last turn is its answer, whose calls are not made",
        remedy="set turns to 2 or more: one for a call, one for the answer",
    )


def check_attribute(
    described: Mapping[str, DescribedEnvironment], attribute: str, where: str
) -> None:
    """Refuse an attribute that objects of some environment can never have.

    Args:
        where: place of the option that names it.

    Raises:
        UserError: names the environment and what its objects have.
    """
    for each in described.values():
        if each.attributes is not None and attribute not in each.attributes:
            known = ", ".join(each.attributes) or "none"
            raise UserError(
                f"objects of environment {each.kind!r} have no public attribute {attribute!r}",
                where=where,
                cause=f"neither its class nor its methods set it; they set: {known}",
                remedy=nearest(attribute, list(each.attributes))
                + f", or set self.{attribute} in reset; None abstains",
            )


def check_rows(
    plan: EnvironmentsPlan,
    described: Mapping[str, DescribedEnvironment],
    prompts: Sequence[Prompt],
) -> None:
    """Refuse the first row that has no environment, or whose columns ``reset`` cannot be called with.

    Raises:
        UserError: names the row's file and line.
    """
    for prompt in prompts:
        if plan.chooses:
            _check_choice(plan, prompt)
        name = plan.name_for(prompt)
        reset = described[name].reset
        if reset is None:
            continue
        columns = plan.row(prompt)
        label = plan.environments[name]
        lacking = next((column for column in reset.required if column not in columns), None)
        if lacking is not None:
            raise UserError(
                f"reset of environment {label!r} needs the column {lacking!r}, which {prompt.label} does "
                "not have",
                where=plan.place_of(name),
                remedy=nearest(lacking, list(columns)) + ", or give the parameter a default",
            )
        surplus = next((column for column in columns if not reset.take(column)), None)
        if surplus is not None:
            raise UserError(
                f"reset of environment {label!r} does not take {surplus!r}, which {prompt.label} has",
                where=plan.place_of(name),
                cause="reset is called with the whole row: reset(**row)",
                remedy="add **row to its parameters: def reset(self, **row)",
            )


def _check_choice(plan: EnvironmentsPlan, prompt: Prompt) -> None:
    name = prompt.columns.get(COLUMN)
    if name in plan.environments:
        return
    names = list(plan.environments)
    if name is None:
        what = f"{prompt.label} has no column {COLUMN!r}, which names one of several environments"
        remedy = f"add the column, with one of: {', '.join(names)}"
    else:
        what = f"{prompt.label} names the environment {name!r}, which does not exist"
        remedy = nearest(str(name), names)
    raise UserError(what, where=plan.place("environment"), remedy=remedy)
