"""Rubrics of a step: each prompt is scored by that of its round.

New prompts get the round's rubric: its own rewards, and under ``mode: add`` those of accepted rounds
that share its prompts. Replayed prompts are scored only when the round learns from their rewards, and
then by the rubric of the round they belong to. Everything else abstains: KL needs no reward.

Groups may be handed over as they are finished, in any order: which groups a reward is asked about
together is the caller's choice, and a score depends on nothing else. Only a reward with a memory of
earlier calls would notice in which order batches came.
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
    """Routes groups to rubrics."""

    new: Rubric | None
    """Rubric of the round's own prompts; None where the round learns without rewards."""
    past: Mapping[str, Rubric]
    """Rubrics of replayed prompts by round name; empty when replay learns through KL alone."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Score all groups; return one `ScoredGroup` per group, in order."""
        scoring = self.open()
        scoring.add(dict(enumerate(groups)))
        return scoring.result()

    def open(self, *, replacements: bool = False) -> Scoring:
        """Begin a step whose groups are handed over as they come.

        Args:
            replacements: they stand in for groups of the same step: their failures are counted apart.
        """
        return Scoring(scorer=self, replacements=replacements)

    def check_budget(self, budget: float, done: float = 1.0) -> None:
        """Stop the round when too large a share of its samples could not be scored.

        Failures are held against the samples that the round will have asked about at its end, going on
        as it did: a few early ones are no large share. Replacements count on neither side.

        Args:
            done: share of the round's steps that were scored.
        """
        for rubric in self.rubrics.values():
            log = rubric.failures
            log.check_budget(budget, planned=round(log.samples / done))

    @property
    def rubrics(self) -> dict[str, Rubric]:
        """All of them, by the round whose they are; the round's own under the empty name."""
        return ({} if self.new is None else {"": self.new}) | dict(self.past)

    def failures(self) -> dict[str, Any]:
        """Return what could not be scored so far as JSON values, which survive a restart with the
        learner."""
        return {name: rubric.failures.to_dict() for name, rubric in self.rubrics.items()}

    def recall(self, failures: Mapping[str, Any]) -> None:
        """Go on counting from what `failures` gave; a rubric that is not in it begins anew."""
        for name, rubric in self.rubrics.items():
            known = failures.get(name)
            rubric.failures = FailureLog() if known is None else FailureLog.from_dict(known)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics that the parts of the last step's new prompts logged, what their workers went
        through, and what could not be scored since the round began."""
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
        """End the worker processes of all rubrics, busy ones after ``deadline_s``."""
        for rubric in self.rubrics.values():
            rubric.close(deadline_s)

    def route(self, group: RolloutGroup) -> str | None:
        """Name of the rubric that scores a group; None: nobody does."""
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
    _asked: dict[str, PendingScores] = field(default_factory=dict)

    def add(self, groups: Mapping[int, RolloutGroup]) -> None:
        """Begin to score groups, by their place in the step."""
        self._groups |= groups
        for name, rubric in self.scorer.rubrics.items():
            own_groups = {i: g for i, g in groups.items() if self.scorer.route(g) == name}
            if own_groups:
                if name not in self._asked:
                    self._asked[name] = rubric.open(replacements=self.replacements)
                self._asked[name].add(own_groups)

    def result(self) -> list[ScoredGroup]:
        """Wait; return one `ScoredGroup` per group, in the order of their places."""
        scored: dict[int, ScoredGroup] = {}
        for pending in self._asked.values():
            scored |= pending.result()
        return [
            scored.get(i, ScoredGroup(group=g, scores_G=(UNSCORED,) * len(g.completions_G)))
            for i, g in sorted(self._groups.items())
        ]
