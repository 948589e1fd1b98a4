"""History of prompts: the recent score of each, and the learner step at which it was last answered.

Steps are counted over all accepted rounds on the policy's line. A round begins with the history that its
parent left, adds what its own steps see, and leaves both to later rounds if it is accepted. Prompts stand
in it by id; it holds no text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from align.data.json_lines import Record, load_lines, save_lines
from rollouts.types import ScoredGroup

SCHEMA_VERSION = 1
"""Version of the file's format."""


class Sight(NamedTuple):
    """State of one prompt."""

    step: int
    """Learner step at which it was last answered, over all rounds."""
    score: float | None
    """Running mean of its scores; None if no reward has scored it."""


class MeanReward(NamedTuple):
    """One prompt as a step saw it."""

    prompt: str
    """Id of the prompt."""
    score: float | None
    """Mean score of its completions in the step; None if none was scored."""


@dataclass(kw_only=True)
class PromptHistory:
    """History of all prompts during one round."""

    start: int = 0
    """Learner steps of all accepted rounds before this one."""
    known: Mapping[str, Sight] = field(default_factory=dict)
    """State of prompts when the round begins, by id."""
    recent: float = 0.5
    """Weight of a step's score in the running mean."""
    is_read: bool = True
    """False in a campaign whose rounds never read it: nothing is noted then."""
    _observed: dict[int, list[MeanReward]] = field(default_factory=dict)
    """Mean scores by step of the round."""
    _state: dict[str, Sight] = field(default_factory=dict)
    """State before step `_reached`."""
    _reached: int = 0

    def __post_init__(self) -> None:
        self._state = dict(self.known)

    def observe(self, step: int, scored: Iterable[ScoredGroup]) -> None:
        """Note what a step of the round answered, except prompts that belong to no round."""
        if not self.is_read:
            return
        self._observed[step] = list(_observations(scored))
        if step < self._reached:
            self._rewind()

    def before(self, step: int) -> Mapping[str, Sight]:
        """Return the state of prompts as it was before a step of the round, by id."""
        if step < self._reached:
            self._rewind()
        while self._reached < step:
            for observation in self._observed.get(self._reached, ()):
                sight = self._state.get(observation.prompt)
                score = self._mixed(None if sight is None else sight.score, observation.score)
                self._state[observation.prompt] = Sight(self.start + self._reached, score)
            self._reached += 1
        return self._state

    def counters(self) -> dict[str, Any]:
        """Return what the round's steps saw, as JSON values for a checkpoint."""
        return {
            str(step): [list(observation) for observation in observations]
            for step, observations in self._observed.items()
        }

    def recall(self, counters: Mapping[str, Any]) -> None:
        """Go back to an earlier `counters`; an empty one forgets the round's steps."""
        self._observed = {
            int(step): [MeanReward(*entry) for entry in entries]
            for step, entries in counters.items()
        }
        self._rewind()

    def save(self, path: Path, steps: int = 0, stored: AbstractSet[str] = frozenset()) -> None:
        """Write the state after the round as JSON lines, atomically.

        Args:
            steps: learner steps of the round.
            stored: ids of the prompts that later rounds may replay; others stay if already known.
        """
        state = self.before(steps)
        head = {"schema_version": SCHEMA_VERSION, "steps": self.start + steps}
        names = [name for name in state if name in self.known or name in stored]
        records = (
            {"prompt": name, "step": state[name].step, "score": state[name].score}
            for name in sorted(names)
        )
        save_lines(path, head, records)

    @classmethod
    def load(cls, path: Path) -> PromptHistory:
        """Read what `save` wrote, as the beginning of the next round.

        Raises:
            StoreError: a line is damaged, or a newer Keel wrote the file; ``where`` names the line.
        """

        def read(lines: Iterator[Record]) -> PromptHistory:
            steps = next(lines)["steps"]
            known = {line["prompt"]: Sight(line["step"], line["score"]) for line in lines}
            return cls(start=steps, known=known)

        return load_lines(path, read, newest=SCHEMA_VERSION, what="prompt's history")

    def without(self, prompts: Collection[str]) -> PromptHistory:
        """Return the beginning of the round without some prompts, by id."""
        known = {name: sight for name, sight in self.known.items() if name not in prompts}
        return PromptHistory(start=self.start, known=known, recent=self.recent)

    def begun(self) -> PromptHistory:
        """Return the history as it was when the round began, which goes on by itself."""
        return PromptHistory(
            start=self.start, known=self.known, recent=self.recent, is_read=self.is_read
        )

    def _rewind(self) -> None:
        self._state, self._reached = dict(self.known), 0

    def _mixed(self, before: float | None, score: float | None) -> float | None:
        """Return a running mean with one more score."""
        if before is None or score is None:
            return before if score is None else score
        return (1.0 - self.recent) * before + self.recent * score


def _observations(scored: Iterable[ScoredGroup]) -> Iterator[MeanReward]:
    for group in scored:
        prompt = group.group.prompt
        if prompt.source == "general":
            continue
        values: Sequence[float] = [s.value for s in group.scores_G if s.value is not None]
        yield MeanReward(prompt.id, sum(values) / len(values) if values else None)
