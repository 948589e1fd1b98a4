"""Combination of the parts' outcomes for one group into one score per completion.

    value = sum over the parts that scored of weight * normalised(value)

A failed part has failed the sample, a closed gate gives it the gate's own value, and what is left of the
group is what each part is normalised over. `Score.parts` keeps the raw values; `Score.counted` says what
became of those that count differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rewards.base import RewardPart
from rewards.call import PartFailure, PartOutcome
from rewards.library.gating import Gate, closed_gate
from rewards.normalise import normalised
from rollouts.types import Score

SampleOutcomes = Mapping[str, PartOutcome]
"""One sample's outcome of every part, by its name."""


def combine(parts: Sequence[RewardPart], answers_G: Sequence[SampleOutcomes]) -> list[Score]:
    """Combine the outcomes of the completions of one prompt into scores [G]; failed rollouts are not
    among them."""
    gates = {part.name: part.gate for part in parts if part.gate is not None}
    held_G = [closed_gate(gates, _raw(answers)) for answers in answers_G]
    open_G = [
        i
        for i, answers in enumerate(answers_G)
        if held_G[i] is None and not any(isinstance(o, PartFailure) for o in answers.values())
    ]
    counted_G: list[dict[str, float]] = [{} for _ in answers_G]
    for part in parts:
        members = [i for i in open_G if answers_G[i][part.name] is not None]
        values = [outcome for i in members if isinstance(outcome := answers_G[i][part.name], float)]
        for i, value in zip(members, normalised(part.normalise, values, part.bounds), strict=True):
            counted_G[i][part.name] = value
    weights = {part.name: part.weight for part in parts}
    return [
        _score(weights, answers, counted, closed)
        for answers, counted, closed in zip(answers_G, counted_G, held_G, strict=True)
    ]


def _score(
    weights: Mapping[str, float],
    answers: SampleOutcomes,
    counted: Mapping[str, float],
    closed: tuple[str, Gate] | None,
) -> Score:
    parts = _raw(answers)
    failures = {name: o.reason for name, o in answers.items() if isinstance(o, PartFailure)}
    value = sum(weights[name] * term for name, term in counted.items())
    if closed is not None:
        value = closed[1].otherwise
    if failures or not math.isfinite(value):
        reasons = [f"{name}: {reason}" for name, reason in failures.items()]
        detail = "; ".join(reasons) or f"the weighted sum is {value}"
        return failed(weights, detail, parts, failures)
    if closed is not None:
        return Score(
            value=value,
            status="scored",
            parts=parts,
            weights=weights,
            counted=dict.fromkeys(parts),
            detail=f"{closed[0]}: {parts[closed[0]]:g} is below its gate of {closed[1].at_least:g}",
        )
    if not counted:
        return Score(value=None, status="abstained", parts=parts, weights=weights)
    changed = {name: term for name, term in counted.items() if term != parts[name]}
    return Score(value=value, status="scored", parts=parts, weights=weights, counted=changed)


def failed(
    weights: Mapping[str, float],
    detail: str,
    parts: Mapping[str, float | None] | None = None,
    failures: Mapping[str, str] | None = None,
) -> Score:
    """Make the score of a sample that could not be scored."""
    return Score(
        value=None,
        status="failed",
        parts=dict.fromkeys(weights) if parts is None else parts,
        weights=weights,
        detail=detail,
        failures=failures or {},
    )


def _raw(answers: SampleOutcomes) -> dict[str, float | None]:
    return {name: None if isinstance(o, PartFailure) else o for name, o in answers.items()}
