"""Part of the way back to the parent: the largest share of a round's step that the gate lets pass.

    theta(a) = theta_parent + a * (theta_candidate - theta_parent)        0 < a < 1

Between a fine-tuned model and its start lie models with most of the gain and little of the loss:
WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903, section 3. What that means for an adapter says
`align.learner.model.blend`.

The share is found by bisection, and the gate's own suites choose it. That is honest because every point
is a full decision with a look of its own: whichever is taken, alpha was spent on it, so taking the
largest that passed adds no error that was not counted (the union bound). Points are few for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align.learner.references import Toward
from align.store.repairs import Origin

if TYPE_CHECKING:
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.repair.tried import Tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Decision of the gate at one share."""

    share: float
    lost: bool
    """Something that must be retained was not shown to be."""
    gained: bool
    """The target was shown to be better, by enough."""


def next_share(points: Sequence[Point], steps: int) -> float | None:
    """Return the next share to try; None at the end of the search.

    A point that lost something sends it toward the parent, one that did not toward the candidate. One
    that lost something without a gain ends it: on neither side is there anything to find.

    >>> next_share([], 3)
    0.5
    >>> next_share([Point(share=0.5, lost=True, gained=True)], 3)
    0.25
    """
    low, high = 0.0, 1.0
    for point in points:
        if point.lost and not point.gained:
            return None
        low, high = (low, point.share) if point.lost else (point.share, high)
    return None if len(points) >= steps else (low + high) / 2


def next_plan(plan: RoundPlan, failed: RoundOutcome, tried: Sequence[Tried]) -> RoundPlan | None:
    """Plan a round of no steps that starts between the parent and the candidate."""
    chosen = plan.spec.repair.interpolate
    if chosen is None:
        return None
    points = [
        Point(share=earlier.origin.share or 0.0, lost=earlier.lost, gained=earlier.gained)
        for earlier in tried
    ]
    share = next_share(points, chosen.steps)
    if share is None:
        return None
    toward = Toward(snapshot=failed.candidate, share=share)
    return replace(
        plan,
        spec=plan.spec.model_copy(update={"steps": 0}),
        references=replace(plan.references, beginning=toward),
        origin=Origin(
            rung="interpolate",
            of=failed.candidate,
            share=share,
            description=f"interpolation at {share:g}",
        ),
    )
