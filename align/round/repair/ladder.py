"""Repairs in the order in which they are tried before a candidate that lost something is given up.

    index  ->  interpolate  ->  distil  ->  rerun  ->  reject

A step of the ladder is a pure function: from the round's plan, the failed candidate and what the step tried
so far it gives the plan of another try, or None. A try is trained, published, probed, measured and judged
exactly as the round itself, and its decision is a look of the campaign. The ladder ends with the first step
of which a candidate passed the gate and kept enough of the gain. Since a plan follows from stored results
alone, a run that was killed on the ladder comes to the same place again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from align.round.repair import distil, documents, interpolate, rerun
from align.round.repair.damage import gain, gained, lost
from align.round.repair.tried import Tried
from align.store.repairs import RepairStep, RungName

if TYPE_CHECKING:
    from align.round.plan import RoundOutcome, RoundPlan

NextPlan = Callable[["RoundPlan", "RoundOutcome", Sequence[Tried]], "RoundPlan | None"]

STEPS: dict[RungName, NextPlan] = {
    "index": documents.next_plan,
    "interpolate": interpolate.next_plan,
    "distil": distil.next_plan,
    "rerun": rerun.next_plan,
}
"""Steps of the ladder from the cheapest to the dearest."""


class Attempt(Protocol):
    """Function that makes the candidate of a plan and asks the gate."""

    def __call__(self, candidate_plan: RoundPlan, *, before: int) -> RoundOutcome:
        """Make another candidate, of whose round the gate has judged ``before`` candidates already."""
        ...


def repair(
    plan: RoundPlan, failed: RoundOutcome, attempt: Attempt, note: Callable[[str], None]
) -> RoundOutcome:
    """Return the best repair that passed, or the failed candidate; with all that was tried.

    A candidate that the gate accepted comes back as it is. The points that a merge of the round tried were
    decisions before the first repair.
    """
    judged, tries = len(failed.repairs) or 1, list[Tried]()
    while (retry := next_plan(plan, failed, tries)) is not None:
        started = perf_counter()
        outcome = attempt(retry, before=len(tries) + judged)
        tries.append(tried(retry, failed, outcome, perf_counter() - started))
        note(f"{plan.spec.name}: {tries[-1].step.sentence}")
    if not tries:
        return failed
    first = RepairStep(
        rung="round",
        description="the round itself" + (f", {failed.merge.description}" if failed.merge else ""),
        candidate=failed.candidate,
        look=failed.look,
        outcome=failed.verdict.outcome,
        kept=1.0,
        reasons=failed.verdict.reasons,
    )
    earlier = failed.repairs or (first,)
    steps = (*earlier, *(each.step for each in tries))
    return replace(best(tries) or failed, repairs=steps, merge=failed.merge)


def next_plan(plan: RoundPlan, failed: RoundOutcome, tries: Sequence[Tried]) -> RoundPlan | None:
    """Plan the next try; return None when one has passed, nothing is left, or nothing can be repaired.

    Only a loss can: a candidate without a gain at its target has nothing that is worth keeping, and nor
    has one whose gain was had by gaming the reward.
    """
    verdict = failed.verdict
    if not plan.spec.steps:  # The weights are the parent's, so there are none to mend.
        return None
    if verdict.accepted or verdict.inputs.objections or not lost(verdict) or not gained(verdict):
        return None
    for name, propose in STEPS.items():
        same_step = [each for each in tries if each.origin.rung == name]
        if (proposed := propose(plan, failed, same_step)) is not None:
            return proposed
        if any(each.passed for each in same_step):
            return None
    return None


def tried(plan: RoundPlan, failed: RoundOutcome, outcome: RoundOutcome, seconds: float) -> Tried:
    """Record the outcome of a plan that `next_plan` gave."""
    assert plan.origin is not None, "only plans of the ladder are tried"
    return Tried(
        origin=plan.origin,
        outcome=outcome,
        kept=gain(outcome.verdict) / gain(failed.verdict),
        keep=plan.spec.repair.keep,
        seconds=seconds,
    )


def best(tries: Sequence[Tried]) -> RoundOutcome | None:
    """Return the candidate that passed and kept most; None where none did."""
    passed = [candidate for candidate in tries if candidate.passed]
    return max(passed, key=lambda candidate: candidate.kept).outcome if passed else None
