"""Success of knowledge edits: what was edited, what must stay, and what follows, each asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.base import ShownCompletion
from rewards.library import verifiable
from rewards.library.corpus.formulas import ASPECTS, EditScore
from rewards.library.corpus.metric import Counts
from rewards.signatures.options import one_of
from rollouts.errors import UserError, nearest

Match = Callable[[Sequence[ShownCompletion], Sequence[Any]], list[float | None]]
MATCHES: Mapping[str, Match] = {
    "exact": verifiable.exact_match,
    "normalised": verifiable.normalised_match,
    "contains": verifiable.contains,
}
"""Ways to compare an answer with the column ``answer``, which are rewards of their own."""


class EditSuccess:
    """Answers to questions about edits: 1 where right, else 0; of a suite the harmonic mean by aspect.

    The column ``aspect`` says what a row asks: ``efficacy`` (the edit as it was taught), ``generality`` (in
    other words), ``locality`` (a fact that must stay), ``portability`` (a fact that follows). The column
    ``answer`` holds the right answer after the edit, or a list of them; for locality the one from before.
    ``match`` compares them: exact, normalised or contains.
    """

    def __init__(self, match: str = "normalised") -> None:
        """Choose the comparison.

        Raises:
            UserError: there is no such comparison.
        """
        one_of("match", match, list(MATCHES))
        self._match = MATCHES[match]
        self.formula = EditScore()

    def counts(
        self,
        completions: Sequence[ShownCompletion],
        answer: Sequence[Any],
        aspect: Sequence[Any],
    ) -> list[Counts]:
        """Return 1 at the aspect of each right answer, then 1 at the aspect of each question."""
        rows: list[Counts] = []
        for value, name in zip(self(completions, answer, aspect), aspect, strict=True):
            questions = [float(name == known and value is not None) for known in ASPECTS]
            rows.append((*((value or 0.0) * there for there in questions), *questions))
        return rows

    def __call__(
        self,
        completions: Sequence[ShownCompletion],
        answer: Sequence[Any],
        aspect: Sequence[Any],
    ) -> list[float | None]:
        """Return 1.0 for each right answer, else 0.0; None without a right one to compare with.

        Raises:
            UserError: a row's aspect is none of the four.
        """
        for name in aspect:
            if name not in ASPECTS:
                raise UserError(
                    f"the column 'aspect' holds {name!r}", remedy=nearest(str(name), ASPECTS)
                )
        return self._match(completions, answer)
