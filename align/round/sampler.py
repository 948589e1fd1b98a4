"""The scored rollouts of every step, sampled in order and, where allowed, ahead of the learner.

With ``max_staleness: 0`` a step's samples are drawn from the weights it begins with. With 1 the engines
sample step ``n + 1`` while the learner learns from step ``n``: samples lag one optimizer step behind,
which importance weights correct. With ``k`` the engines also keep their weights for ``k`` steps.
``in_flight`` hands weights to engines that are still sampling: what they sample from then on is of the
newer weights, token by token (PipelineRL, Piche et al. 2025, arXiv 2509.19128).

Groups are scored as they are finished, while others are still sampled. One of which fewer than two
completions could be scored is repaired: a fresh prompt takes its place. So do fresh prompts for groups
that an algorithm finds uninformative, all rewards equal, say (dynamic sampling, Yu et al. 2025, arXiv
2503.14476). Both a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from align.algorithms.rows import Row
from align.data.mixture import Draw
from align.data.scorer import Scoring
from align.round.times.clock import phase
from rewards.patience import saying
from rollouts.collect import PendingRollouts, Sampler, begin
from rollouts.engines.protocol import (
    InFlightEngine,
    ReplacingEngine,
    RolloutEngine,
    SyncReport,
    WeightUpdate,
)
from rollouts.engines.recorded import Recorded, from_json, to_json
from rollouts.episodes.figures import episode_metrics
from rollouts.machine.silence import SILENCE_S
from rollouts.prompts import PromptEncoder
from rollouts.types import ScoredGroup, WeightVersion

if TYPE_CHECKING:
    from align.round.plan import RoundPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Everything that a learner step is taken on, and what it took to get it."""

    scored: Sequence[ScoredGroup]
    examples: Sequence[Row]
    """Rows of a file that the step learns from."""
    rehearsal: Sequence[Row]
    """Replayed answers and texts that the step keeps likely."""
    metrics: Mapping[str, float]
    """Staleness in learner steps, groups that were replaced, and the seconds that the step waited for
    samples and for rewards."""
    version: WeightVersion
    """Version of the weights that the step's prompts were asked of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingStep:
    """One step's rollouts under way."""

    draw: Draw
    pending: PendingRollouts
    engine_step: int
    """Learner steps behind the weights that sample them."""


