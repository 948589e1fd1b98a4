"""One round: sample, score, learn, then ask the gate whether the change is kept.

This is the file to read first. A round starts from its parent snapshot, takes ``steps`` learner steps
on its own rollouts, publishes the result as an immutable candidate, measures it on every suite and
commits a verdict. Nothing is undone on a rejection: production never moved.

    rollouts.take -> build_batch -> learner.update -> rollouts.sync             (every step)
    store.publish -> evaluate -> decide                (once, and for every repair that is tried)
    ledger.commit_round                                                          (once)
"""

from __future__ import annotations

from functools import partial

from align.learner.batching import build_batch
from align.learner.teachers.teacher import with_teacher_prompts
from align.round.artifacts import keep_artifacts, penalties_of
from align.round.measurement.measuring import measure_until_decided
from align.round.meters import measure_drift, probe, rollout_metrics
from align.round.plan import RoundOutcome, RoundPlan
from align.round.repair.ladder import climb
from align.round.rollout_table import keep_rollouts
from align.round.sampler import StepSampler
from align.round.session import Parts
from align.round.times.clock import phase
from align.round.watch.watch import RoundWatch
from align.store.repairs import with_repairs
from rollouts.types import SnapshotId


def run_round(plan: RoundPlan, parts: Parts) -> RoundOutcome:
    """Train a candidate, put it before the gate, and where it lost something try to repair it.

    Raises:
        RewardFailure: more rewards failed than the round's budget allows.
        ParityError: an engine did not sample from the learner's weights.
        NonFiniteError: the learner could not take a finite step several times in a row.
    """
    first = attempt(plan, parts)
    outcome = climb(plan, first, partial(attempt, parts=parts), parts.observer.note)
    parts.remember(plan, outcome.candidate)
    if outcome.verdict.accepted:
        keep_artifacts(plan, parts, outcome)
    commit(plan, parts, outcome)
    return outcome


def attempt(plan: RoundPlan, parts: Parts, before: int = 0) -> RoundOutcome:
    """Train a candidate and ask the gate, which judged ``before`` others in this round."""
    objections = train(plan, parts)
    return gated(plan, parts, publish(plan, parts), before, objections)


def gated(
    plan: RoundPlan,
    parts: Parts,
    candidate: SnapshotId,
    before: int = 0,
    objections: tuple[str, ...] = (),
) -> RoundOutcome:
    """Measure a candidate, whose weights the engines hold, and ask the gate."""
    parts.ledger.enter_gating(plan.index, plan.attempt, candidate)
    target, look = plan.spec.name, parts.evidence.looks() + before + 1
    items, compared = measure_until_decided(parts, candidate, plan.title, target, plan.parent, look)
    with phase("judging"):
        verdict = parts.evidence.judge(
            target, candidate, plan.parent, parts.suites(), look, objections, items, compared
        )
    return RoundOutcome(candidate=candidate, verdict=verdict, look=look)


def train(plan: RoundPlan, parts: Parts) -> tuple[str, ...]:
    """The learner steps of a round, and what the watch holds against them.

    The engines hold the learner's weights before and after.
    """
    spec, learner = plan.spec, parts.learner
    with phase("start-up"):
        learner.begin(
            spec,
            plan.references,
            num_steps=spec.steps,
            seed=plan.seed,
            penalties=penalties_of(plan),
        )
        rollouts = StepSampler(plan=plan, parts=parts, version=partial(version, plan))
        first = parts.resume(plan, rollouts)
    rollouts.start(first)
    watch = RoundWatch(plan=plan, parts=parts)
    watch.start(first)
    for step in range(first, spec.steps):
        scored = rollouts.take(step)
        plan.scorer.check_budget(spec.failed_budget, done=(step + 1) / spec.steps)
        batch = build_batch(
            scored,
            spec.algorithm,
            replay_rewards=spec.replay.rewards,
            examples=rollouts.examples,
        )
        batch = with_teacher_prompts(
            batch, [s.group for s in scored], spec.algorithm, parts.inputs.encoder.encode
        )
        keep_rollouts(plan, parts, step, scored, batch)
        with phase("learning"):
            metrics = learner.update(batch)
        sync = rollouts.sync(step + 1)
        parts.checkpoint(plan, step + 1, rollouts)
        if step % spec.meter_every == 0 or step == spec.steps - 1:
            metrics |= measure_drift(
                plan.mixture,
                plan.references,
                rollouts.sampling,
                parts,
                seed=plan.seed,
                policy=rollouts.held,
            )
        metrics |= rollout_metrics(scored, batch, sync) | rollouts.metrics | plan.scorer.metrics
        parts.log(plan, step, watch.seen(step, scored, metrics))
    return watch.finish()


@phase("publishing")
def publish(plan: RoundPlan, parts: Parts) -> SnapshotId:
    """Prove that the engines hold the final weights, then make them a snapshot.

    A snapshot in lower precision is read back, so that what is measured is what was published.
    """
    policy = parts.config.policy
    prompts = plan.mixture.meter_prompts(parts.config.rollouts.probe_sequences)
    probe(parts, prompts, plan.spec.sampling.max_tokens)
    parts.keep_critic(plan)
    snapshot = parts.store.publish(
        parts.write_snapshot, parts.provenance(plan), code=policy.trust_remote_code
    )
    parts.ledger.record_snapshot(snapshot)
    if policy.may_round:
        with phase("weight sync"):
            parts.learner.load(snapshot.id)
            parts.engine.sync(parts.learner.weights(f"{plan.run}/published"))
        probe(parts, prompts, plan.spec.sampling.max_tokens)
    return snapshot.id


def commit(plan: RoundPlan, parts: Parts, outcome: RoundOutcome) -> None:
    """The verdict becomes final, and production moves if it was accepted."""
    # A repair may have been judged since.
    parts.ledger.enter_gating(plan.index, plan.attempt, outcome.candidate)
    parts.ledger.commit_round(
        plan.index,
        plan.attempt,
        "accepted" if outcome.verdict.accepted else "rejected",
        outcome.candidate,
        with_repairs(outcome.verdict.to_dict(), outcome.repairs),
    )


def version(plan: RoundPlan, step: int) -> str:
    """Name of the weights after ``step`` learner steps."""
    return f"{plan.run}/{step}"
