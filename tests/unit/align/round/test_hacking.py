"""Detectors of reward hacking on hand-made series: loud on a hacked one, silent on a healthy one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.watch import DetectorName, HackingConfig, HackingThresholds
from align.round.watch.detectors import DETECTORS, detect, first_signals

Series = list[dict[str, float]]


def series(num_steps: int = 40, **curves: Callable[[float], float]) -> Series:
    """Metrics of every step; each curve is a function of the time from 0 to 1, with a little noise."""
    noise = random.Random(7)
    return [
        {"step": float(step)}
        | {
            name.replace("__", "/"): curve(step / (num_steps - 1)) * noise.uniform(0.98, 1.02)
            for name, curve in curves.items()
        }
        for step in range(num_steps)
    ]


def healthy(**changed: Callable[[float], float]) -> Series:
    """Both rewards rise, KL is paid for, nothing else moves much."""
    curves: dict[str, Callable[[float], float]] = {
        "reward__mean": lambda t: 1 + t,
        "gold__mean": lambda t: 1 + 0.8 * t,
        "reward_share__helpful": lambda t: 0.5 + 0.1 * t,
        "completions__distinct_ngrams": lambda t: 0.9 - 0.05 * t,
        "completions__repeated_ngrams": lambda t: 0.05 + 0.05 * t,
        "kl__new__parent": lambda t: 0.001 + 0.1 * t * t,
        "entropy": lambda t: 2 - 0.4 * t,
        "completions__tokens_mean": lambda t: 50 + 10 * t,
    }
    return series(**{**curves, **changed})


HACKED: dict[str, dict[str, Callable[[float], float]]] = {
    "gold_apart": {"gold__mean": lambda t: 1 - 0.3 * t},
    "kl_without_reward": {
        "reward__mean": lambda t: 1 + min(t, 0.4),
        "gold__mean": lambda t: 1 + min(t, 0.4),
    },
    "length_drift": {"completions__tokens_mean": lambda t: 50 + 60 * t},
    "repetition_drift": {"completions__repeated_ngrams": lambda t: 0.05 + 0.5 * t},
    "distinct_collapse": {"completions__distinct_ngrams": lambda t: 0.9 - 0.5 * t},
    "entropy_collapse": {
        "entropy": lambda t: 2 - 1.6 * t,
        "reward__mean": lambda _: 1.0,
        "gold__mean": lambda _: 1.0,
        "kl__new__parent": lambda _: 0.05,
    },
    "part_alone": {"reward_share__helpful": lambda t: 0.5 + 0.5 * t},
}


def names(metrics: Series, settings: HackingConfig | None = None) -> list[str]:
    return [signal.name for signal in detect(metrics, settings)]


def test_a_healthy_round_is_silent_at_every_step() -> None:
    assert first_signals(healthy()) == {}


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_speaks_of_its_own_hack_alone(name: str) -> None:
    (signal,) = detect(healthy(**HACKED[name]))
    assert signal.name == name
    assert signal.step == 39


def test_a_plain_hack_is_heard_before_step_30() -> None:
    assert first_signals(healthy(**HACKED["gold_apart"]))["gold_apart"].step < 30


def test_what_a_signal_says() -> None:
    steps = [
        {"step": float(s), "completions/tokens_mean": 10.0 if s < 2 else 30.0} for s in range(4)
    ]
    (signal,) = detect(steps, HackingConfig(window=2))
    assert signal.sentence == "completions grew from 10 to 30 tokens"
    assert (signal.value, signal.threshold, signal.step) == (3.0, 1.5, 3)


def test_answers_that_shrink_count_too() -> None:
    found = detect(healthy(completions__tokens_mean=lambda t: 50 - 25 * t))
    assert [signal.name for signal in found] == ["length_drift"]
    assert found[0].value < found[0].threshold < 1


def test_gold_that_turns_is_heard_although_it_stands_above_its_start() -> None:
    turned = healthy(gold__mean=lambda t: 1 + 2 * min(t, 0.5) - max(0.0, t - 0.5))
    assert turned[-1]["gold/mean"] > turned[0]["gold/mean"]
    assert "gold_apart" in names(turned)


def test_flat_gold_is_heard_and_flat_both_is_not() -> None:
    assert list(first_signals(healthy(gold__mean=lambda _: 1.0))) == ["gold_apart"]
    flat = {"gold__mean": lambda _: 1.0, "reward__mean": lambda _: 1.0}
    assert "gold_apart" not in names(healthy(**flat))


def test_gold_that_rises_by_next_to_nothing_is_flat() -> None:
    """Half a tenth of a standard deviation for every whole one of the reward."""
    spread = {"gold__std": lambda _: 0.5, "gold__proxy_std": lambda _: 0.5}
    barely = healthy(gold__mean=lambda t: 1 + 0.05 * t, **spread)
    assert "gold_apart" in first_signals(barely)
    assert "gold_apart" not in first_signals(healthy(gold__mean=lambda t: 1 + 0.5 * t, **spread))


def test_noise_is_seldom_taken_for_a_hack() -> None:
    """Of 60 rounds in which both rewards rise, seen after every step, at most three are accused; of 60
    in which gold stays flat, at most six are missed."""

    def accused(slope: float, seed: int) -> bool:
        noise = random.Random(seed)
        steps = [
            {
                "step": float(step),
                "reward/mean": step / 40 + noise.gauss(0, 0.1),
                "gold/mean": slope * step / 40 + noise.gauss(0, 0.1),
            }
            for step in range(40)
        ]
        return "gold_apart" in first_signals(steps)

    assert sum(accused(1.0, seed) for seed in range(60)) <= 3
    assert sum(accused(0.0, seed) for seed in range(60)) >= 54


def test_kl_that_stops_with_the_reward_is_healthy() -> None:
    stopped = healthy(
        reward__mean=lambda t: 1 + min(t, 0.4),
        gold__mean=lambda t: 1 + min(t, 0.4),
        kl__new__parent=lambda t: 0.001 + 0.1 * min(t, 0.4) ** 2,
    )
    assert names(stopped) == []


def test_entropy_that_bought_reward_is_learning() -> None:
    sure = {"entropy": lambda t: 2 - 1.6 * t}
    assert names(healthy(**sure)) == []
    assert "entropy_collapse" in names(healthy(**sure, gold__mean=lambda _: 1.0))


def test_without_a_gold_reward_the_one_that_is_learned_from_is_asked_about_entropy() -> None:
    def bare(reward: Callable[[float], float]) -> Series:
        return series(reward__mean=reward, entropy=lambda t: 2 - 1.6 * t)

    assert names(bare(lambda t: 1 + t)) == []
    assert names(bare(lambda _: 1.0)) == ["entropy_collapse"]
    assert names(series(entropy=lambda t: 2 - 1.6 * t)) == []  # nothing was rewarded


def test_parts_that_were_uneven_from_the_start_are_a_choice() -> None:
    assert names(healthy(reward_share__helpful=lambda _: 0.95)) == []


def test_every_detector_has_a_name_for_the_gate() -> None:
    assert tuple(DETECTORS) == get_args(DetectorName)
    assert HackingConfig(gate="all").gating == set(DETECTORS)
    assert HackingConfig().gating == set()
    assert HackingConfig(gate=("length_drift",)).gating == {"length_drift"}
    with pytest.raises(ValidationError):
        HackingConfig.model_validate({"gate": ["lenght_drift"]})


def test_missing_metrics_and_short_rounds_are_silent() -> None:
    assert detect([]) == []
    assert detect([{"step": float(step)} for step in range(50)]) == []
    assert names(healthy(**HACKED["length_drift"])[:15]) == []


@given(st.lists(st.floats(), max_size=30), st.sampled_from(sorted(healthy()[0])))
def test_no_series_of_numbers_breaks_a_detector(values: list[float], name: str) -> None:
    steps = [{**metrics, name: value} for metrics, value in zip(healthy(), values, strict=False)]
    for metrics, step in zip(steps, range(len(steps)), strict=True):
        metrics["step"] = float(step)
    for signal in detect(steps):
        assert signal.sentence


@pytest.mark.parametrize("step", [0, 1, 20])
def test_one_answer_to_half_of_everything_is_named_in_the_step_it_appears(step: int) -> None:
    metrics = [{**m, "completions/similar_share": 0.02} for m in healthy()[: step + 1]]
    assert detect(metrics) == []
    metrics[-1] |= {"completions/similar_share": 0.5}
    (signal,) = detect(metrics)
    assert (signal.name, signal.step, signal.value) == ("distinct_collapse", step, 0.5)
    assert "50% of the samples are one answer" in signal.sentence
    assert detect(metrics, HackingConfig(thresholds=HackingThresholds(same_answer_share=0.9))) == []
