"""Comparison of a snapshot's answers with another snapshot's: suites with ``against``.

Every item is answered by both, the comparator once and for all. A metric that takes the column
``reference`` (a pairwise judge, a preference model) is asked in both orders; any other (a reward model, a
check) scores each answer by itself. An order is worth 1 for the better answer, 0.5 for a tie and 0 for
the worse one, and an item the mean of its orders; the same answer twice is a tie that nobody is asked
about. So a snapshot against itself has 0.5, and the gate compares snapshots by their rates against one
and the same rival.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import StoreError
from align.store.durable import write_atomic
from rewards.base import Sample, shown_completion
from rollouts.types import (
    Completion,
    Episode,
    Message,
    Prompt,
    RolloutGroup,
    Score,
    ScoredGroup,
    SnapshotId,
)

if TYPE_CHECKING:
    from rewards.rubric import Rubric

REFERENCE = "reference"
"""Column that a pairwise metric finds the other answer in."""
ROUND = "round:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """The snapshot that a suite's answers are compared with."""

    against: str
    """``base``, ``parent`` or ``round:NAME``."""
    comparator: SnapshotId | None = None
    """The snapshot that this is by now; None before it is known."""
    answers: Path | None = None
    """File of the comparator's answers."""

    def score(self, groups: Sequence[RolloutGroup], rubric: Rubric) -> list[ScoredGroup]:
        """Score every completion against the comparator's one answer to its prompt."""
        if self.answers is None:
            raise ValueError(f"there is nothing to compare with: {self.against} is not known yet")
        rivals = load_answers(self.answers)
        pairs = [
            Pair(
                prompt=group.prompt,
                answer=completion,
                rival=rivals.get(group.prompt.id),
                group=group,
            )
            for group in groups
            for completion in group.completions_G
        ]
        questions = [pair for pair in pairs if pair.is_question]
        judged = iter(_judge(questions, rubric))
        scores = iter([next(judged) if pair.is_question else pair.unasked for pair in pairs])
        return [
            ScoredGroup(group=g, scores_G=tuple(next(scores) for _ in g.completions_G))
            for g in groups
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RivalAnswer:
    """The comparator's answer to a prompt, with the turns of its episode where it acted."""

    text: str
    messages: tuple[Message, ...] = ()

    def is_same(self, answer: Completion) -> bool:
        """Tell if an answer says the same, after the same turns."""
        messages = () if answer.episode is None else answer.episode.messages
        return (self.text, self.messages) == (answer.text, messages)

    def in_place_of(self, answer: Completion) -> Completion:
        """Return the rival as a completion. Metrics read texts and messages, not tokens."""
        episode = None
        if self.messages:
            turns = sum(message["role"] == "assistant" for message in self.messages)
            episode = Episode(observed=(), messages=self.messages, turns=turns)
        return replace(answer, text=self.text, token_ids=(), logprobs_T=(), episode=episode)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt: Prompt
    answer: Completion
    rival: RivalAnswer | None
    """The comparator's; None where it has none."""
    group: RolloutGroup
    """Group that the answer is from."""

    @property
    def is_question(self) -> bool:
        """Both are there, and not the same."""
        if self.rival is None or self.answer.finish_reason == "failed":
            return False
        return not self.rival.is_same(self.answer)

    @property
    def unasked(self) -> Score:
        """Score of a pair that is no question: a tie of the same words, or a missing answer."""
        if self.rival is None or self.answer.finish_reason == "failed":
            whose = "the comparator's" if self.rival is None else "its"
            return Score(value=None, status="failed", detail=f"{whose} rollout failed")
        return Score(value=0.5, status="scored")

    def straight(self, pairwise: bool) -> RolloutGroup:
        """Show the answer alone, or with the rival as its reference."""
        return self._shown(self.answer, self._rival if pairwise else None)

    def swapped(self, pairwise: bool) -> RolloutGroup:
        """Show the rival alone, or with the answer as its reference."""
        return self._shown(self._rival, self.answer if pairwise else None)

    @property
    def _rival(self) -> Completion:
        assert self.rival is not None, "only questions are shown"
        return self.rival.in_place_of(self.answer)

    def _shown(self, answer: Completion, reference: Completion | None) -> RolloutGroup:
        columns = dict(self.prompt.columns)
        if reference is not None:
            acted = reference.episode is not None
            other = Sample(prompt=self.prompt, completion=reference)
            columns[REFERENCE] = shown_completion(other) if acted else reference.text
        prompt = replace(self.prompt, columns=columns)
        return replace(self.group, prompt=prompt, completions_G=(answer,))


def save_answers(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Keep the first answer to every prompt as a JSON line: its text, or null, and its turns."""
    lines = []
    for group in groups:
        answer = group.completions_G[0]
        text = None if answer.finish_reason == "failed" else answer.text
        acted = {} if answer.episode is None else {"messages": answer.episode.messages}
        lines.append(json.dumps({"item": group.prompt.id, "answer": text, **acted}) + "\n")
    write_atomic(path, "".join(lines).encode())


def load_answers(path: Path) -> dict[str, RivalAnswer | None]:
    """Read answers by item; None for one that failed.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {
            row["item"]: None
            if row["answer"] is None
            else RivalAnswer(text=row["answer"], messages=tuple(row.get("messages", ())))
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the comparator's answers cannot be read: {error!r}",
            where=str(path),
            remedy="delete the file; keel run samples them again",
        ) from error


def win(value: float, rival: float) -> float:
    """Return 1 for the larger, 0.5 for a tie, else 0.

    >>> win(2.0, 1.0), win(1.0, 1.0), win(0.0, 1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 if value == rival else float(value > rival)


def _judge(pairs: Sequence[Pair], rubric: Rubric) -> list[Score]:
    """Return what each pair is worth to its first answer."""
    from rewards.signatures.signature import required_columns

    if not pairs:
        return []
    pairwise = any(REFERENCE in required_columns(part) for part in rubric.parts)
    orders = [pair.straight(pairwise) for pair in pairs]
    orders += [pair.swapped(pairwise) for pair in pairs]
    scores = [scored.scores_G[0] for scored in rubric.score(orders)]
    both = zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)
    return [_outcome(first, second, pairwise) for first, second in both]


def _outcome(first: Score, second: Score, pairwise: bool) -> Score:
    """Merge both orders into one value; what one of them lacks, the pair lacks."""
    if first.value is None or second.value is None:
        lacking = first if first.value is None else second
        return Score(value=None, status=lacking.status, detail=lacking.detail)
    if pairwise:  # Each is already a comparison, seen from the answer it was asked about.
        value = (win(first.value, 0.5) + win(0.5, second.value)) / 2.0
    else:
        value = win(first.value, second.value)
    return Score(value=value, status="scored")