@dataclass(kw_only=True)
class StepSampler:
    """Rollouts of one round, step after step."""

    plan: RoundPlan
    engine: RolloutEngine
    weights: Callable[[WeightVersion], WeightUpdate]
    """Gives the learner's weights for the engines, under a version."""
    encoder: PromptEncoder
    note: Callable[[str], None]
    """Takes a line for a person."""
    silence_s: float = SILENCE_S
    """Seconds of a wait for rewards that need no line."""
    _engine_step: int = 0
    """Learner steps behind the weights that the engines hold."""
    _pending: dict[int, PendingStep] = field(default_factory=dict)
    _metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the step that is being taken."""
    _num_replaced: int = 0
    """Number of engine replacements already reported."""

    @property
    def engine_version(self) -> WeightVersion:
        """Version of the weights that the engines hold."""
        return self.plan.version(self._engine_step)

    def under_way(self) -> dict[str, Any]:
        """Wait for what is sampled ahead; return it as JSON values for `recall`."""
        sampled = {}
        for step, pending_step in self._pending.items():
            results = pending_step.pending.ticket()
            pending = replace(pending_step.pending, ticket=partial(list, results))
            self._pending[step] = replace(pending_step, pending=pending)
            sampled[str(step)] = {"held": pending_step.engine_step, "results": to_json(results)}
        return sampled

    def close(self) -> None:
        """Give up what is sampled ahead; its episodes would go on beside whatever comes next."""
        for pending_step in self._pending.values():
            pending_step.pending.stop()
        self._pending.clear()

    def recall(self, sampled: Mapping[str, Any]) -> None:
        """Learn from what an earlier attempt had sampled ahead, and do not ask again.

        With ``max_staleness`` above 1 engines may have held older weights than those they get now: the
        steps after these are fresher than they would have been.
        """
        for step, entry in sampled.items():
            recorded = Recorded(from_json(entry["results"]))
            self._pending[int(step)] = self._ask(
                int(step), engine=recorded, engine_step=entry["held"]
            )

    @phase("weight sync")
    def start(self, step: int) -> None:
        """Hand the learner's weights to the engines before the first step."""
        self._engine_step, self._num_replaced = step, len(self._replacements())
        self.engine.sync(self.weights(self.engine_version))

    @phase("sampling")
    def take(self, step: int) -> Step:
        """Wait for the scored groups of a step; those of the next are begun where they may be stale."""
        self._metrics = {}
        asked_before = self._pending.pop(step, None)
        pending = self._ask(step) if asked_before is None else asked_before
        self._metrics["staleness/steps"] = float(step - pending.engine_step)
        scoring = self._begin_scoring(pending)
        if self.plan.spec.sampling.max_staleness and step + 1 < self.plan.spec.steps:
            self._pending[step + 1] = self._ask(step + 1)
        scored = self._refilled(self._result(scoring), step)
        self._metrics |= episode_metrics(s.group for s in scored)
        if self.plan.spec.sampling.in_flight:
            self._metrics["staleness/tokens_fresher"] = fresher_share(scored)
        return Step(
            scored=scored,
            examples=pending.draw.examples,
            rehearsal=pending.draw.rehearsal,
            metrics=self._metrics,
            version=self.plan.version(pending.engine_step),
        )

    @phase("weight sync")
    def sync(self, step: int) -> dict[str, float]:
        """Hand over the weights after ``step`` learner steps, unless the engines may keep theirs.

        Returns:
            Seconds that it took, and engines that were replaced since the last time.
        """
        report = self._hand_over(step)
        reasons = self._replacements()
        num_new = len(reasons) - self._num_replaced
        for reason in reasons[self._num_replaced :]:
            self.note(f"{self.plan.spec.name}: replaced {reason}")
        self._num_replaced = len(reasons)
        return {
            "sync/seconds": report.seconds if report else 0.0,
            "engines/replaced": float(num_new),
        }

    def _hand_over(self, step: int) -> SyncReport | None:
        """Give the engines the newest weights; None if they may keep theirs."""
        sampling = self.plan.spec.sampling
        if step - self._engine_step < sampling.max_staleness and step < self.plan.spec.steps:
            return None
        self._engine_step = step
        engine, weights = self.engine, self.weights(self.engine_version)
        # An engine that samples within `submit` has nothing under way.
        if self._pending and sampling.in_flight and isinstance(engine, InFlightEngine):
            return engine.deposit(weights)
        for pending_step in self._pending.values():
            pending_step.pending.settle()
        return engine.sync(weights)

    def _replacements(self) -> Sequence[str]:
        """Return why engines were replaced so far; empty for an engine that stands alone."""
        return self.engine.replaced if isinstance(self.engine, ReplacingEngine) else ()

    def _ask(
        self,
        step: int,
        turn: int = 0,
        count: int = 0,
        *,
        engine: Sampler | None = None,
        engine_step: int | None = None,
    ) -> PendingStep:
        """Ask for the completions of a step.

        Args:
            turn: 0 for the step's own prompts; above it ``count`` prompts that replace some of them.
            engine: asked instead of the round's.
            engine_step: learner steps behind the weights that ``engine`` holds; None: as the round's.
        """
        engine_step = self._engine_step if engine_step is None else engine_step
        mixture = self.plan.mixture
        draw = mixture.draw(step) if turn == 0 else mixture.spare(step, turn, count)
        with self._timed("time/sampling_s"):  # An engine in this process samples within the call.
            pending = begin(
                engine or self.engine,
                draw.prompts,
                draw.group_sizes,
                self.encoder,
                self.plan.sampling,
                seed=self.plan.seed + step + turn * self.plan.spec.steps,
                policy=self.plan.version(engine_step),
                environments=self.plan.environments,
            )
        return PendingStep(draw=draw, pending=pending, engine_step=engine_step)

    def _begin_scoring(self, step: PendingStep, *, replacements: bool = False) -> Scoring:
        """Hand groups over to the rewards as the engines finish them."""
        scoring = self.plan.scorer.open(replacements=replacements)
        with self._timed("time/sampling_s"):
            for groups in step.pending.arriving():
                scoring.add(groups)
        scoring.add(dict(enumerate(step.draw.stored, start=len(step.draw.prompts))))
        return scoring

    @phase("scoring")
    def _result(self, scoring: Scoring) -> list[ScoredGroup]:
        """Wait for what the rewards have not answered yet."""
        waited_for = f"{self.plan.spec.name}: waiting for rewards ({self.plan.scorer.part_names})"
        with self._timed("time/scoring_s"), saying(waited_for, self.note, self.silence_s):
            return scoring.result()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the step waits in the block to one of its metrics."""
        began = perf_counter()
        yield
        self._metrics[name] = self._metrics.get(name, 0.0) + perf_counter() - began

    def _refilled(self, scored: list[ScoredGroup], step: int) -> list[ScoredGroup]:
        """Replace broken groups, and those that teach nothing, by groups of fresh prompts."""
        algorithm, repairs = self.plan.spec.algorithm, self.plan.spec.sampling.repairs
        counts = {"groups/repaired": 0.0, "groups/resampled": 0.0}
        for turn in range(1, max(algorithm.resamples, repairs) + 1):
            broken = [i for i in _new(scored) if turn <= repairs and self._is_broken(scored[i])]
            poor = [
                i
                for i in _new(scored)
                if i not in broken
                and turn <= algorithm.resamples
                and not algorithm.informative(scored[i])
            ]
            if not broken and not poor:
                break
            count = self.plan.spec.sampling.prompts_per_step if poor else len(broken)
            spares = self._begin_scoring(self._ask(step, turn, count), replacements=True)
            rescored = self._result(spares)
            spare = [
                s
                for s in rescored
                if not self._is_broken(s) and (not poor or algorithm.informative(s))
            ]
            for i, better in zip([*broken, *poor], spare, strict=False):
                scored[i] = better
                counts["groups/repaired" if i in broken else "groups/resampled"] += 1
        self._metrics |= counts
        return scored

    def _is_broken(self, scored: ScoredGroup) -> bool:
        """Tell if failures of rewards or engines left too few scored completions to compare them."""
        failed = any(score.status == "failed" for score in scored.scores_G)
        usable = sum(score.status == "scored" for score in scored.scores_G)
        return failed and usable < min(2, len(scored.scores_G))


def fresher_share(scored: Iterable[ScoredGroup]) -> float:
    """Return the share of sampled tokens whose weights came after those that their group was asked of."""
    tokens = {True: 0, False: 0}
    for group in (s.group for s in scored):
        for span in (span for c in group.completions_G for span in c.weight_versions):
            tokens[span.version != group.policy] += span.end - span.start
    return tokens[True] / max(sum(tokens.values()), 1)


def _new(scored: Sequence[ScoredGroup]) -> list[int]:
    return [i for i, s in enumerate(scored) if s.group.prompt.source == "new"]
