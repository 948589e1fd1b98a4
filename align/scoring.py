"""Which rubric scores which prompt of a step.

New prompts get the round's rubric: its own rewards, and under ``mode: add`` those of accepted rounds
that share its prompts. Replayed prompts are scored only when the round learns from their rewards, and
then by the rubric of the round they belong to. Everything else abstains: KL needs no reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.rubric import Rubric
from rollouts.types import RolloutGroup, Score, ScoredGroup

UNSCORED = Score(value=None, status="abstained")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Routes groups to rubrics."""

    new: Rubric | None
    """None where the round learns without rewards."""
    past: Mapping[str, Rubric]
    """By round name; empty when replay learns through KL alone."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """One `ScoredGroup` per group, in order."""
        scored: dict[int, ScoredGroup] = {}
        for rubric, chosen in self._routes(groups):
            for index, result in zip(
                chosen, rubric.score([groups[i] for i in chosen]), strict=True
            ):
                scored[index] = result
        return [
            scored.get(i, ScoredGroup(group=g, scores_G=(UNSCORED,) * len(g.completions_G)))
            for i, g in enumerate(groups)
        ]

    def check_budget(self, budget: float, planned: int) -> None:
        """Stop the round when too large a share of its samples could not be scored.

        Args:
            planned: samples the whole round will ask for; a few early failures are no large share.
        """
        for rubric in (self.new, *self.past.values()):
            if rubric is not None:
                rubric.failures.check_budget(budget, planned)

    @property
    def metrics(self) -> dict[str, float]:
        """What the parts of the last step's new prompts logged, and what their workers went through."""
        found = {} if self.new is None else self.new.metrics
        return {f"reward/{name}": value for name, value in found.items()}

    def isolation_lines(self) -> list[str]:
        """What every reward of the round runs under."""
        rubrics = [rubric for rubric in (self.new, *self.past.values()) if rubric is not None]
        return list(dict.fromkeys(line for r in rubrics for line in r.isolation_lines()))

    def close(self, deadline_s: float = 5.0) -> None:
        """End the worker processes of all rubrics, busy ones after ``deadline_s``."""
        for rubric in (self.new, *self.past.values()):
            if rubric is not None:
                rubric.close(deadline_s)

    def _routes(self, groups: Sequence[RolloutGroup]) -> list[tuple[Rubric, list[int]]]:
        mine = [i for i, g in enumerate(groups) if g.prompt.source == "new"]
        routes = [] if self.new is None else [(self.new, mine)]
        for name, rubric in self.past.items():
            mine = [
                i
                for i, g in enumerate(groups)
                if g.prompt.source == "past" and g.prompt.round == name
            ]
            routes.append((rubric, mine))
        return [(rubric, chosen) for rubric, chosen in routes if chosen]
