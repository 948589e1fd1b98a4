"""Checkpoints of the round that runs: written after its steps, gone on with by its next attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.errors import EvidenceError, SnapshotError
from align.round.times.clock import phase

if TYPE_CHECKING:
    from align.learner.ranks.group import GroupTraining
    from align.learner.training import Training
    from align.round.plan import RoundPlan
    from align.round.sampler import StepSampler
    from align.round.session import Session


def keep_checkpoint(
    plan: RoundPlan,
    session: Session,
    training: Training | GroupTraining,
    step: int,
    rollouts: StepSampler,
) -> None:
    """Write down the training after ``step`` steps, where that is due, and what was sampled ahead."""
    if step % plan.spec.checkpoint_every == 0 and step < plan.spec.steps:
        with phase("checkpoints"):
            session.claim.beat()  # A runner that was replaced must not remove its successor's.
            # The watch of the next attempt hears the signals of these steps from their metrics.
            session.keep_times(plan.index, plan.spec.name, plan.attempt)
            folder = session.checkpoint_folder(plan)
            extra = {
                "failures": plan.scorer.failures(),
                "sampled": rollouts.under_way(),
                "history": plan.mixture.history.counters(),
            }
            training.checkpoint(folder, step, identity=identity(plan, session), extra=extra)
            session.store.keep_checkpoint(folder)


def resume(
    plan: RoundPlan, session: Session, training: Training | GroupTraining, rollouts: StepSampler
) -> int:
    """Go on from the round's newest checkpoint; return the steps that an earlier attempt has done.

    The samples that were drawn ahead come back, and so does the count of what rewards failed on.
    """
    plan.scorer.recall({})
    plan.mixture.history.recall({})
    folder = session.checkpoint_folder(plan)
    try:
        session.store.check_checkpoint(folder)
        checkpoint = training.restore(folder, identity=identity(plan, session))
    except (SnapshotError, EvidenceError) as error:
        session.observer.note(f"the round starts over: {error}")
        return 0
    if checkpoint is None:
        return 0
    plan.scorer.recall(checkpoint.extra.get("failures", {}))
    plan.mixture.history.recall(checkpoint.extra.get("history", {}))
    rollouts.recall(checkpoint.extra.get("sampled", {}))
    session.observer.note(f"round {plan.spec.name} goes on from step {checkpoint.step}")
    return checkpoint.step


def identity(plan: RoundPlan, session: Session) -> dict[str, str]:
    """Return what must not have changed for a checkpoint to be gone on with."""
    return {
        "round": plan.spec.name,
        "parent": plan.parent,
        "config": session.config.training_hash(plan.spec.name),
        **session.inputs.data_hashes(plan.spec.name),
        **({"repair of": plan.origin.of} if plan.origin else {}),
        **{
            f"{name} artifact": session.store.files.hash_of(path) or ""
            for name, path in plan.artifacts.items()
        },
    }
