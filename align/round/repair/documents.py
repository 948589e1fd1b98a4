"""The index alone: a candidate that lost something keeps its documents and gives up its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.store.repairs import Origin

if TYPE_CHECKING:
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.repair.tried import Tried


def next_plan(plan: RoundPlan, failed: RoundOutcome, tried: Sequence[Tried]) -> RoundPlan | None:
    """Plan a round of no steps from the parent, which reads the round's documents."""
    change = plan.documents_change
    if not plan.spec.repair.index or tried or change is None or not change.touched:
        return None
    return replace(
        plan,
        spec=plan.spec.model_copy(update={"steps": 0}),
        origin=Origin(
            rung="index",
            of=failed.candidate,
            description="the index alone, on the parent's weights",
        ),
    )
