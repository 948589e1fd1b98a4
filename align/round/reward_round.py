"""One round that makes a reward model: learn from pairs, then ask the gate whether it may reward.

The policy does not move: production stays what it was, and so do the engines. What an accepted round
leaves behind is a snapshot of kind ``reward``, which the rewards of later rounds name as ``round:NAME``.

    examples.at -> learner.update                                                   (every step)
    learner.scores -> snapshots.publish -> measure_pairs -> decide_pairs -> ledger.commit_round (once)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from align.algorithms.rows import Row
from align.data.examples.stream import rows_of
from align.gate.reward_models import decide_pairs, measure_pairs, pair_inputs
from align.gate.suites.kinds.pairs import PairSuite
from align.learner.heads.reward_model import RewardLearner
from align.round.plan import RoundOutcome, RoundPlan
from align.round.round import commit
from align.round.session import Session
from align.round.times.clock import phase
from rollouts.errors import UserError
from rollouts.types import SnapshotId


def run_reward_round(plan: RoundPlan, session: Session) -> RoundOutcome:
    """Train a reward model and put it before the gate.

    Raises:
        UserError: the round has no suite of held-out pairs.
        NonFiniteError: no finite step several times in a row, or rewards that are no numbers.
    """
    suite = own_suite(plan, session)
    learner = train(plan, session)
    with phase("measuring"):
        scores = learner.scores(answers_of(suite))
        learner.calibrate(scores)
    candidate = publish(learner, plan, session)
    session.ledger.enter_gating(plan.index, plan.attempt, candidate)
    session.evidence.save(candidate, measure_pairs(suite, candidate, scores))
    look = session.evidence.looks() + 1
    evidence = session.evidence
    inputs = pair_inputs(suite, candidate, evidence.gate, look, evidence.amended_level(look))
    verdict = decide_pairs(inputs, evidence.locate)
    outcome = RoundOutcome(candidate=candidate, verdict=verdict, look=look)
    commit(plan, session, outcome)
    return outcome


def train(plan: RoundPlan, session: Session) -> RewardLearner:
    """Take the learner steps of a round, each on as many answers as a policy's step would sample."""
    examples, num_pairs = plan.mixture.examples, max(1, plan.spec.sampling.budget // 2)
    assert examples is not None, "the check of the material"
    learner = RewardLearner(
        start_of(plan, session),
        session.inputs.encoder.tokenizer,
        session.config.policy,
        plan.spec,
        num_steps=plan.spec.steps,
        seed=plan.seed,
    )
    for step in range(plan.spec.steps):
        units = examples.at(step * num_pairs, num_pairs)
        with phase("learning"):
            metrics = learner.update(rows_of(units))
        session.log(plan, step, metrics)
    session.keep_times(plan.index, plan.spec.name, plan.attempt)
    return learner


@phase("publishing")
def publish(learner: RewardLearner, plan: RoundPlan, session: Session) -> SnapshotId:
    """Make the model a snapshot, with the tokenizer it reads answers with."""

    def write(folder: Path) -> None:
        learner.save(folder)
        session.inputs.encoder.tokenizer.save_pretrained(folder)

    snapshot = session.store.snapshots.publish(
        write, replace(session.provenance(plan), kind="reward")
    )
    session.ledger.record_snapshot(snapshot)
    return snapshot.id


def start_of(plan: RoundPlan, session: Session) -> Path:
    """Return the parent's folder, or where that is only an adapter the base below it."""
    parent = session.store.snapshots.open(plan.parent)
    return (
        parent.path if parent.kind == "model" else session.store.snapshots.open(session.base).path
    )


def own_suite(plan: RoundPlan, session: Session) -> PairSuite:
    """Return the held-out pairs of the round as a suite."""
    suite = next(s for s in session.inputs.suites if s.target_of == plan.spec.name)
    if not isinstance(suite, PairSuite):
        raise UserError(
            f"round {plan.spec.name!r} trains a reward model, which is measured on held-out pairs",
            where=f"rounds.{plan.index}.suite.prompts",
            remedy="remove suite.prompts, and set data.heldout to the share of pairs to hold out",
        )
    return suite


def answers_of(suite: PairSuite) -> Sequence[Row]:
    """Return the sequences of a suite as rows that teach nothing."""
    return [
        Row(prompt_ids=prompt, completion_ids=completion, advantage=None, source="new")
        for prompt, completion in suite.sequences
    ]
