"""Counts and values of F1 over sets of what an answer names and what there is to name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from rewards.base import ShownCompletion, completion_text
from rewards.library.corpus.formulas import F1
from rewards.library.corpus.metric import Counts

Named = frozenset[Hashable]
"""Spans or triples, each once."""


class SetF1:
    """Base of rewards that compare a set of named things with the right one."""

    formula = F1()

    def named(self, text: str) -> Named:
        """Return the set that an answer names."""
        raise NotImplementedError

    def there(self, right: Any) -> Named:
        """Return the set that a cell of the column ``answer`` holds."""
        raise NotImplementedError

    def counts(self, completions: Sequence[ShownCompletion], answer: Sequence[Any]) -> list[Counts]:
        """Return the true positives, false positives and false negatives of each answer."""
        return [
            (0.0, 0.0, 0.0) if right is None else self._compared(completion_text(c), right)
            for c, right in zip(completions, answer, strict=True)
        ]

    def __call__(
        self, completions: Sequence[ShownCompletion], answer: Sequence[Any]
    ) -> list[float | None]:
        """Return the F1 of each answer; 1 where there is nothing to name and nothing is named."""
        return [
            None if right is None else _f1(counts)
            for counts, right in zip(self.counts(completions, answer), answer, strict=True)
        ]

    def _compared(self, text: str, right: Any) -> Counts:
        answers, references = self.named(text), self.there(right)
        both = len(answers & references)
        return float(both), float(len(answers) - both), float(len(references) - both)


def _f1(counts: Counts) -> float:
    return 1.0 if not any(counts) else F1().value(np.array([counts]))
