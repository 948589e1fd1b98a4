"""Several rewards that have to agree: their minimum, or their mean, as one part of a rubric.

A policy that has found one reward's weakness has not yet found the others'. The minimum is the
worst-case ensemble of Coste et al. 2023, arXiv 2310.02743 section 3.2. Rewards on different scales do
not agree about anything: give it rewards of one range.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from statistics import fmean
from typing import Any

from rewards.base import RewardPart, ShownCompletion
from rewards.signatures.options import one_of, whole_number
from rewards.signatures.parameters import RESERVED
from rewards.signatures.signature import required_columns
from rollouts.errors import UserError

COMBINATIONS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "mean": fmean}


class Agreement:
    """The ``how`` of the rewards ``of``: ``min`` (conservative) or ``mean``.

    ``of`` holds names, or ``{name: ..., options: {...}}``. A sample needs at least ``quorum`` scores
    (None: from all of them), else it is abstained. One that a reward fails on has failed.
    """

    def __init__(
        self,
        parts: Sequence[RewardPart],
        /,
        of: Sequence[str | Mapping[str, Any]] = (),
        how: str = "min",
        quorum: int | None = None,
    ) -> None:
        one_of("how", how, list(COMBINATIONS))
        self.quorum = len(parts) if quorum is None else quorum
        whole_number("quorum", self.quorum)
        if self.quorum > len(parts):
            raise UserError(f"quorum {quorum} is more than the {len(parts)} rewards")
        self.combine, self.parts = COMBINATIONS[how], parts
        # The rubric reads the columns it must provide off the signature.
        self.__signature__ = _signature(parts)

    async def __call__(self, completions: Sequence[ShownCompletion], **others: Any) -> list[Any]:
        """Return one value per completion; asynchronous, since some of the rewards may be."""
        offered = {"completions": completions, **others}
        members = await asyncio.gather(*(_ask(part, offered) for part in self.parts))
        return [self._combined(values) for values in zip(*members, strict=True)]

    def _combined(self, values: Sequence[Any]) -> Any:
        """Return the agreed number, None without a quorum. A value that is no number is returned, and
        so fails."""
        scored = [value for value in values if value is not None]
        for value in scored:
            if isinstance(value, BaseException) or value != value:
                return value
        return self.combine(scored) if len(scored) >= self.quorum else None


async def _ask(part: RewardPart, offered: Mapping[str, Any]) -> list[Any]:
    arguments = {k: v for k, v in {**offered, **part.options}.items() if part.takes.take(k)}
    returned = part.function(**arguments)
    return list(await returned if inspect.isawaitable(returned) else returned)


def members_of(options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Read name and options of the rewards that have to agree.

    Raises:
        UserError: there are not two, or one has neither a name nor the form of a reward.
    """
    of = options.get("of", ())
    if not isinstance(of, list | tuple) or len(of) < 2:
        raise UserError(f"agreement takes at least two rewards, got {of!r}",
                        remedy="add options: {of: [exact_match, math_answer]}")  # fmt: skip
    members: list[tuple[str, dict[str, Any]]] = []
    for member in of:
        reward: Any = {"name": member} if isinstance(member, str) else member
        if (
            not isinstance(reward, Mapping)
            or set(reward) - {"name", "options"}
            or not isinstance(reward.get("name"), str)
        ):
            raise UserError(f"a member of an agreement has a name and options, got {member!r}")
        members.append((reward["name"], dict(reward.get("options") or {})))
    return members


def _signature(parts: Sequence[RewardPart]) -> Signature:
    """Make a signature of everything a rubric offers, with the members' columns as required ones."""
    kind = Parameter.KEYWORD_ONLY
    columns = dict.fromkeys(column for part in parts for column in required_columns(part))
    reserved = [
        Parameter(name, kind, default=Parameter.empty if name == "completions" else None)
        for name in RESERVED
    ]
    needed = [Parameter(column, kind) for column in columns]
    return Signature([*needed, *reserved, Parameter("others", Parameter.VAR_KEYWORD)])
