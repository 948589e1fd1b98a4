"""How often a snapshot's answers beat another snapshot's: suites with ``against``.

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
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup, SnapshotId

if TYPE_CHECKING:
    from rewards.rubric import Rubric

REFERENCE = "reference"
"""Column that a pairwise metric finds the other answer in."""
ROUND = "round:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """Whom a suite's answers are compared with."""

    against: str
    """``base``, ``parent`` or ``round:NAME``."""
    comparator: SnapshotId | None = None
    """The snapshot that this is by now; None before it is known."""
    answers: Path | None = None
    """Where the comparator's answers are kept."""

    def score(self, groups: Sequence[RolloutGroup], rubric: Rubric) -> list[ScoredGroup]:
        """Every completion against the comparator's one answer to its prompt."""
        if self.answers is None:
            raise ValueError(f"there is nothing to compare with: {self.against} is not known yet")
        rivals = load_answers(self.answers)
        pairs = [
            Pair(prompt=group.prompt, said=said, rival=rivals.get(group.prompt.id), group=group)
            for group in groups
            for said in group.completions_G
        ]
        asked = [pair for pair in pairs if pair.is_question]
        found = iter(_judge(asked, rubric))
        scores = iter([next(found) if pair.is_question else pair.unasked for pair in pairs])
        return [
            ScoredGroup(group=g, scores_G=tuple(next(scores) for _ in g.completions_G))
            for g in groups
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt: Prompt
    said: Completion
    rival: str | None
    """The comparator's; None where it has none."""
    group: RolloutGroup
    """That ``said`` is from."""

    @property
    def is_question(self) -> bool:
        """Both are there, and not the same."""
        return self.said.finish_reason != "failed" and self.rival not in (None, self.said.text)

    @property
    def unasked(self) -> Score:
        """Of what is no question: a tie of the same words, or an answer that is not there."""
        if self.rival is None or self.said.finish_reason == "failed":
            whose = "the comparator's" if self.rival is None else "its"
            return Score(value=None, status="failed", detail=f"{whose} rollout failed")
        return Score(value=0.5, status="scored")

    def straight(self, pairwise: bool) -> RolloutGroup:
        """The answer alone, or with the rival as its reference."""
        return self._shown(self.said, self.rival if pairwise else None)

    def swapped(self, pairwise: bool) -> RolloutGroup:
        """The rival alone, or with the answer as its reference. Metrics read its text, not its tokens."""
        rival = replace(self.said, text=self.rival or "", token_ids=(), logprobs_T=())
        return self._shown(rival, self.said.text if pairwise else None)

    def _shown(self, said: Completion, reference: str | None) -> RolloutGroup:
        columns = dict(self.prompt.columns)
        if reference is not None:
            columns[REFERENCE] = reference
        prompt = replace(self.prompt, columns=columns)
        return replace(self.group, prompt=prompt, completions_G=(said,))


def save_answers(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Keep the first answer to every prompt, as text: one JSON line each, null for a failed one."""
    lines = (json.dumps({"item": g.prompt.id, "answer": _said(g)}) for g in groups)
    write_atomic(path, "".join(line + "\n" for line in lines).encode())


def load_answers(path: Path) -> dict[str, str | None]:
    """Answers by item.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["item"]: row["answer"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the comparator's answers cannot be read: {error!r}",
            where=str(path),
            remedy="delete the file; keel run samples them again",
        ) from error


def win(ours: float, theirs: float) -> float:
    """1 for the larger, 0.5 for a tie, else 0.

    >>> win(2.0, 1.0), win(1.0, 1.0), win(0.0, 1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 if ours == theirs else float(ours > theirs)


def _judge(pairs: Sequence[Pair], rubric: Rubric) -> list[Score]:
    """What each pair is worth to its first answer."""
    from rewards.signatures.signature import required_columns

    if not pairs:
        return []
    pairwise = any(REFERENCE in required_columns(part) for part in rubric.parts)
    orders = [pair.straight(pairwise) for pair in pairs]
    orders += [pair.swapped(pairwise) for pair in pairs]
    scores = [one.scores_G[0] for one in rubric.score(orders)]
    both = zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)
    return [_outcome(ours, theirs, pairwise) for ours, theirs in both]


def _outcome(ours: Score, theirs: Score, pairwise: bool) -> Score:
    """Both orders as one value; what one of them lacks, the pair lacks."""
    if ours.value is None or theirs.value is None:
        lacking = ours if ours.value is None else theirs
        return Score(value=None, status=lacking.status, detail=lacking.detail)
    if pairwise:  # Each is already a comparison, seen from the answer it was asked about.
        value = (win(ours.value, 0.5) + win(0.5, theirs.value)) / 2.0
    else:
        value = win(ours.value, theirs.value)
    return Score(value=value, status="scored")


def _said(group: RolloutGroup) -> str | None:
    completion = group.completions_G[0]
    return None if completion.finish_reason == "failed" else completion.text
