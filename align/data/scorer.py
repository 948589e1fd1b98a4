"""Scoring of a step's groups, each by the rubric of its round.

New prompts get the round's rubric: its own rewards, and under ``mode: add`` those of accepted rounds
that share its prompts. Replayed prompts are scored only if the round learns from their rewards, or draws
them by their scores, and then by the rubric of the round that they come from. All other groups abstain,
since KL needs no reward.

Groups may come as they are finished and in any order. The caller chooses which groups a reward gets in
one call, and scores do not depend on that choice unless the reward remembers earlier calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.failures import FailureLog
from rewards.rubric import PendingScores, Rubric
from rollouts.types import RolloutGroup, Score, ScoredGroup

UNSCORED = Score(value=None, status="abstained")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Rubrics of a step's groups."""

    new: Rubric | None
    """Rubric of the round's own prompts; None if the round learns without rewards."""
    past: Mapping[str, Rubric]
    """Rubrics of replayed prompts by round name; empty if replay learns through KL alone."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Score all groups; return one `ScoredGroup` per group, in order."""
        scoring = self.open()
        scoring.add(dict(enumerate(groups)))
        return scoring.result()

    def open(self, *, replacements: bool = False) -> Scoring:
        """Begin to score a step whose groups come one after another.

        Args:
            replacements: the groups replace others of the same step; their failures are counted apart.
        """
        return Scoring(scorer=self, replacements=replacements)

    def check_budget(self, budget: float, done: float = 1.0) -> None:
        """Stop the round if too large a share of its samples could not be scored.

        The share is of the samples that the round will have scored at its end if it goes on at this rate,
        so a few early failures are no large share. Replacements do not count.

        Args:
            budget: largest share of failures.
            done: share of the round's steps that were scored.
        """
        for rubric in self.rubrics.values():
            log = rubric.failures
            log.check_budget(budget, planned=round(log.samples / done))

    @property
    def rubrics(self) -> dict[str, Rubric]:
        """All rubrics by round name; that of the round's own prompts has the empty name."""
        return ({} if self.new is None else {"": self.new}) | dict(self.past)

    @property
    def part_names(self) -> str:
        """Names of the rewards, for a line."""
        parts = (part.name for rubric in self.rubrics.values() for part in rubric.parts)
        return ", ".join(dict.fromkeys(parts)) or "none"

    def failures(self) -> dict[str, Any]:
        """Return the counts of failures so far, as JSON values for the learner's checkpoint."""
        return {name: rubric.failures.to_dict() for name, rubric in self.rubrics.items()}

    def recall(self, failures: Mapping[str, Any]) -> None:
        """Continue the counts of an earlier `failures`; a rubric that is not in it starts at 0."""
        for name, rubric in self.rubrics.items():
            known = failures.get(name)
            rubric.failures = FailureLog() if known is None else FailureLog.from_dict(known)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the new prompts' rewards in the last step, and counts of failures in the round."""
        if self.new is None:
            return {}
        log = self.new.failures
        return {
            **{f"reward/{name}": value for name, value in self.new.metrics.items()},
            "failures/samples": float(log.samples),
            "failures/failed": float(log.failed),
            "failures/replaced": float(log.replaced),
            "failures/replaced_failed": float(log.replaced_failed),
        }

    def isolation_lines(self) -> list[str]:
        """Describe the isolation of every reward of the round."""
        lines = [line for r in self.rubrics.values() for line in r.isolation_lines()]
        return list(dict.fromkeys(lines))

    def close(self, deadline_s: float = 5.0) -> None:
        """End the worker processes of all rubrics; busy ones have ``deadline_s`` seconds to finish."""
        for rubric in self.rubrics.values():
            rubric.close(deadline_s)

    def route(self, group: RolloutGroup) -> str | None:
        """Return the name of the rubric that scores a group; None if it is not scored."""
        prompt = group.prompt
        if prompt.source == "new":
            return None if self.new is None else ""
        return prompt.round if prompt.source == "past" and prompt.round in self.past else None


@dataclass(kw_only=True, slots=True)
class Scoring:
    """Groups of one step that are being scored."""

    scorer: Scorer
    replacements: bool = False
    _groups: dict[int, RolloutGroup] = field(default_factory=dict)
    _pending: dict[str, PendingScores] = field(default_factory=dict)

    def add(self, groups: Mapping[int, RolloutGroup]) -> None:
        """Begin to score groups, by their position in the step."""
        self._groups |= groups
        for name, rubric in self.scorer.rubrics.items():
            routed = {i: g for i, g in groups.items() if self.scorer.route(g) == name}
            if routed:
                if name not in self._pending:
                    self._pending[name] = rubric.open(replacements=self.replacements)
                self._pending[name].add(routed)

    def result(self) -> list[ScoredGroup]:
        """Wait for all scores; return one `ScoredGroup` per group, in the order of positions."""
        scored: dict[int, ScoredGroup] = {}
        for pending in self._pending.values():
            scored |= pending.result()
        return [
            scored.get(i, ScoredGroup(group=g, scores_G=(UNSCORED,) * len(g.completions_G)))
            for i, g in sorted(self._groups.items())
        ]
