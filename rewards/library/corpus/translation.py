"""BLEU and chrF of translations by sacrebleu, for one answer and for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.library.corpus.formulas import BleuFormula, ChrfFormula
from rewards.library.corpus.metric import Counts, references_of
from rewards.signatures.options import missing_package, one_of, positive, whole_number
from rollouts.errors import UserError

ORDER = 4
"""Longest n-gram of BLEU, in words."""


class Bleu:
    """BLEU between 0 and 1 against the column ``answer``, one reference or a list of them.

    Of one answer it is sacrebleu's sentence BLEU, with exponential smoothing and effective order; of a
    suite its corpus BLEU. ``tokenize`` is a tokenizer of sacrebleu, such as ``zh``, ``char`` or ``intl``.
    Needs the extra ``metrics``.
    """

    def __init__(self, tokenize: str = "13a", lowercase: bool = False) -> None:
        """Load the tokenizer.

        Raises:
            UserError: sacrebleu has no such tokenizer, or is not installed.
        """
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise missing_package("bleu", "sacrebleu", error, "metrics") from error
        one_of("tokenize", tokenize, sorted(BLEU.TOKENIZERS))
        try:
            self._metric = BLEU(
                tokenize=tokenize, lowercase=lowercase, effective_order=True, force=True
            )
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"the tokenizer {tokenize!r} of sacrebleu cannot be loaded", cause=str(error)
            ) from error
        self.formula = BleuFormula()

    def counts(self, completions: Sequence[ShownCompletion], answer: Sequence[Any]) -> list[Counts]:
        """Return lengths of answer and reference, matched n-grams and n-grams of each answer."""
        rows: list[Counts] = []
        for completion, right in zip(completions, answer, strict=True):
            references = references_of(right)
            if not references:
                rows.append((0.0,) * (2 + 2 * ORDER))
                continue
            score = self._metric.sentence_score(completion_text(completion), references)
            counts = (score.sys_len, score.ref_len, *score.counts, *score.totals)
            rows.append(tuple(map(float, counts)))
        return rows

    def __call__(
        self, completions: Sequence[ShownCompletion], answer: Sequence[Any]
    ) -> list[float | None]:
        """Return the sentence BLEU of each answer."""
        return _sentence_scores(self._metric, completions, answer)


class Chrf:
    """The chrF between 0 and 1 against the column ``answer``, one reference or a list of them.

    Of one answer it is sacrebleu's sentence chrF, of a suite its corpus chrF. ``word_order`` 2 makes it
    chrF++. Needs the extra ``metrics``.
    """

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
    ) -> None:
        """Check the options.

        Raises:
            UserError: one of them is out of range, or sacrebleu is not installed.
        """
        whole_number("char_order", char_order)
        whole_number("word_order", word_order, 0)
        positive("beta", beta)
        try:
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise missing_package("chrf", "sacrebleu", error, "metrics") from error
        self._metric = CHRF(
            char_order=char_order,
            word_order=word_order,
            beta=beta,
            lowercase=lowercase,
            whitespace=whitespace,
        )
        self._orders = char_order + word_order
        self.formula = ChrfFormula(beta=float(beta))

    def counts(self, completions: Sequence[ShownCompletion], answer: Sequence[Any]) -> list[Counts]:
        """Return n-grams of answer, of its nearest reference and of both, order by order."""
        rows: list[Counts] = []
        for completion, right in zip(completions, answer, strict=True):
            references = references_of(right)
            if not references:
                rows.append((0.0,) * (3 * self._orders))
                continue
            # No public function of sacrebleu returns the counts of chrF.
            (counts,) = self._metric._extract_corpus_statistics(
                [completion_text(completion)], [[reference] for reference in references]
            )
            rows.append(tuple(map(float, counts)))
        return rows

    def __call__(
        self, completions: Sequence[ShownCompletion], answer: Sequence[Any]
    ) -> list[float | None]:
        """Return the sentence chrF of each answer."""
        return _sentence_scores(self._metric, completions, answer)


def _sentence_scores(
    metric: Any, completions: Sequence[ShownCompletion], answer: Sequence[Any]
) -> list[float | None]:
    """Return sacrebleu's sentence scores between 0 and 1; None without a reference."""
    return [
        min(1.0, metric.sentence_score(completion_text(c), references).score / 100.0)
        if (references := references_of(right))
        else None
        for c, right in zip(completions, answer, strict=True)
    ]
