"""Formulas of corpus metrics: the value of a set of answers as a function of counts that add up over them.

A mean of F1 or BLEU over single answers is another number than the F1 or BLEU of all of them: spans and
n-grams are pooled first. So every item keeps its counts, and any set of items has a value. A formula needs
neither the answers nor the library that counted them, so a stored verdict can be drawn again without both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DIGITS = 12
"""Significant digits of a value: the last bits of a logarithm differ between processors."""

ASPECTS = ("efficacy", "generality", "locality", "portability")
"""Questions about an edit of knowledge: the edited fact as it was taught, the same fact in other words,
facts that must stay, and facts that follow from the edited one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Formula(ABC):
    """A value between 0 and 1, higher is better, of counts that are summed over items."""

    name: ClassVar[str]
    """Key in `FORMULAS`; stored results keep it."""
    unit: ClassVar[str]
    """Unit of a difference in a sentence, such as ``of F1``."""

    @abstractmethod
    def values(self, totals_RK: Array) -> Array:
        """Return the value of each row of summed counts, ``R``."""

    @abstractmethod
    def lost_unit(self, candidate_NK: Array, comparator_NK: Array) -> tuple[Array, Array]:
        """Return the counts, ``K`` each, of a unit that the candidate lost whole and the comparator has.

        Its make-up is the usual one. Its size is the geometric mean of two: that of the unit that a single
        span or word is in on average, by which rare damage to long texts would pass too often, and that of
        the largest unit, by which a few long texts among many short ones would let nothing pass.
        """

    def figures(self, totals_K: Array) -> Mapping[str, float]:
        """Return further figures of the same counts by name; none for most formulas."""
        return {}

    def value(self, counts_NK: Array) -> float:
        """Return the value of a set of items, to digits on which all machines agree."""
        return float(f"{self.values(counts_NK.sum(axis=0)[None, :])[0]:.{DIGITS}g}")

    @property
    def content(self) -> dict[str, Any]:
        """Name and settings, as JSON can write them; `formula_from` reads them."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class F1(Formula):
    """Micro-averaged F1 of counts of true positives, false positives and false negatives."""

    name: ClassVar[str] = "f1"
    unit: ClassVar[str] = "of F1"

    def values(self, totals_RK: Array) -> Array:
        """Return ``2 tp / (2 tp + fp + fn)``; 0 where there is nothing to find and nothing was named."""
        true, false, missed = totals_RK.T
        return _ratio(2.0 * true, 2.0 * true + false + missed)

    def lost_unit(self, candidate_NK: Array, comparator_NK: Array) -> tuple[Array, Array]:
        """Return a unit in which the candidate misses all, and what it names is wrong."""
        both_NK = np.concatenate([candidate_NK, comparator_NK])
        true, false, missed = _unit_of(both_NK, both_NK[:, 0] + both_NK[:, 2])
        wrong, right = (
            np.array([0.0, true + false, true + missed]),
            np.array([true + missed, 0.0, 0.0]),
        )
        return wrong, right

    def figures(self, totals_K: Array) -> Mapping[str, float]:
        """Return precision and recall."""
        true, false, missed = map(float, totals_K)
        return {
            "precision": true / (true + false) if true + false else 0.0,
            "recall": true / (true + missed) if true + missed else 0.0,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BleuFormula(Formula):
    """BLEU of answers' and references' lengths, then matched n-grams, then all n-grams by order.

    Papineni et al. 2002, with sacrebleu's exponential smoothing of orders without a match.
    """

    name: ClassVar[str] = "bleu"
    unit: ClassVar[str] = "of BLEU"

    def values(self, totals_RK: Array) -> Array:
        """Return BLEU between 0 and 1, as sacrebleu's ``corpus_score`` divided by 100."""
        length, reference = totals_RK[:, 0], totals_RK[:, 1]
        order = (totals_RK.shape[1] - 2) // 2
        matched, there = totals_RK[:, 2 : 2 + order], totals_RK[:, 2 + order :]
        halved = 0.5 ** np.cumsum(matched <= 0.0, axis=1)
        precisions = _ratio(np.where(matched > 0.0, matched, halved), there)
        with np.errstate(divide="ignore"):
            mean = np.exp(np.log(precisions).mean(axis=1))
            brevity = np.exp(np.minimum(0.0, 1.0 - reference / np.maximum(length, 1e-300)))
        return np.where((matched > 0.0).any(axis=1), mean * brevity, 0.0)

    def lost_unit(self, candidate_NK: Array, comparator_NK: Array) -> tuple[Array, Array]:
        """Return a reference that the comparator has word for word and the candidate has nothing of."""
        both_NK = np.concatenate([candidate_NK, comparator_NK])
        unit_K = _unit_of(both_NK, both_NK[:, 1])
        order = (len(unit_K) - 2) // 2
        reference = float(unit_K[1])
        ngrams = np.maximum(reference - np.arange(order), 0.0)
        right = np.concatenate([[reference, reference], ngrams, ngrams])
        wrong = np.concatenate([unit_K[:2], np.zeros(order), unit_K[2 + order :]])
        return wrong, right


