"""Who watches a round for a policy that games its reward: gold rewards, detectors and canaries.

Nothing here changes what is learned. Gold rewards score the step's own samples beside the rubric;
detectors (`align.round.watch.detectors`) read every step's metrics and warn when they first speak; canaries
(`rewards.trial.canaries`) are put before rewards that ask a model, before the first step and after the
last.
What the campaign file asked for is held against the candidate: `WatchRecord.objections`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

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
from rollouts.types import RolloutGroup, Sampling, ScoredGroup

if TYPE_CHECKING:
    from align.config.campaign import RewardConfig
    from align.round.plan import RoundPlan
    from align.round.session import Parts


class RewardFooled(RunError):
    """A reward gives as much for an answer that deserves nothing as for a real one."""


@dataclass(kw_only=True)
class RoundWatch:
    """One candidate's steps, from the first to the last."""

    plan: RoundPlan
    parts: Parts
    record: WatchRecord = field(default_factory=WatchRecord)
    _gold: Rubric | None = None
    _signals: dict[str, Signal] = field(default_factory=dict)
    _steps: list[dict[str, float]] = field(default_factory=list)
    """What detectors read of the steps so far."""

    @phase("watching")
    def start(self, first: int) -> None:
        """Begin to watch, before step ``first``: the engines hold the weights it begins with.

        Raises:
            RewardFooled: a reward falls for a canary, and the gate does not only observe.
        """
        self._gold = _gold_rubric(self.plan, self.parts)
        if first:
            self._remember(first)
            return
        if self.plan.origin is not None:
            return  # The round has asked already.
        before = self._canaries("before")
        self.record = replace(self.record, before=before)
        refused = [one for one in self.record.before if one.refused]
        if refused and self.parts.config.gate.mode == "enforce":
            self._save()
            raise RewardFooled(
                refused[0].sentence,
                where=f"rounds.{self.plan.index}.rewards",
                cause="a policy would learn to give that answer",
                remedy="mend the reward, or say that it may with hacking.canaries_allowed",
            )

    @phase("watching")
    def seen(
        self, step: int, scored: Sequence[ScoredGroup], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The metrics of a step with those of the watch; warns when a detector first speaks."""
        new = [s for s in scored if s.group.prompt.source == "new"]
        groups = [s.group for s in new]
        found = dict(metrics) | ngram_metrics(groups) | shares_of_one_answer(groups)
        found |= part_shares(new)
        if self._gold is not None and new:
            found |= gold_metrics(new, self._gold.score([s.group for s in new]))
        self._steps.append(_read({**found, "step": float(step)}))
        self._hear(detect(self._steps, self.plan.spec.hacking))
        return found | {f"hacking/{name}": 1.0 for name in self._signals}

    @phase("watching")
    def finish(self) -> tuple[str, ...]:
        """After the last step: canaries again, and the record of it all. What is held against the round."""
        if self._gold is not None:
            self._gold.close()
        after = self._canaries("after")
        self.record = replace(self.record, after=after)
        self._save()
        return self.record.objections

    def _remember(self, first: int) -> None:
        """The steps before ``first``, of earlier attempts: their detectors speak again."""
        repair = self.plan.origin.label if self.plan.origin else ""
        paths = self.parts.evidence.store.paths
        earlier = paths.round(self.plan.index, self.plan.spec.name).steps(repair)
        self._steps = [_read({**m, "step": float(n)}) for n, m in earlier.items() if n < first]
        self._hear(first_signals(self._steps, self.plan.spec.hacking).values())

    def _hear(self, signals: Iterable[Signal]) -> None:
        """Warn of what is new, and write it down."""
        fresh = [signal for signal in signals if signal.name not in self._signals]
        for signal in fresh:
            self._signals[signal.name] = signal
            rejects = signal.name in self.plan.spec.hacking.gating
            self.parts.observer.note(
                f"{self.plan.spec.name} step {signal.step + 1}: {signal.sentence} "
                f"({signal.name}{', which rejects the round' if rejects else ''})"
            )
        if fresh:
            self._save()

    def _save(self) -> None:
        gating = self.plan.spec.hacking.gating
        signals = tuple(self._signals.values())
        said = [
            f"{s.name} from step {s.step + 1}: {s.sentence}" for s in signals if s.name in gating
        ]
        fooled = [one.sentence for one in self.record.after if one.refused]
        self.record = replace(self.record, signals=signals, objections=(*said, *fooled))
        self.record.save(self.parts.run_folder(self.plan).path)

    def _canaries(self, when: str) -> tuple[CanaryRecord, ...]:
        """What the round's rewards fall for, beside answers of the weights that the engines hold."""
        doubted = list(self._doubted())
        if not doubted:
            return ()
        groups, found = self._answers(), []
        for rubric in doubted:
            (name,) = rubric.weights
            results = try_canaries(rubric.score, groups)
            settings = self.plan.spec.hacking
            found += [
                CanaryRecord(
                    reward=name,
                    canary=one.name,
                    fooled=one.fooled,
                    prompts=one.prompts,
                    score=one.score if one.score is not None else math.nan,
                    refused=one.fooled > settings.canary_share * one.prompts
                    and one.name not in settings.canaries_allowed,
                )
                for one in results
                if one.fooled
            ]
        names = tuple(name for rubric in doubted for name in rubric.weights)
        self.record = replace(self.record, canaries_tried=names)
        fooled = sum(one.refused for one in found)
        self.parts.observer.note(
            f"{self.plan.spec.name}: canaries {when} the round, before {', '.join(names)}: "
            f"{fooled or 'none'} fallen for"
        )
        return tuple(found)

    def _doubted(self) -> Iterator[Rubric]:
        """A rubric for each reward that canaries are put before. They share the round's workers."""
        choice, rubric = self.plan.spec.hacking.canaries, self.plan.scorer.new
        if choice == "off" or rubric is None:
            return
        known = _specs_by_part(self.parts.config.rounds[: self.plan.index + 1])
        for part in rubric.parts:
            spec = known.get(part.name)
            if choice == "on" or (spec and asks_a_model(spec.name, spec.options)):
                yield Rubric((replace(part, weight=1.0, normalise="none", gate=None),))

    def _answers(self) -> list[RolloutGroup]:
        """One answer to each of some prompts of the round."""
        spec, inputs = self.plan.spec, self.parts.inputs
        prompts = PromptStream(inputs.prompts[spec.name], self.plan.seed)
        asked = prompts.take(spec.hacking.canary_prompts)
        return collect(
            self.parts.engine,
            asked,
            [1] * len(asked),
            inputs.encoder,
            Sampling(max_tokens=spec.sampling.max_tokens, temperature=spec.sampling.temperature),
            seed=self.plan.seed,
            policy="canaries",
        )


def gold_metrics(scored: Sequence[ScoredGroup], gold: Sequence[ScoredGroup]) -> dict[str, float]:
    """``gold/mean`` and the spread of either reward, left out where nothing could be scored.

    Args:
        scored: the groups as the rubric scored them.
        gold: the same groups as the gold reward did.
    """
    statuses = [score.status for group in gold for score in group.scores_G]
    found = {"gold/failed_share": fmean(status == "failed" for status in statuses)}
    if values := _values(gold):
        found |= {"gold/mean": fmean(values), "gold/std": pstdev(values)}
    if learned := _values(scored):
        found["gold/proxy_std"] = pstdev(learned)
    return found


def part_shares(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """``reward_share/<part>``: its mean absolute term of the reward over that of all parts.

    None of a rubric that has one part of weight, and none where all terms are 0.
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


def _gold_rubric(plan: RoundPlan, parts: Parts) -> Rubric | None:
    if not plan.spec.gold:
        return None
    models = parts.evidence.accepted("reward_model")
    rubric = build_rubric(
        resolved(plan.spec.gold, models, parts.folder_of), f"rounds.{plan.index}.gold"
    )
    for line in rubric.isolation_lines():
        parts.observer.note(f"{plan.spec.name}: gold {line}")
    return rubric


def _specs_by_part(rounds: Sequence[Any]) -> dict[str, RewardConfig]:
    """Configuration of every part, by its name in the rubric."""
    rewards = [reward for spec in rounds for reward in spec.rewards]
    return {reward.part or reward.name.rpartition(":")[2]: reward for reward in rewards}


def _read(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k == "step" or k.startswith(READ)}
