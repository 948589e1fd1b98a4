"""One round: sample, score, learn, then ask the gate whether the change is kept.

This is the file to read first. A round starts from its parent snapshot, takes ``steps`` learner steps
on its own rollouts, publishes the result as an immutable candidate, measures it on every suite and
commits a verdict. Nothing is undone on a rejection: production never moved.

    rollouts.take -> build_batch -> training.update -> rollouts.sync             (every step)
    snapshots.publish -> evaluate -> decide            (once, and for every repair that is tried)
    ledger.commit_round                                                          (once)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from align.data.retrieval.record import record_of, with_index
from align.learner.batching import build_batch
from align.learner.teachers.teacher import with_teacher_prompts
from align.round.measurement.measuring import measure_until_decided
from align.round.merge.merged import Made, merged
from align.round.meters import heldout_texts, measure_drift, probe, rollout_metrics
from align.round.plan import RoundOutcome, RoundPlan
from align.round.records.artifacts import keep_artifacts, keep_counters, penalties_of, show_start
from align.round.records.checkpoints import keep_checkpoint, resume
from align.round.records.parts import parts_of
from align.round.records.replay import remember
from align.round.repair.ladder import repair
from align.round.rollout_table import keep_rollouts
from align.round.sampler import StepSampler
from align.round.session import Session
from align.round.times.clock import phase
from align.round.watch.watch import RoundWatch
from align.store.repairs import with_merge, with_repairs
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.learner.ranks.group import GroupTraining
    from align.learner.training import Training


def run_round(plan: RoundPlan, session: Session) -> RoundOutcome:
    """Train a candidate, put it before the gate, and where it lost something try to repair it.

    A round with ``merge`` trains weights first, and the merge of them with earlier ones is its candidate.

    Raises:
        RewardFailure: more rewards failed than the round's budget allows.
        ParityError: an engine did not sample from the learner's weights.
        NonFiniteError: the learner could not take a finite step several times in a row.
    """

    def make(weights_plan: RoundPlan) -> Made:
        weights_plan = weights_plan.apart()
        objections = train(weights_plan, session)
        keep_counters(weights_plan, session)
        return Made(publish(weights_plan, session), objections)

    def attempt(
        candidate_plan: RoundPlan, *, before: int = 0, objections: tuple[str, ...] = ()
    ) -> RoundOutcome:
        candidate = make(candidate_plan)
        noticed = (*objections, *candidate.objections)
        return judge(candidate_plan, session, candidate.snapshot, before, noticed)

    first = attempt(plan) if plan.spec.merge is None else merged(plan, session, make, attempt)
    outcome = repair(plan, first, attempt, session.observer.note)
    remember(plan, session, outcome.candidate)
    if outcome.verdict.accepted:
        keep_artifacts(plan, session, outcome)
    outcome = replace(outcome, parts=parts_of(plan, session, outcome))
    commit(plan, session, outcome)
    return outcome


def train(plan: RoundPlan, session: Session) -> tuple[str, ...]:
    """Take the learner steps of a round; return what the watch holds against them.

    The engines hold the learner's weights before and after.
    """
    spec = plan.spec
    with begun_sampling(plan, session) as (training, rollouts):
        with phase("start-up"):
            first = resume(plan, session, training, rollouts)
        rollouts.start(first)
        if first == 0:
            show_start(plan, session, training, rollouts.engine_version)
        watch = RoundWatch(plan=plan, session=session)
        watch.start(first)
        for index in range(first, spec.steps):
            step = rollouts.take(index)
            plan.mixture.history.observe(index, step.scored)
            plan.scorer.check_budget(spec.failed_budget, done=(index + 1) / spec.steps)
            batch = build_batch(
                step.scored,
                spec.algorithm,
                replay_rewards=spec.replay.rewards,
                examples=step.examples,
                rehearsal=step.rehearsal,
            )
            groups = [scored.group for scored in step.scored]
            batch = with_teacher_prompts(batch, groups, spec.algorithm, rollouts.encoder.encode)
            batch = replace(batch, metrics=batch.metrics | rollout_metrics(step.scored, batch))
            keep_rollouts(plan, session, index, step.scored, batch)
            with phase("learning"):
                metrics = training.update(batch)
            sync_metrics = rollouts.sync(index + 1)
            if index % spec.meter_every == 0 or index == spec.steps - 1:
                metrics |= measure_drift(
                    plan, session.engine, rollouts.encoder, training, rollouts.engine_version
                )
                metrics |= heldout_texts(
                    session.learner, session.inputs.held_texts.get(spec.name, ())
                )
            metrics |= {**step.metrics, **sync_metrics, **plan.scorer.metrics}
            metrics |= plan.environment_metrics
            metrics |= plan.mixture.replayed_counts(step.scored)
            metrics = watch.observe(index, step.scored, metrics)
            # The next attempt's watch hears of these steps from their lines.
            session.write_step(plan, index, metrics)
            keep_checkpoint(plan, session, training, index + 1, rollouts)
            session.observer.on_step(plan, index, metrics)
        return watch.finish()


@contextmanager
def begun_sampling(
    plan: RoundPlan, session: Session
) -> Iterator[tuple[Training | GroupTraining, StepSampler]]:
    """Begin the training of a round and its samples; those that are ahead at the end are given up."""
    with phase("start-up"):
        training = session.begin(plan, penalties_of(plan))
        rollouts = StepSampler(
            plan=plan,
            engine=session.engine,
            weights=session.learner.weights,
            encoder=session.encoder,
            note=session.observer.note,
            silence_s=session.config.waits.silence_s,
        )
    with closing(rollouts):
        yield training, rollouts


@phase("publishing")
def publish(plan: RoundPlan, session: Session) -> SnapshotId:
    """Prove that the engines hold the final weights, then make them a snapshot.

    A snapshot in lower precision is read back, so that what is measured is what was published; so is a
    bank, in which prompts then retrieve among all adapters.
    """
    policy = session.config.policy
    prove(plan, session)
    if session.training is not None and session.training.critic is not None:
        # No snapshot holds the critic.
        session.training.critic.save(session.run_folder(plan).critic)
    snapshot = session.store.snapshots.publish(
        partial(session.write_snapshot, plan),
        session.provenance(plan),
        code=policy.trust_remote_code,
    )
    session.ledger.record_snapshot(snapshot)
    if policy.may_round or policy.bank is not None:
        session.hold(snapshot.id, f"{plan.run}/published")
        prove(plan, session)
    return snapshot.id


def prove(plan: RoundPlan, session: Session) -> None:
    """Compare engines and learner on fresh samples of the round's prompts; see `probe`."""
    prompts = plan.mixture.meter_prompts(session.config.rollouts.probe_sequences)
    max_tokens = plan.spec.sampling.max_tokens
    probe(session.engine, session.encoder, session.learner, prompts, max_tokens)


