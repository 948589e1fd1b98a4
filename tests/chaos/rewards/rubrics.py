"""Rubrics of trap rewards in real worker processes, and groups to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.config.campaign import RewardConfig
from rewards.rubric import Rubric, build_rubric
from rollouts.types import Completion, Prompt, RolloutGroup, Score
from tests.patience import patient

TRAPS = Path(__file__).with_name("traps.py")
DEADLINES = {"deadline_s", "sample_deadline_s"}


def rubric_of(trap: str, **fields: Any) -> Rubric:
    """A rubric with one trap; a deadline of twenty seconds unless another is given.

    Deadlines are those of the reference machine and scale with the speed of the one at hand.
    """
    settings = {"deadline_s": 20.0, **fields}
    for name in DEADLINES & settings.keys():
        settings[name] = patient(settings[name])
    return build_rubric([RewardConfig(name=f"{TRAPS}:{trap}", **settings)])


def group(*texts: str, **columns: Any) -> RolloutGroup:
    completions = tuple(
        Completion(token_ids=(1,), logprobs_T=(0.0,), text=text, finish_reason="stop")
        for text in texts
    )
    return RolloutGroup(
        prompt=Prompt(id="q", text="q", columns=columns),
        prompt_ids=(1,),
        completions_G=completions,
        policy="p",
        seed=0,
    )


def scores(rubric: Rubric, *groups: RolloutGroup) -> list[Score]:
    return [score for scored in rubric.score(groups) for score in scored.scores_G]


def kinds(rubric: Rubric) -> dict[str, int]:
    """Failures so far by their kind, of a rubric with one part."""
    return {kind: n for found in rubric.failures.kinds.values() for kind, n in found.items()}
