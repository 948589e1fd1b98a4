"""Environments of several rounds, chosen by the round that a prompt belongs to.

A round may replay prompts of earlier ones: each is answered in the environment of its own round, or in one
turn where that round has none, as prompts of the general pool are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Self

from rewards.environments.cluster.planned import PlannedEnvironments
from rollouts.episodes.environment import (
    EpisodeRules,
    Observation,
    Outcome,
    Schema,
    ToolCall,
)
from rollouts.types import Message, Prompt


class PromptEnvironments:
    """Environments by round; see `rollouts.episodes.environment.Environments`."""

    def __init__(self, by_round: Mapping[str, PlannedEnvironments]) -> None:
        self._by_round = dict(by_round)
        self._serving: dict[str, PlannedEnvironments] = {}

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        """Return the limits of a prompt's episodes; None for one that is answered in one turn."""
        environments = self._by_round.get(prompt.round or "")
        return None if environments is None else environments.rules(prompt)

    def schemas(self, prompt: Prompt) -> Sequence[Schema]:
        """Return the schemas of the tools of a prompt's round."""
        return self._of(prompt).schemas(prompt)

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        """Begin an episode; see `Environments.open`."""
        environments = self._serving[key] = self._of(prompt)
        return environments.open(key, prompt)

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        """Make the calls of a turn; see `Environments.call`."""
        return self._serving[key].call(key, calls)

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        """End an episode; see `Environments.close`."""
        return self._serving.pop(key).close(key, messages)

    def drop(self, key: str) -> None:
        """Give an episode up; see `Environments.drop`."""
        environments = self._serving.pop(key, None)
        if environments is not None:
            environments.drop(key)

    def shutdown(self) -> None:
        """End all processes. Episodes that are under way end with an error."""
        for environments in self._by_round.values():
            environments.shutdown()

    def isolation_lines(self) -> list[str]:
        """Describe where the code of every round's environments runs, for who starts a run."""
        plans = [environments.plan for environments in self._by_round.values()]
        return [plan.limits.line(", ".join(plan.names)) for plan in plans]

    @property
    def metrics(self) -> dict[str, float]:
        """Sums of the counts of all rounds, for logs."""
        sums: dict[str, float] = {}
        for environments in self._by_round.values():
            for name, count in environments.metrics.items():
                sums[name] = sums.get(name, 0.0) + count
        return sums

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _of(self, prompt: Prompt) -> PlannedEnvironments:
        return self._by_round[prompt.round or ""]
