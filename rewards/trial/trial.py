"""A reward tried on answers that are already there, before a GPU is spent on it.

Every group is one call, as in a round, so that its time is the reward's own. The first call also pays for
set-up and is timed apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import quantiles
from typing import Any

from rewards.base import RewardPart, Sample
from rewards.call import PartFailure, PartOutcome
from rewards.isolation.levels import isolation_of
from rewards.isolation.reward import IsolatedReward
from rewards.patience import saying
from rewards.pending import LoopThread, PartCalls
from rewards.registry import find_reward
from rewards.rubric import Rubric, part_isolation
from rewards.trial.canaries import CanaryResult, check_canaries
from rewards.trial.data import groups_of
from rollouts.types import Prompt

BINS = 20
DEADLINE_S = 5.0
"""Seconds for one group, of a reward in a process of its own, if no other deadline is named."""
CANARY_PROMPTS = 8
"""Prompts that canaries are tried on: a judge is paid by the call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """A reward as a campaign would name it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    isolation: str = "auto"
    deadline_s: float | None = None
    """Seconds for one group; None: a few, since a trial is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureClass:
    """Failures of one kind."""

    kind: str
    count: int
    trace: str
    """Traceback of the first failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Scores at a glance."""

    min: float
    p10: float
    median: float
    p90: float
    max: float
    histogram: tuple[int, ...]
    """Counts of `BINS` equal intervals from min to max; one where all scores are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds per sample, of all calls but the first where there are others."""

    first_call_s: float
    """Seconds of the whole first call, set-up included."""
    p50_s: float
    p99_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Results of a trial."""

    reward: str
    isolation: tuple[str, ...]
    """Isolation of the reward, as a run prints it."""
    samples: int
    scored: int
    abstained: int
    failed: int
    distribution: Distribution | None
    """Distribution of the scores; None: nothing was scored."""
    timing: Timing
    failures: tuple[FailureClass, ...]
    groups: int
    """Groups of the asked size (of two or more without one) with at least two scores."""
    zero_variance: int
    """Groups among these whose scores are all equal: they teach nothing."""
    canaries: tuple[CanaryResult, ...]
    """Results of the canaries; empty where there is nothing to compare them with."""
    notes: tuple[str, ...]


def try_reward(
    spec: TrialSpec,
    samples_B: Sequence[Sample],
    group_size: int | None = None,
    threshold: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trial:
    """Score samples, then canaries. The trial ends with a group of which nothing was answered in time.

    Args:
        group_size: of the round that is planned; None: all answers to a prompt are one group.
        threshold: what canaries must stay below; None: the median of the scores.
        say: told while the reward is waited for.

    Raises:
        UserError: the reward cannot be loaded, or the data lacks a column that it needs.
    """
    with saying(f"starting reward {spec.name}", say):
        rubric = Rubric((_part(spec),))
    try:
        rubric.check_columns([sample.prompt for sample in samples_B])
        groups = groups_of(samples_B, group_size)
        asker = _Asker(rubric.parts[0], say)
        answers: list[list[PartOutcome]] = []
        for group in groups:
            answers.append(asker.ask(group))
            if all(isinstance(o, PartFailure) and o.kind == "deadline" for o in answers[-1]):
                break
        left, groups = len(groups) - len(answers), groups[: len(answers)]
        canaries = [] if left else _canaries(asker, groups, answers, threshold)
        trial = _trial(rubric, groups, answers, asker.seconds[: len(groups)], canaries, group_size)
        if not left:
            return trial
        more = "1 more group was" if left == 1 else f"{left} more groups were"
        note = f"{more} not tried: nothing was answered in time; --deadline-s gives a reward longer"
        return replace(trial, notes=(*trial.notes, note))
    finally:
        rubric.close()


def check_reward(spec: TrialSpec, prompts: Sequence[Prompt]) -> None:
    """Raise a `UserError` for a reward that `try_reward` could not be given, before anything is
    sampled."""
    rubric = Rubric((_part(spec),))
    try:
        rubric.check_columns(prompts)
    finally:
        rubric.close()


class _Asker:
    """Asks a part for one group at a time and keeps the clock."""

    def __init__(self, part: RewardPart, say: Callable[[str], None]) -> None:
        self._part, self._loop, self._say = part, LoopThread(), say
        isolation = part_isolation(part)
        limit = "" if isolation.level == "inline" else f" (deadline {isolation.deadline_s:g} s)"
        self._waits = f"waiting for reward {part.name}{limit}"
        self.seconds: list[float] = []

    def ask(self, samples_B: Sequence[Sample]) -> list[PartOutcome]:
        began = time.perf_counter()
        with saying(self._waits, self._say):
            calls = PartCalls((self._part,), samples_B, [0] * len(samples_B), None, self._loop)
            outcomes = calls.outcomes()[self._part.name]
        self.seconds.append(time.perf_counter() - began)
        return outcomes

    def scores(self, samples_B: Sequence[Sample]) -> list[float | None]:
        """Score samples [B]; a failure counts as no score."""
        return [None if isinstance(o, PartFailure) else o for o in self.ask(samples_B)]


def _part(spec: TrialSpec) -> RewardPart:
    reward = find_reward(spec.name)
    isolation = isolation_of(spec, reward.level_with(spec.options))
    inline = isolation.level == "inline"
    if not inline and spec.deadline_s is None:
        isolation = replace(isolation, deadline_s=DEADLINE_S)
    return RewardPart(
        name=spec.name.rpartition(":")[2],
        weight=1.0,
        function=reward.load(spec.options)
        if inline
        else IsolatedReward(spec.name, spec.options, isolation),
        options=dict(spec.options),
    )


def _trial(
    rubric: Rubric,
    groups: Sequence[Sequence[Sample]],
    answers: Sequence[Sequence[PartOutcome]],
    seconds: Sequence[float],
    canaries: Sequence[CanaryResult],
    group_size: int | None,
) -> Trial:
    outcomes = [outcome for group in answers for outcome in group]
    scores = _scores(outcomes)
    failures = [outcome for outcome in outcomes if isinstance(outcome, PartFailure)]
    comparable = [
        its
        for group in answers
        if len(group) == (group_size or len(group)) and len(its := _scores(group)) > 1
    ]
    later = list(zip(seconds, groups, strict=True))[1 if len(seconds) > 1 else 0 :]
    each_s = [spent / len(group) for spent, group in later for _ in group]
    part = rubric.parts[0]
    lacks_ids = not any(sample.completion.token_ids for group in groups for sample in group)
    notes: tuple[str, ...] = ()
    if lacks_ids and "completion_ids" in part.takes.names:
        notes = ("it is shown no token ids: give them in a column completion_ids if it reads them",)
    return Trial(
        reward=part.name,
        isolation=tuple(rubric.isolation_lines()),
        samples=len(outcomes),
        scored=len(scores),
        abstained=sum(outcome is None for outcome in outcomes),
        failed=len(failures),
        distribution=distribution(scores),
        timing=Timing(
            first_call_s=seconds[0], p50_s=percentile(each_s, 50), p99_s=percentile(each_s, 99)
        ),
        failures=tuple(failure_classes(failures)),
        groups=len(comparable),
        zero_variance=sum(min(its) == max(its) for its in comparable),
        canaries=tuple(canaries),
        notes=notes,
    )


def _canaries(
    asker: _Asker,
    groups: Sequence[Sequence[Sample]],
    answers: Sequence[Sequence[PartOutcome]],
    threshold: float | None,
) -> list[CanaryResult]:
    """Try the suite on the first prompts, each with its best answer."""
    best: dict[str, tuple[Prompt, str | None, float]] = {}
    for group, outcomes in zip(groups, answers, strict=True):
        for sample, outcome in zip(group, outcomes, strict=True):
            prompt, text = sample.prompt, sample.completion.text
            best_so_far = best.setdefault(prompt.id, (prompt, None, -math.inf))
            if isinstance(outcome, float) and outcome > best_so_far[2]:
                best[prompt.id] = (prompt, text, outcome)
    real = _scores([outcome for group in answers for outcome in group])
    prompts = [(prompt, text) for prompt, text, _ in best.values()]
    return check_canaries(asker.scores, prompts[:CANARY_PROMPTS], threshold, real) if real else []


def distribution(scores: Sequence[float]) -> Distribution | None:
    """Summarise scores by percentiles (linear between scores) and a histogram."""
    if not scores:
        return None
    low, high = min(scores), max(scores)
    counts = [0] * (BINS if high > low else 1)
    for score in scores:
        bin_index = int((score - low) / (high - low) * BINS) if high > low else 0
        counts[min(bin_index, len(counts) - 1)] += 1
    return Distribution(
        min=low,
        p10=percentile(scores, 10),
        median=percentile(scores, 50),
        p90=percentile(scores, 90),
        max=high,
        histogram=tuple(counts),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, linear between the values; of one value, that value."""
    if len(values) == 1:
        return float(values[0])
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def failure_classes(failures: Sequence[PartFailure]) -> list[FailureClass]:
    """Group failures by kind, the most frequent first."""
    kinds: dict[str, list[PartFailure]] = {}
    for failure in failures:
        kinds.setdefault(failure.kind, []).append(failure)
    classes = [
        FailureClass(kind=kind, count=len(its), trace=its[0].trace) for kind, its in kinds.items()
    ]
    return sorted(classes, key=lambda failure_class: -failure_class.count)


def _scores(outcomes: Sequence[PartOutcome]) -> list[float]:
    return [outcome for outcome in outcomes if isinstance(outcome, float)]
