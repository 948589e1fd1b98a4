"""One round whose candidate is a merge: train its runs, then judge the points of the merge.

    train -> publish                        (every run; these snapshots are not judged)
    merge -> publish -> probe -> judge      (every point, until one passes)

A point is a plan of no steps that begins with merged weights, so it is published, probed, measured and
judged exactly as a round is, and its decision is a look of the campaign. All of it follows from the plan
and stored snapshots: a run that was killed comes to the same place again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from align.round.merge.search import next_share
from align.round.records.artifacts import drawn_rows
from align.round.repair.damage import gain, gained, lost
from align.round.repair.interpolate import Point
from align.round.session import seed_of
from align.store.repairs import ExtraRun, MergeOrigin, RepairStep
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.retention.mergers.merge import Merge
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.session import Session


@dataclass(frozen=True, slots=True)
class Made:
    """Published weights of a plan."""

    snapshot: SnapshotId
    objections: tuple[str, ...]
    """Objections of the watch."""


class Make(Protocol):
    """Function that trains and publishes the weights of a plan."""

    def __call__(self, weights_plan: RoundPlan) -> Made: ...


class Judge(Protocol):
    """Function that makes the candidate of a plan and asks the gate."""

    def __call__(
        self, candidate_plan: RoundPlan, *, before: int, objections: tuple[str, ...]
    ) -> RoundOutcome: ...


def merged(plan: RoundPlan, session: Session, make: Make, attempt: Judge) -> RoundOutcome:
    """Return the first point of the round's merge that passed the gate, or the first of all.

    The evidence counts, also where the gate only observes: there the first point is taken if none passes.
    """
    config, note = plan.spec.merge, session.observer.note
    assert config is not None, "only rounds with a merge come here"
    merge = merge_of_runs(plan, session)
    runs: list[Made] = []
    for run in runs_of(plan, config.num_runs):
        if run.origin is not None:
            note(f"{plan.spec.name}: {run.origin.description}")
        runs.append(make(run))
    merge = fitted(replace(merge, runs=tuple(run.snapshot for run in runs)), plan, session)
    objections = tuple(objection for run in runs for objection in run.objections)
    outcomes: list[RoundOutcome] = []
    steps: list[RepairStep] = []
    points: list[Point] = []
    share: float | None = config.points[0]
    while True:
        started = perf_counter()
        candidate_plan = point_of(plan, replace(merge, share=share))
        outcome = attempt(candidate_plan, before=len(outcomes), objections=objections)
        assert isinstance(candidate_plan.origin, MergeOrigin), "a point says what it is made of"
        outcomes.append(replace(outcome, merge=candidate_plan.origin))
        steps.append(step_of(outcomes, perf_counter() - started))
        passed = outcome.verdict.outcome == "accepted"
        note(f"{plan.spec.name}: {steps[-1].sentence}")
        verdict = outcome.verdict
        points.append(Point(share=share or 1.0, lost=bool(lost(verdict)), gained=gained(verdict)))
        share = None if passed or objections else next_share(points, config.points)
        if share is None:
            break
    chosen = outcomes[-1] if passed else outcomes[0]
    return replace(chosen, repairs=tuple(steps) if len(steps) > 1 else ())


def runs_of(plan: RoundPlan, count: int) -> Iterator[RoundPlan]:
    """Yield the plan of every run: the round itself, then the same with other draws.

    The learner's seed stays the round's, so that runs over the base begin with the same fresh adapter.
    """
    yield plan
    for number in range(2, count + 1):
        seed = seed_of(plan.seed, f"run-{number}")
        yield replace(
            plan,
            seed=seed,
            weight_seed=plan.seed,
            mixture=plan.mixture.reseeded(seed),
            origin=ExtraRun(of=plan.parent, description=f"run {number} of {count}", number=number),
        )


def merge_of_runs(plan: RoundPlan, session: Session) -> Merge:
    """Return the round's merge before its runs are trained, and check that its snapshots fit together.

    Raises:
        RunError: two earlier snapshots have other tensors than each other.
    """
    from align.retention.mergers.merge import Merge, check_alike

    config = plan.spec.merge
    assert config is not None, "only rounds with a merge come here"
    merge = Merge(
        config=config,
        base=plan.references.base,
        past=past_of(plan, session),
        anchor=plan.references.named(config.anchor),
        runs=(),
        share=None,
        seed=plan.seed,
    )
    check_alike(session.folder_of(snapshot) for snapshot in merge.snapshots)
    return merge


def past_of(plan: RoundPlan, session: Session) -> tuple[SnapshotId, ...]:
    """Return the snapshots of earlier rounds that the merge reads, oldest first, the parent last.

    Of rounds without end only those are read that the round looks back on, so that no round costs more the
    more there were.
    """
    config = plan.spec.merge
    assert config is not None, "only rounds with a merge come here"
    accepted, names = plan.references.rounds, config.rounds_read
    if names == "none":
        return ()
    if names == "all":
        names = tuple(session.evidence.look_back(plan.spec.name, "replay").kept)
    chosen = [snapshot for name, snapshot in accepted.items() if name in names]
    if plan.parent != plan.references.base and plan.parent not in chosen:
        chosen.append(plan.parent)
    return tuple(dict.fromkeys(chosen))


def fitted(merge: Merge, plan: RoundPlan, session: Session) -> Merge:
    """Fit what the merger learns from the answers of the trained policy, which the engines hold."""
    from align.retention.mergers.base import fit_of

    config = merge.config
    if not config.fitted_answers:
        return replace(merge, block_shares=config.block_shares)
    rows = drawn_rows(plan, session, merge.runs[0], config.fitted_answers, "merge")
    fit = fit_of(replace(merge, share=config.points[0]), rows)
    return replace(merge, block_shares=session.learner.compute(fit))


def point_of(plan: RoundPlan, merge: Merge) -> RoundPlan:
    """Plan a round of no steps that begins with merged weights."""
    return replace(
        plan,
        spec=plan.spec.model_copy(update={"steps": 0}),
        references=replace(plan.references, beginning=merge),
        origin=MergeOrigin(
            of=merge.runs[0],
            share=merge.share,
            description=description_of(merge),
            merger=merge.config.name,
            anchor=merge.anchor,
            runs=merge.runs,
            past=merge.past,
            block_shares=merge.block_shares,
        ),
    )


def description_of(merge: Merge) -> str:
    """Say what was merged, such as ``linear merge, 0.6 of the way from the parent``."""
    config = merge.config
    words = f"{config.name} merge"
    if config.num_runs > 1:
        words += f" of {config.num_runs} runs"
    if merge.past:
        count = len(merge.past)
        words += f" with {count} earlier {'round' if count == 1 else 'rounds'}"
    if merge.share is not None:
        start = config.anchor if config.anchor.startswith("round:") else f"the {config.anchor}"
        words += f", {merge.share:g} of the way from {start}"
    if merge.block_shares:
        words += f" ({', '.join(f'{share:.2f}' for share in merge.block_shares)} by block)"
    return words


def step_of(outcomes: Sequence[RoundOutcome], seconds: float) -> RepairStep:
    """Record the last of the points that were judged."""
    last, first = outcomes[-1], outcomes[0]
    assert last.merge is not None, "a point says what it is made of"
    whole = gain(first.verdict)
    return RepairStep(
        rung="merge",
        description=last.merge.description,
        candidate=last.candidate,
        look=last.look,
        outcome=last.verdict.outcome,
        kept=gain(last.verdict) / whole if len(outcomes) > 1 and whole > 0 else 1.0,
        reasons=last.verdict.reasons,
        seconds=seconds,
    )
