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
from rollouts.collect import PendingRollouts, Sampler, begin
from rollouts.engines.protocol import InFlightEngine, ReplacingEngine, SyncReport
from rollouts.engines.recorded import Recorded, from_json, to_json
from rollouts.types import Sampling, ScoredGroup

if TYPE_CHECKING:
    from align.round.plan import RoundPlan
    from align.round.session import Parts


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingStep:
    """One step's rollouts under way."""

    draw: Draw
    pending: PendingRollouts
    held: int
    """Learner steps behind the weights that sample them."""


@dataclass(kw_only=True)
class StepSampler:
    """Rollouts of one round, step after step."""

    plan: RoundPlan
    parts: Parts
    version: Callable[[int], str]
    """Name of the weights after so many learner steps."""
    examples: list[Row] = field(default_factory=list)
    """Rows of a file that the step taken last learns from."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step: its staleness in learner steps, groups and engines that were replaced, and
    the seconds it waited for samples and for rewards."""
    _held: int = 0
    """Learner steps behind the weights that the engines hold."""
    _pending: dict[int, PendingStep] = field(default_factory=dict)
    _replaced: int = 0
    """Engines whose replacement has been told."""

    def under_way(self) -> dict[str, Any]:
        """What is sampled ahead, waited for: JSON values for `recall`."""
        told = {}
        for step, asked in self._pending.items():
            results = asked.pending.ticket()
            pending = replace(asked.pending, ticket=partial(list, results))
            self._pending[step] = replace(asked, pending=pending)
            told[str(step)] = {"held": asked.held, "results": to_json(results)}
        return told

    def recall(self, told: Mapping[str, Any]) -> None:
        """Learn from what an earlier attempt had sampled ahead, and do not ask again.

        With ``max_staleness`` above 1 engines may have held older weights than those they get now: the
        steps after these are fresher than they would have been.
        """
        for step, one in told.items():
            recorded = Recorded(from_json(one["results"]))
            self._pending[int(step)] = self._ask(int(step), engine=recorded, held=one["held"])

    @phase("weight sync")
    def start(self, step: int) -> None:
        """Hand the learner's weights to the engines before the first step."""
        self._held, self._replaced = step, len(self._replacements())
        self.parts.engine.sync(self.parts.learner.weights(self.version(step)))

    @phase("sampling")
    def take(self, step: int) -> list[ScoredGroup]:
        """Scored groups of step ``step``; the next step's are begun where they may be stale."""
        asked = self._pending.pop(step) if step in self._pending else self._ask(step)
        self.examples = asked.draw.examples
        self.metrics = {"staleness/steps": float(step - asked.held)}
        scoring = self._begin_scoring(asked)
        if self.plan.spec.sampling.max_staleness and step + 1 < self.plan.spec.steps:
            self._pending[step + 1] = self._ask(step + 1)
        scored = self._refilled(self._result(scoring), step)
        if self.plan.spec.sampling.in_flight:
            self.metrics["staleness/tokens_fresher"] = fresher_share(scored)
        return scored

    @phase("weight sync")
    def sync(self, step: int) -> SyncReport | None:
        """Hand over the weights after ``step`` learner steps; None where the engines may keep theirs."""
        report = self._hand_over(step)
        self._tell_replacements()
        return report

    def _hand_over(self, step: int) -> SyncReport | None:
        behind = step - self._held
        if behind < self.plan.spec.sampling.max_staleness and step < self.plan.spec.steps:
            return None
        self._held = step
        engine, weights = self.parts.engine, self.parts.learner.weights(self.version(step))
        # An engine that samples within `submit` has nothing under way.
        if (
            self._pending
            and self.plan.spec.sampling.in_flight
            and isinstance(engine, InFlightEngine)
        ):
            return engine.deposit(weights)
        return engine.sync(weights)

    def _replacements(self) -> Sequence[str]:
        """Why engines were replaced so far; empty for an engine that stands alone."""
        engine = self.parts.engine
        return engine.replaced if isinstance(engine, ReplacingEngine) else ()

    def _tell_replacements(self) -> None:
        """Count the engines that were replaced in this step, and say why."""
        told = self._replacements()
        for reason in told[self._replaced :]:
            self.parts.observer.note(f"{self.plan.spec.name}: replaced {reason}")
        self.metrics["engines/replaced"] = float(len(told) - self._replaced)
        self._replaced = len(told)

    def _ask(
        self,
        step: int,
        turn: int = 0,
        count: int = 0,
        *,
        engine: Sampler | None = None,
        held: int | None = None,
    ) -> PendingStep:
        held = self._held if held is None else held
        mixture = self.plan.mixture
        draw = mixture.draw(step) if turn == 0 else mixture.spare(step, turn, count)
        pending = begin(
            engine or self.parts.engine,
            draw.prompts,
            draw.group_sizes,
            self.parts.inputs.encoder,
            self.sampling,
            seed=self.plan.seed + step + turn * self.plan.spec.steps,
            policy=self.version(held),
        )
        return PendingStep(draw=draw, pending=pending, held=held)

    def _begin_scoring(self, asked: PendingStep, *, replacements: bool = False) -> Scoring:
        """Hand groups over to the rewards as the engines finish them."""
        scoring = self.plan.scorer.open(replacements=replacements)
        with self._timed("time/sampling_s"):
            for groups in asked.pending.arriving():
                scoring.add(groups)
        scoring.add(dict(enumerate(asked.draw.stored, start=len(asked.draw.prompts))))
        return scoring

    @phase("scoring")
    def _result(self, scoring: Scoring) -> list[ScoredGroup]:
        """Wait for what the rewards have not answered yet."""
        with self._timed("time/scoring_s"):
            return scoring.result()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the step waits in the block to one of its metrics."""
        began = perf_counter()
        yield
        self.metrics[name] = self.metrics.get(name, 0.0) + perf_counter() - began

    @property
    def held(self) -> str:
        """Version of the weights that the engines hold."""
        return self.version(self._held)

    @property
    def sampling(self) -> Sampling:
        chosen = self.plan.spec.sampling
        return Sampling(max_tokens=chosen.max_tokens, temperature=chosen.temperature)

    def _refilled(self, scored: list[ScoredGroup], step: int) -> list[ScoredGroup]:
        """With groups of fresh prompts in place of broken ones, and of those that teach nothing."""
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
        self.metrics |= counts
        return scored

    def _is_broken(self, scored: ScoredGroup) -> bool:
        """Too few completions were scored to compare them; rewards or engines failed on the rest."""
        failed = any(score.status == "failed" for score in scored.scores_G)
        usable = sum(score.status == "scored" for score in scored.scores_G)
        return failed and usable < min(2, len(scored.scores_G))


def fresher_share(scored: Iterable[ScoredGroup]) -> float:
    """Share of the sampled tokens whose weights came after those that their group was asked of."""
    tokens = {True: 0, False: 0}
    for group in (s.group for s in scored):
        for span in (span for c in group.completions_G for span in c.weight_versions):
            tokens[span.version != group.policy] += span.end - span.start
    return tokens[True] / max(sum(tokens.values()), 1)


def _new(scored: list[ScoredGroup]) -> list[int]:
    return [i for i, s in enumerate(scored) if s.group.prompt.source == "new"]