def judge(
    plan: RoundPlan,
    session: Session,
    candidate: SnapshotId,
    before: int = 0,
    objections: tuple[str, ...] = (),
) -> RoundOutcome:
    """Measure a candidate, whose weights the engines hold, and ask the gate.

    Args:
        before: candidates of the round that the gate has judged already.
        objections: sentences that keep the candidate out, whatever its suites say.
    """
    session.ledger.enter_gating(plan.index, plan.attempt, candidate)
    target, look = plan.spec.name, session.evidence.looks() + before + 1
    items, compared = measure_until_decided(
        session, candidate, plan.title, target, plan.parent, look
    )
    with phase("judging"):
        verdict = session.evidence.judge(
            target, candidate, plan.parent, session.suites(), look, objections, items, compared
        )
    return RoundOutcome(candidate=candidate, verdict=verdict, look=look)


def report_of(plan: RoundPlan, outcome: RoundOutcome) -> dict[str, Any]:
    """Return the verdict as the ledger keeps it, with what the candidate was made of."""
    report = with_merge(with_repairs(outcome.verdict.to_dict(), outcome.repairs), outcome.merge)
    return with_index(report, record_of(plan.documents, plan.documents_change, outcome.parts))


def commit(plan: RoundPlan, session: Session, outcome: RoundOutcome) -> None:
    """Make the verdict final; production moves if the candidate was accepted."""
    # A repair may have been judged since.
    session.ledger.enter_gating(plan.index, plan.attempt, outcome.candidate)
    session.ledger.commit_round(
        plan.index,
        plan.attempt,
        "accepted" if outcome.verdict.accepted else "rejected",
        outcome.candidate,
        report_of(plan, outcome),
    )
