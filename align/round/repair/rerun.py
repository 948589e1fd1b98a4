"""The round again from its parent, more carefully: twice the replay, half the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.store.repairs import Origin

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.repair.tried import Tried

MOST_REPLAY = 0.9
"""Share of a step's completions that replay may take at most: something new has to be left."""


def next_plan(plan: RoundPlan, failed: RoundOutcome, tried: Sequence[Tried]) -> RoundPlan | None:
    """Plan the same round, once, with the same seed."""
    if not plan.spec.repair.rerun or tried:
        return None
    spec = careful(plan.spec)
    words = (
        f"rerun with replay {spec.replay.past:.2g} past and {spec.replay.general:.2g} general, "
        f"learning rate {spec.optimizer.lr:.2g}"
    )
    return replace(
        plan,
        spec=spec,
        mixture=replace(plan.mixture, replay=spec.replay),
        origin=Origin(rung="rerun", of=failed.candidate, description=words),
    )


def careful(spec: RoundConfig) -> RoundConfig:
    """Return the round with twice the replay, or as much as leaves room, and half the learning rate.

    A share that is off stays off: whoever keeps no past prompts has a reason.
    """
    replay = spec.replay
    share = replay.past + replay.general + replay.examples
    factor = min(2.0, MOST_REPLAY / share) if share else 1.0
    doubled = {n: getattr(replay, n) * factor for n in ("past", "general", "examples")}
    return spec.model_copy(
        update={
            "replay": replay.model_copy(update=doubled),
            "optimizer": spec.optimizer.model_copy(update={"lr": spec.optimizer.lr / 2}),
        }
    )
