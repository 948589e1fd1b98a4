"""Rollouts that rounds took to learn, and what runs beside the campaign reached: alone, or all at once.

The curve of a round is the mean reward of its new prompts, step by step, over the completions that its
steps had sampled by then, replay included. Every campaign that samples has it without a measurement of its
own; it is on policy, on the round's prompts and at its temperature.

N80 of a round is the number of rollouts until its curve reaches 80% of the best that it reaches. Where a
campaign of ``references.alone`` has the round, the best of that curve counts for both, so that a round
which earlier ones hold back does not look quick.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from align.config.store import StoreSettings
from align.gate.evidence import Evidence, stored_evidence
from align.gate.forgetting import rollouts_to_reach, sample_efficiency
from align.store.changes.stored_config import config_in_store
from align.store.store import begun_ledger

WINDOW = 5
"""Steps that a point of a curve is the mean of: the reward of one step is too noisy to say when a level was
reached."""
SOURCES = ("new", "past", "general")
"""Kinds of prompts whose completions are counted."""

Curve = Sequence[tuple[float, float]]
"""Completions sampled so far, and the score then; in order."""


def learning_curve(steps: Iterable[Mapping[str, float]], window: int = WINDOW) -> Curve:
    """Return the completions so far after each step, with the mean reward of the last steps.

    Points begin with the first full window. A step without a reward adds its completions alone; rounds that
    sample nothing have no points.

    >>> steps = [{"rollouts/new": 8, "reward/mean": value} for value in (0.0, 0.5, 1.0)]
    >>> learning_curve(steps, window=2)
    [(16.0, 0.25), (24.0, 0.75)]
    """
    rollouts, rewards, curve = 0.0, [], []
    for step in steps:
        rollouts += math.fsum(step.get(f"rollouts/{source}", 0.0) for source in SOURCES)
        if "reward/mean" not in step:
            continue
        rewards.append(step["reward/mean"])
        if len(rewards) >= window and rollouts > 0:
            curve.append((rollouts, math.fsum(rewards[-window:]) / window))
    return curve


def curves_of(evidence: Evidence, window: Container[int] | None = None) -> dict[str, Curve]:
    """Return the curve of every accepted round in order; a round without rewards has none.

    Args:
        window: places in the ledger of the rounds whose steps are read; None: all.
    """
    paths, accepted = evidence.store.paths, evidence.accepted("policy")
    curves = {
        record.name: learning_curve(paths.round(record.index, record.name).steps().values())
        for record in evidence.committed()
        if record.name in accepted and (window is None or record.index in window)
    }
    return {name: curve for name, curve in curves.items() if curve}


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Curves of a campaign's rounds, the parts of composed suites, and what its references reached."""

    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Curve of each accepted round."""
    alone_curves: Mapping[str, Curve] = field(default_factory=dict)
    """Curve of each round that a reference learnt from the base."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """Score on each such round's suite after it."""
    joint: Mapping[str, float] = field(default_factory=dict)
    """Scores of the joint run by suite."""
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The two rounds whose skills a suite composes, by suite."""
    missing: tuple[str, ...] = ()
    """Stores among the references that hold no campaign to be read."""

    def rollouts(self, tasks: Iterable[str], share: float) -> float | None:
        """Return the mean number of rollouts until a round reached a share of its best reward.

        A round that did not get there counts with all its rollouts. Rounds whose best is not above 0 are
        left out: a share of it would say nothing. None if no round is left.
        """
        costs = []
        for curve, reference in self._referenced(tasks):
            reached = rollouts_to_reach(curve, reference, share)
            costs.append(curve[-1][0] if reached is None else reached)
        return math.fsum(costs) / len(costs) if costs else None

    def efficiency(self, tasks: Iterable[str], share: float) -> float | None:
        """Return the mean over rounds of N in the sequence over N alone; above 1 is lost plasticity.

        Rounds that did not get there in one of the two are left out.
        """
        ratios = [
            ratio
            for task in tasks
            if (alone := self.alone_curves.get(task)) and (reference := best(alone)) > 0
            if (ratio := sample_efficiency(self.curves.get(task, ()), alone, reference, share))
        ]
        return math.fsum(ratios) / len(ratios) if ratios else None

    def _referenced(self, tasks: Iterable[str]) -> Iterable[tuple[Curve, float]]:
        for task in tasks:
            if curve := self.curves.get(task):
                reference = best(self.alone_curves.get(task) or curve)
                if reference > 0:
                    yield curve, reference


def best(curve: Curve) -> float:
    """Return the highest score of a curve."""
    return max(score for _, score in curve)


def learning_of(evidence: Evidence, window: Container[int] | None = None) -> Learning:
    """Read the curves of a campaign, and the curves and scores of its references.

    Args:
        window: places in the ledger of the rounds whose curves are read; None: all.
    """
    references, missing = evidence.config.references, []
    alone: dict[str, float] = {}
    alone_curves: dict[str, Curve] = {}
    joint: Mapping[str, float] = {}
    for store in (*references.alone, *filter(None, [references.joint])):
        other = _evidence_in(store)
        if other is None:
            missing.append(store)
        elif store == references.joint:
            joint = other.matrix().final
        else:
            learnt = _learnt_from_base(other)
            matrix, curves = other.matrix(), curves_of(other)
            alone |= {n: scores[n] for n in learnt if n in (scores := matrix.scores_after(n))}
            alone_curves |= {name: curves[name] for name in learnt if name in curves}
    return Learning(
        curves=curves_of(evidence, window),
        alone_curves=alone_curves,
        alone=alone,
        joint=joint,
        parts={s.name: s.composes for s in evidence.config.suites if s.composes is not None},
        missing=tuple(missing),
    )


def _evidence_in(store: str) -> Evidence | None:
    """Return the evidence in another campaign's store; None if it holds no campaign that can be read."""
    try:
        config = config_in_store(StoreSettings(name="unknown", store=store, store_options={}))
    except ValidationError:
        return None
    return None if config is None or begun_ledger(config) is None else stored_evidence(config)


def _learnt_from_base(evidence: Evidence) -> list[str]:
    """Return the accepted rounds that began at the campaign's base."""
    accepted = evidence.accepted("policy")
    return [
        r.name for r in evidence.committed() if r.name in accepted and r.parent == evidence.base
    ]
