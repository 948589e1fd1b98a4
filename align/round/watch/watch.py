"""Watch over one candidate for a policy that games its reward: gold rewards, detectors and canaries.

Nothing here changes the training. Gold rewards score the step's own samples beside the rubric; detectors
(`align.round.watch.detectors`) read every step's metrics and warn when they first speak; canaries
(`rewards.trial.canaries`) are put before rewards that ask a model, before the first step and after the
last. Signals that the campaign file lets reject become `WatchRecord.objections`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from align.data.ngrams import ngram_metrics, shares_of_one_answer
from align.round.reward_models import resolved
from align.round.times.clock import phase
from align.round.watch.detectors import READ, Signal, detect, first_signals
from align.round.watch.record import CanaryRecord, WatchRecord
from rewards.rubric import Rubric, build_rubric
from rewards.trial.canaries import asks_a_model, try_canaries
from rollouts.collect import collect
from rollouts.errors import RunError
from rollouts.prompts import PromptStream
from rollouts.types import RolloutGroup, ScoredGroup

if TYPE_CHECKING:
    from align.round.plan import RoundPlan
    from align.round.session import Session


class RewardFooled(RunError):
    """A reward gives as much for an answer that deserves nothing as for a real one."""


@dataclass(kw_only=True)
class RoundWatch:
    """One candidate's steps, from the first to the last."""

    plan: RoundPlan
    session: Session
    record: WatchRecord = field(default_factory=WatchRecord)
    _gold: Rubric | None = None
    _signals: dict[str, Signal] = field(default_factory=dict)
    _steps: list[dict[str, float]] = field(default_factory=list)
    """Metrics of the steps so far, those that detectors read."""

    @phase("watching")
    def start(self, first: int) -> None:
        """Begin to watch, before step ``first``: the engines hold the weights it begins with.

        Raises:
            RewardFooled: a reward falls for a canary, and the gate does not only observe.
        """
        self._gold = _gold_rubric(self.plan, self.session)
        if first:  # Detectors speak again about the steps of earlier attempts.
            repair = self.plan.origin.label if self.plan.origin else ""
            paths = self.session.store.paths
            earlier = paths.round(self.plan.index, self.plan.spec.name).steps(repair)
            self._steps = [_read({**m, "step": float(n)}) for n, m in earlier.items() if n < first]
            self._hear(first_signals(self._steps, self.plan.spec.hacking).values())
            return
        if self.plan.origin is not None:
            return  # The round has asked already.
        before = self._canaries("before")
        self.record = replace(self.record, before=before)
        refused = [canary for canary in before if canary.refused]
        if refused and self.session.config.gate.mode == "enforce":
            self._save()
            raise RewardFooled(
                refused[0].sentence,
                where=f"rounds.{self.plan.index}.rewards",
                cause="a policy would learn to give that answer",
                remedy="mend the reward, or say that it may with hacking.canaries_allowed",
            )

    @phase("watching")
    def observe(
        self, step: int, scored: Sequence[ScoredGroup], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the metrics of a step with those of the watch; warn when a detector first speaks."""
        new = [s for s in scored if s.group.prompt.source == "new"]
        groups = [s.group for s in new]
        watched = dict(metrics) | ngram_metrics(groups) | shares_of_one_answer(groups)
        watched |= part_shares(new)
        if self._gold is not None and new:
            watched |= gold_metrics(new, self._gold.score(groups))
        self._steps.append(_read({**watched, "step": float(step)}))
        self._hear(detect(self._steps, self.plan.spec.hacking))
        return watched | {f"hacking/{name}": 1.0 for name in self._signals}

    @phase("watching")
    def finish(self) -> tuple[str, ...]:
        """Try the canaries again after the last step, save the record and return its objections."""
        if self._gold is not None:
            self._gold.close()
        after = self._canaries("after")
        self.record = replace(self.record, after=after)
        self._save()
        return self.record.objections

    def _hear(self, signals: Iterable[Signal]) -> None:
        """Warn of what is new, and write it down."""
        fresh = [signal for signal in signals if signal.name not in self._signals]
        for signal in fresh:
            self._signals[signal.name] = signal
            rejects = signal.name in self.plan.spec.hacking.gating
            self.session.observer.note(
                f"{self.plan.spec.name} step {signal.step + 1}: {signal.sentence} "
                f"({signal.name}{', which rejects the round' if rejects else ''})"
            )
        if fresh:
            self._save()

    def _save(self) -> None:
        gating = self.plan.spec.hacking.gating
        signals = tuple(self._signals.values())
        rejecting = [
            f"{s.name} from step {s.step + 1}: {s.sentence}" for s in signals if s.name in gating
        ]
        fooled = [canary.sentence for canary in self.record.after if canary.refused]
        self.record = replace(self.record, signals=signals, objections=(*rejecting, *fooled))
        self.record.save(self.session.run_folder(self.plan).path)

    def _canaries(self, when: str) -> tuple[CanaryRecord, ...]:
        """Put canaries before the round's rewards, beside answers of the weights that the engines hold;
        return those that a reward fell for."""
        doubted = list(self._doubted())
        if not doubted:
            return ()
        groups, settings = self._answers(), self.plan.spec.hacking
        records: list[CanaryRecord] = []
        for rubric in doubted:
            (reward,) = rubric.weights
            records += [
                CanaryRecord(
                    reward=reward,
                    canary=result.name,
                    fooled=result.fooled,
                    prompts=result.prompts,
                    score=result.score if result.score is not None else math.nan,
                    refused=result.fooled > settings.thresholds.canary_share * result.prompts
                    and result.name not in settings.canaries_allowed,
                )
                for result in try_canaries(rubric.score, groups)
                if result.fooled
            ]
        names = tuple(name for rubric in doubted for name in rubric.weights)
        self.record = replace(self.record, canaries_tried=names)
        fooled = sum(record.refused for record in records)
        self.session.observer.note(
            f"{self.plan.spec.name}: canaries {when} the round, before {', '.join(names)}: "
            f"{fooled or 'none'} fallen for"
        )
        return tuple(records)

    def _doubted(self) -> Iterator[Rubric]:
        """Yield a rubric for each reward that canaries are put before; they share the round's workers."""
        choice, rubric = self.plan.spec.hacking.canaries, self.plan.scorer.new
        if choice == "off" or rubric is None:
            return
        known = {
            reward.part or reward.name.rpartition(":")[2]: reward
            for spec in self.session.config.rounds[: self.plan.index + 1]
            for reward in spec.rewards
        }
        for part in rubric.parts:
            spec = known.get(part.name)
            if choice == "on" or (spec and asks_a_model(spec.name, spec.options)):
                yield Rubric((replace(part, weight=1.0, normalise="none", gate=None),))

    def _answers(self) -> list[RolloutGroup]:
        """Sample one answer to each of some prompts of the round."""
        spec, inputs = self.plan.spec, self.session.inputs
        stream = PromptStream(inputs.prompts[spec.name], self.plan.seed)
        prompts = stream.take(spec.hacking.canary_prompts)
        return collect(
            self.session.engine,
            prompts,
            [1] * len(prompts),
            self.session.encoder,
            self.plan.sampling,
            seed=self.plan.seed,
            policy="canaries",
            environments=self.plan.environments,
        )


def gold_metrics(scored: Sequence[ScoredGroup], gold: Sequence[ScoredGroup]) -> dict[str, float]:
    """Compute ``gold/mean`` and the spread of either reward, left out where nothing could be scored.

    Args:
        scored: the groups as the rubric scored them.
        gold: the same groups as the gold reward did.
    """
    statuses = [score.status for group in gold for score in group.scores_G]
    metrics = {"gold/failed_share": fmean(status == "failed" for status in statuses)}
    if values := _values(gold):
        metrics |= {"gold/mean": fmean(values), "gold/std": pstdev(values)}
    if learned := _values(scored):
        metrics["gold/proxy_std"] = pstdev(learned)
    return metrics


def part_shares(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Compute ``reward_share/<part>``, a part's mean absolute term of the reward over that of all parts.

    The result is empty for a rubric with one part of weight, and where all terms are 0.
    """
    totals: dict[str, float] = {}
    for score in (score for group in scored for score in group.scores_G):
        for name, value in score.terms.items():
            if value is not None and score.value is not None:
                term = abs(score.weights.get(name, 0.0) * value)
                totals[name] = totals.get(name, 0.0) + term
    whole = sum(totals.values())
    shares = {name: total / whole for name, total in totals.items()} if whole else {}
    weighed = [name for name, share in shares.items() if share]
    return {f"reward_share/{name}": shares[name] for name in shares} if len(weighed) > 1 else {}


def _values(scored: Sequence[ScoredGroup]) -> list[float]:
    return [s.value for group in scored for s in group.scores_G if s.value is not None]


def _gold_rubric(plan: RoundPlan, session: Session) -> Rubric | None:
    if not plan.spec.gold:
        return None
    models = session.evidence.accepted("reward_model")
    rubric = build_rubric(
        resolved(plan.spec.gold, models, session.folder_of), f"rounds.{plan.index}.gold"
    )
    for line in rubric.isolation_lines():
        session.observer.note(f"{plan.spec.name}: gold {line}")
    return rubric


def _read(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k == "step" or k.startswith(READ)}
