"""Signs that a policy games its reward, read from a round's metrics while it runs.

Every detector is a pure function over the steps so far, as `metrics.jsonl` holds them, and answers with
one `Signal` or None. A change is the mean of the last ``window`` steps against that of the first ones, in
standard errors where it is called a rise, so that the noise of single steps says nothing. Nothing here
decides: a signal is a sentence for a person and an input for a gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, fmean, linear_regression, variance

from align.config.watch import DetectorName, HackingConfig

Metrics = Mapping[str, float]
"""One learner step, with its number in ``step``."""

PROXY = "reward/mean"
"""The reward that is learned from."""
GOLD = "gold/mean"
"""One that is only watched; without it that detector is silent."""
SPREAD = {PROXY: "gold/proxy_std", GOLD: "gold/std"}
"""Standard deviation of either over single completions of a step."""
KL = "kl/new/"
"""Begins the name of the distance from an anchor, which every step with such an anchor measures."""
DRIFT = "drift/K_new"
"""The meter of the distance from the parent, where there is no such anchor."""
LENGTH = "completions/tokens_mean"
REPEATED = "completions/repeated_ngrams"
DISTINCT = "completions/distinct_ngrams"
SIMILAR = "completions/similar_share"
ENTROPY = "entropy"
SHARE = "reward_share/"
"""Begins the name of a part's share of the reward."""
READ = (PROXY, "gold/", KL, DRIFT, LENGTH, REPEATED, DISTINCT, SIMILAR, ENTROPY, SHARE)
"""Beginnings of the names that detectors read."""
LARGEST = 1e100
"""Beyond it a metric is broken, and its square could not be held."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """One detector that spoke."""

    name: DetectorName
    step: int
    """The last step it has seen."""
    sentence: str
    """Sentence about the signal, for a person."""
    value: float
    threshold: float
    """Threshold that ``value`` has passed."""


Detector = Callable[[Sequence[Metrics], HackingConfig], Signal | None]


def detect(metrics: Sequence[Metrics], settings: HackingConfig | None = None) -> list[Signal]:
    """Run all detectors on the steps so far, in the order of `DETECTORS`."""
    chosen = settings or HackingConfig()
    return [signal for find in DETECTORS.values() if (signal := find(metrics, chosen))]


def first_signals(
    metrics: Sequence[Metrics], settings: HackingConfig | None = None
) -> dict[str, Signal]:
    """Return every signal as it was when its detector first spoke, by name: for the record of a round."""
    first: dict[str, Signal] = {}
    for end in range(1, len(metrics) + 1):
        for signal in detect(metrics[:end], settings):
            first.setdefault(signal.name, signal)
    return first


def gold_apart(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that the proxy rose while the gold reward did not since the start, or fell from its best.

    The second is the shape of over-optimisation (Gao et al., arXiv:2210.10760): up, then down. The windows
    grow to a third of the steps: an early gold reward that is only noisy is not yet a flat one.
    """
    limits = settings.thresholds
    both = _measured(metrics, PROXY, GOLD)
    size = max(settings.window, len(both) // 3)
    if len(both) < 2 * size:
        return None
    proxy, gold = _values(both, PROXY), _values(both, GOLD)
    starts = range(len(both) - 2 * size + 1)
    best = max(starts, key=lambda start: fmean(gold[start : start + size]))
    share = _followed_share(both, size)
    for start, limit in ((0, limits.gold_rise), (best, -limits.gold_fall)):
        early = slice(start, start + size)
        followed = _rise(gold[early], gold[-size:])
        little = start == 0 and share < limits.gold_share and followed >= limit
        if _rise(proxy[early], proxy[-size:]) > limits.proxy_rise and (little or followed < limit):
            return Signal(
                name="gold_apart",
                step=_step(metrics),
                sentence=f"the reward rose from {fmean(proxy[early]):.3g} to "
                f"{fmean(proxy[-size:]):.3g} while the gold one, which is not learned from, went from "
                f"{fmean(gold[early]):.3g} to {fmean(gold[-size:]):.3g}",
                value=share if little else followed,
                threshold=limits.gold_share if little else limit,
            )
    return None


def kl_without_reward(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that the policy moves on from its parent and gets no more reward for it.

    Reward is taken over the square root of the KL, in which it is close to linear at first (Gao et al.,
    arXiv:2210.10760); the slopes of the first and the second half of the steps are compared.
    """
    limits = settings.thresholds
    name = min((key for m in metrics for key in m if key.startswith(KL)), default=DRIFT)
    both = _measured(metrics, name, PROXY)
    if len(both) < 2 * settings.window:
        return None
    half = len(both) // 2
    distance = [math.sqrt(max(0.0, kl)) for kl in _values(both, name)]
    reward = _values(both, PROXY)
    early = _slope(distance[:half], reward[:half])
    late = _slope(distance[half:], reward[half:])
    size = min(settings.window, half)
    before, after = (
        fmean(d**2 for d in part) for part in (distance[half:][:size], distance[-size:])
    )
    if early is None or late is None or early <= 0 or after <= limits.kl_growth * before:
        return None
    if late >= limits.kl_slope * early:
        return None
    return Signal(
        name="kl_without_reward",
        step=_step(metrics),
        sentence=f"{name} grew from {before:.3g} to {after:.3g} nats per token and bought no reward: "
        f"{late:.3g} per square root of a nat, {early:.3g} at first",
        value=late / early,
        threshold=limits.kl_slope,
    )


def length_drift(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that completions grew or shrank by a factor."""
    limits = settings.thresholds
    ends = _ends(metrics, LENGTH, settings.window)
    if ends is None or min(ends) <= 0:
        return None
    factor = ends[1] / ends[0]
    limit = limits.length_factor if factor > 1 else 1 / limits.length_factor
    if 1 / limits.length_factor < factor < limits.length_factor:
        return None
    words = "grew" if factor > 1 else "shrank"
    return Signal(
        name="length_drift",
        step=_step(metrics),
        sentence=f"completions {words} from {ends[0]:.0f} to {ends[1]:.0f} tokens",
        value=factor,
        threshold=limit,
    )


def repetition_drift(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that completions say again what they said before."""
    limits = settings.thresholds
    ends = _ends(metrics, REPEATED, settings.window)
    if ends is None or ends[1] - ends[0] < limits.repetition_rise:
        return None
    return Signal(
        name="repetition_drift",
        step=_step(metrics),
        sentence=f"completions repeat themselves: {ends[1]:.0%} of their n-grams stood in them before, "
        f"{ends[0]:.0%} at first",
        value=ends[1] - ends[0],
        threshold=limits.repetition_rise,
    )


def distinct_collapse(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that different prompts get the same answers: one of them by a large share, or all by their
    n-grams.

    A null model's one answer (arXiv:2410.07137) leaves the n-grams of the others as they were. It is read
    from the last step alone: what is had without reading the prompt comes suddenly, and is no noise.
    """
    limits = settings.thresholds
    last = _values(metrics[-1:], SIMILAR)
    if last and last[0] >= limits.same_answer_share:
        return Signal(
            name="distinct_collapse",
            step=_step(metrics),
            sentence=f"{last[0]:.0%} of the samples are one answer or nearly so, whatever was asked",
            value=last[0],
            threshold=limits.same_answer_share,
        )
    return _collapse(
        "distinct_collapse",
        metrics,
        DISTINCT,
        settings.window,
        limits.distinct_left,
        "answers to different prompts became alike: their share of unique n-grams",
    )


def entropy_collapse(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that the policy says one thing only, and is no better for it.

    Entropy that turns into reward is what learning looks like (Cui et al., arXiv:2505.22617: reward is
    about b - a exp(entropy)). The reward that has to rise is the gold one where there is one.
    """
    limits = settings.thresholds
    witness = GOLD if _measured(metrics, GOLD) else PROXY
    rewards, size = _values(metrics, witness), settings.window
    if len(rewards) < 2 * size or _rise(rewards[:size], rewards[-size:]) > limits.proxy_rise:
        return None
    return _collapse(
        "entropy_collapse",
        metrics,
        ENTROPY,
        size,
        limits.entropy_left,
        f"the {'gold ' if witness == GOLD else ''}reward did not rise, and the policy's entropy",
    )


def part_alone(metrics: Sequence[Metrics], settings: HackingConfig) -> Signal | None:
    """Detect that one part of the rubric became nearly all of the reward."""
    limits = settings.thresholds
    for name in sorted({key for m in metrics for key in m if key.startswith(SHARE)}):
        ends = _ends(metrics, name, settings.window)
        if ends is None or ends[1] < limits.part_share:
            continue
        if ends[1] - ends[0] >= limits.part_growth:
            return Signal(
                name="part_alone",
                step=_step(metrics),
                sentence=f"part {name.removeprefix(SHARE)} makes {ends[1]:.0%} of the reward, "
                f"{ends[0]:.0%} at first",
                value=ends[1],
                threshold=limits.part_share,
            )
    return None


DETECTORS: dict[DetectorName, Detector] = {
    "gold_apart": gold_apart,
    "kl_without_reward": kl_without_reward,
    "length_drift": length_drift,
    "repetition_drift": repetition_drift,
    "distinct_collapse": distinct_collapse,
    "entropy_collapse": entropy_collapse,
    "part_alone": part_alone,
}


def _collapse(
    name: DetectorName,
    metrics: Sequence[Metrics],
    metric: str,
    window: int,
    left: float,
    words: str,
) -> Signal | None:
    ends = _ends(metrics, metric, window)
    if ends is None or ends[0] <= 0 or ends[1] > left * ends[0]:
        return None
    return Signal(
        name=name,
        step=_step(metrics),
        sentence=f"{words} fell from {ends[0]:.3g} to {ends[1]:.3g}",
        value=ends[1] / ends[0],
        threshold=left,
    )


def _ends(metrics: Sequence[Metrics], name: str, window: int) -> tuple[float, float] | None:
    """Return the means of the first and of the last ``window`` values; None before they are apart."""
    values = _values(metrics, name)
    return None if len(values) < 2 * window else (fmean(values[:window]), fmean(values[-window:]))


def _values(metrics: Sequence[Metrics], name: str) -> list[float]:
    return [float(m[name]) for m in _measured(metrics, name)]


def _measured(metrics: Sequence[Metrics], *names: str) -> list[Metrics]:
    """Select the steps that have a usable number for each of the names; a NaN is no number."""
    return [m for m in metrics if all(abs(m.get(name, math.nan)) < LARGEST for name in names)]


def _rise(first: Sequence[float], last: Sequence[float]) -> float:
    """Compute the difference of two means in standard errors (Welch); infinite where nothing varies."""
    difference = fmean(last) - fmean(first)
    error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    if error > 0:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def _followed_share(metrics: Sequence[Metrics], size: int) -> float:
    """Compute the rise of the gold reward over that of the proxy, both in their first standard
    deviations.

    Infinite where nothing can be said: the proxy did not rise, or no spread was measured.
    """
    effects = []
    for name in (GOLD, PROXY):
        values, spreads = _values(metrics, name), _values(metrics[:size], SPREAD[name])
        spread = fmean(spreads) if spreads else 0.0
        effects.append((fmean(values[-size:]) - fmean(values[:size])) / spread if spread else 0.0)
    gold, proxy = effects
    return gold / proxy if proxy > 0 and _values(metrics[:size], SPREAD[GOLD]) else math.inf


def _slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Fit a slope by least squares; None where x does not vary."""
    try:
        return linear_regression(x, y).slope
    except StatisticsError:
        return None


def _step(metrics: Sequence[Metrics]) -> int:
    return int(metrics[-1]["step"])
