"""One round: sample, score, learn, then ask the gate whether the change is kept.

This is the file to read first. A round starts from its parent snapshot, takes ``steps`` learner steps
on its own rollouts, publishes the result as an immutable candidate, measures it on every suite and
commits a verdict. Nothing is undone on a rejection: production never moved.

    rollouts.take -> build_batch -> learner.update -> rollouts.sync             (every step)
    store.publish -> evaluate -> decide -> ledger.commit_round                   (once)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from align.config import RoundConfig
from align.gate.evaluate import ItemResults, evaluate
from align.gate.gate import Verdict
from align.learner.anchors import References
from align.learner.batch import build_batch
from align.learner.teacher import with_teacher_prompts
from align.meters import measure_drift, probe, rollout_metrics
from align.mixture import Mixture
from align.parts import Parts
from align.sampling import StepSampler
from align.scoring import Scorer
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """Everything a round needs to know, fixed before its first step."""

    index: int
    attempt: int
    spec: RoundConfig
    references: References
    mixture: Mixture
    scorer: Scorer
    seed: int

    @property
    def parent(self) -> SnapshotId:
        return self.references.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOutcome:
    """What a round left behind."""

    candidate: SnapshotId
    verdict: Verdict


def run_round(plan: RoundPlan, parts: Parts) -> RoundOutcome:
    """Train a candidate and put it before the gate.

    Raises:
        RewardFailure: more rewards failed than the round's budget allows.
        ParityError: an engine did not sample from the learner's weights.
        NonFiniteError: the learner could not take a finite step several times in a row.
    """
    train(plan, parts)
    candidate = publish(plan, parts)
    parts.ledger.enter_gating(plan.index, plan.attempt, candidate)
    parts.evidence.save(candidate, measure(parts, candidate))
    parts.remember(plan, candidate)
    verdict = parts.evidence.judge(plan.spec.name, candidate, plan.parent, parts.suites())
    parts.ledger.commit_round(
        plan.index,
        plan.attempt,
        "accepted" if verdict.accepted else "rejected",
        candidate,
        verdict.to_dict(),
    )
    return RoundOutcome(candidate=candidate, verdict=verdict)


def train(plan: RoundPlan, parts: Parts) -> None:
    """The learner steps of a round. The engines hold the learner's weights before and after."""
    spec, learner = plan.spec, parts.learner
    learner.begin(spec, plan.references, num_steps=spec.steps, seed=plan.seed)
    first = parts.resume(plan)
    rollouts = StepSampler(plan=plan, parts=parts, version=partial(version, plan))
    rollouts.start(first)
    for step in range(first, spec.steps):
        scored = rollouts.take(step)
        plan.scorer.check_budget(spec.failed_budget, planned=spec.steps * spec.sampling.budget)
        batch = build_batch(
            scored,
            spec.algorithm,
            replay_rewards=spec.replay.rewards,
            examples=rollouts.examples,
        )
        batch = with_teacher_prompts(
            batch, [s.group for s in scored], spec.algorithm, parts.inputs.encoder.encode
        )
        metrics = learner.update(batch)
        sync = rollouts.sync(step + 1)
        parts.checkpoint(plan, step + 1)
        if step % spec.meter_every == 0 or step == spec.steps - 1:
            metrics |= measure_drift(
                plan.mixture, plan.references, rollouts.sampling, parts, plan.seed
            )
        parts.log(
            plan,
            step,
            metrics | rollout_metrics(scored, batch, sync) | rollouts.metrics | plan.scorer.metrics,
        )


def publish(plan: RoundPlan, parts: Parts) -> SnapshotId:
    """Prove that the engines hold the final weights, then make them a snapshot."""
    prompts = plan.mixture.meter_prompts(parts.config.rollouts.probe_sequences)
    probe(parts, prompts, plan.spec.sampling.max_tokens)
    parts.keep_critic(plan)
    snapshot = parts.store.publish(parts.write_snapshot, parts.provenance(plan))
    parts.ledger.record_snapshot(snapshot)
    return snapshot.id


def measure(parts: Parts, snapshot: SnapshotId) -> dict[str, ItemResults]:
    """Every suite not yet measured, on the weights the engines hold now: the snapshot's."""
    missing = parts.evidence.missing(snapshot, parts.suites())
    return evaluate(parts.engine, missing, parts.inputs.encoder, snapshot, seed=parts.config.seed)


def version(plan: RoundPlan, step: int) -> str:
    """Name of the weights after ``step`` learner steps of this round's attempt."""
    return f"{plan.index:02d}-{plan.spec.name}.{plan.attempt}/{step}"