@dataclass(frozen=True, kw_only=True, slots=True)
class ChrfFormula(Formula):
    """Character n-gram F of n-grams of the answer, of the reference, and of both, order by order.

    Popović 2015, without smoothing, as sacrebleu computes it.
    """

    name: ClassVar[str] = "chrf"
    unit: ClassVar[str] = "of chrF"

    beta: float = 2.0
    """Weight of recall against precision."""

    def values(self, totals_RK: Array) -> Array:
        """Return chrF between 0 and 1, as sacrebleu's ``corpus_score`` divided by 100."""
        answered, there, matched = (totals_RK[:, start::3] for start in range(3))
        counted = (answered > 0.0) & (there > 0.0)
        orders = counted.sum(axis=1)
        precision = _ratio((_ratio(matched, answered) * counted).sum(axis=1), orders)
        recall = _ratio((_ratio(matched, there) * counted).sum(axis=1), orders)
        factor = self.beta**2
        return _ratio((1.0 + factor) * precision * recall, factor * precision + recall)

    def lost_unit(self, candidate_NK: Array, comparator_NK: Array) -> tuple[Array, Array]:
        """Return a reference that the comparator has letter for letter and the candidate has nothing of."""
        both_NK = np.concatenate([candidate_NK, comparator_NK])
        unit_K = _unit_of(both_NK, both_NK[:, 1])
        wrong, right = unit_K.copy(), np.repeat(unit_K[1::3], 3)
        wrong[2::3] = 0.0
        return wrong, right


@dataclass(frozen=True, kw_only=True, slots=True)
class EditScore(Formula):
    """Harmonic mean of the shares of right answers to each kind of question about edits.

    The score of Meng et al. 2022, arXiv 2202.05262, over those of `ASPECTS` that are asked about; their
    right answers, then their questions, by aspect.
    """

    name: ClassVar[str] = "edit_score"
    unit: ClassVar[str] = "of edit score"

    def values(self, totals_RK: Array) -> Array:
        """Return the harmonic mean; 0 where one share is 0."""
        right, questions = totals_RK[:, : len(ASPECTS)], totals_RK[:, len(ASPECTS) :]
        is_asked = questions > 0.0
        with np.errstate(divide="ignore"):
            inverse = np.where(is_asked, 1.0 / _ratio(right, questions), 0.0).sum(axis=1)
        return _ratio(is_asked.sum(axis=1).astype(np.float64), inverse)

    def lost_unit(self, candidate_NK: Array, comparator_NK: Array) -> tuple[Array, Array]:
        """Return questions that the candidate has all wrong, of aspects with the fewest."""
        asked_NA = candidate_NK[:, len(ASPECTS) :]
        totals_A = asked_NA.sum(axis=0)
        at_once = int((asked_NA > 0.0).sum(axis=1).max())
        rarest = np.argsort(np.where(totals_A > 0.0, totals_A, np.inf), kind="stable")[:at_once]
        asked_A = np.zeros(len(ASPECTS))
        asked_A[rarest] = asked_NA.max(axis=0)[rarest]
        return (
            np.concatenate([np.zeros(len(ASPECTS)), asked_A]),
            np.concatenate([asked_A, asked_A]),
        )

    def figures(self, totals_K: Array) -> Mapping[str, float]:
        """Return the share of right answers to each kind of question that was asked."""
        right, questions = totals_K[: len(ASPECTS)], totals_K[len(ASPECTS) :]
        return {
            name: float(right[i] / questions[i])
            for i, name in enumerate(ASPECTS)
            if questions[i] > 0.0
        }


FORMULAS: Mapping[str, type[Formula]] = {
    formula.name: formula for formula in (F1, BleuFormula, ChrfFormula, EditScore)
}


def formula_from(content: Mapping[str, Any]) -> Formula:
    """Return the formula that `Formula.content` describes.

    Raises:
        KeyError: there is none of this name.
    """
    settings = {name: value for name, value in content.items() if name != "name"}
    return FORMULAS[content["name"]](**settings)


def _unit_of(counts_NK: Array, sizes_N: Array) -> Array:
    """Return usual counts, scaled to the size that `Formula.lost_unit` states."""
    total = float(sizes_N.sum())
    if total <= 0.0:
        return np.asarray(counts_NK.mean(axis=0))
    size = math.sqrt(float(sizes_N @ sizes_N) / total * float(sizes_N.max()))
    return np.asarray(counts_NK.sum(axis=0) / total * size)


def _ratio(above: Array, below: Array | NDArray[np.int64]) -> Array:
    """Divide; 0 where the divisor is 0."""
    quotient: Array = np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
    return quotient
