"""Kinds of suites. A new one is a new file and one line here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.kinds.calibration import CalibrationSuite
from align.gate.suites.kinds.corpus import CorpusSuite
from align.gate.suites.kinds.harness import HarnessSuite
from align.gate.suites.kinds.likelihood import LikelihoodSuite
from align.gate.suites.kinds.pairs import PairSuite
from align.gate.suites.kinds.sequences import SequenceSuite
from align.gate.suites.kinds.win_rate import WinRateSuite
from align.gate.suites.scale import ScoreScale
from align.gate.suites.suite import Suite, SuiteRule

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

KINDS: dict[str, type[Suite]] = {
    "prompts": AnswerSuite,
    "corpus": CorpusSuite,
    "against": WinRateSuite,
    "text": LikelihoodSuite,
    "harness": HarnessSuite,
    "calibration": CalibrationSuite,
}
"""Kinds by the setting of a campaign file that asks for them, as `SuiteConfig.source` names it."""

EXAMPLES: dict[str, type[SequenceSuite]] = {
    "pairs": PairSuite,
    "ratings": LikelihoodSuite,
    "demonstrations": LikelihoodSuite,
    "texts": LikelihoodSuite,
}
"""Kinds of suites of held-out examples by what a round learns from, as `Algorithm.material` names it."""


def kind_of(rule: SuiteRule) -> type[Suite]:
    """Return the kind of a stored rule; several that share a word measure alike."""
    kinds: tuple[type[Suite], ...] = (*KINDS.values(), *EXAMPLES.values())
    return next(kind for kind in kinds if kind.kind == rule.kind)


def answer_kind_of(spec: RoundConfig) -> type[AnswerSuite]:
    """Return the kind of a round's suite of answers: a corpus metric alone has one of its own."""
    is_corpus = len(spec.rewards) == 1 and spec.rewards[0].is_corpus
    return CorpusSuite if is_corpus else AnswerSuite


def kind_of_round(spec: RoundConfig) -> type[Suite]:
    """Return the kind of the suite that a round leaves behind, as its settings say."""
    if spec.suite.prompts is not None or spec.data is None:
        return answer_kind_of(spec)
    return EXAMPLES[spec.algorithm.material]


def score_scale(rule: SuiteRule) -> ScoreScale:
    """Return the facts about the values of a stored rule's suite, its own range and unit among them."""
    scale = kind_of(rule).scale
    return replace(scale, range=rule.value_range or scale.range, unit=rule.unit or scale.unit)
