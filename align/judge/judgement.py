"""The judgement of a model: a verdict, the means behind it, and the code that a command exits with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from align.gate.checks import Check
from align.gate.measurement.evaluate import ItemResults
from align.gate.statistics.alpha import spending_sentence
from align.gate.suites.kinds import kind_of
from align.gate.verdict import Outcome, Verdict

EXIT_CODES: Mapping[Outcome, int] = {
    "accepted": 0,
    "rejected": 1,
    "void": 1,
    "too_few_items": 3,
}
"""Exit codes by outcome. Wrong input exits with 2 before there is a judgement."""
INCUMBENT = "the incumbent"
"""Name in sentences of the model that a candidate is compared with; a campaign calls it the parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """One of the two models."""

    name: str
    """Name of the model as the user wrote it."""
    id: str
    """Name of its content; of an endpoint, of its address."""
    reused: tuple[str, ...]
    """Suites whose measurements were on record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LostItem:
    """An item on which the candidate is worse, for people to look at."""

    suite: str
    item: str
    before: float
    after: float
    prompt: str
    incumbent_answer: str
    candidate_answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The verdict on a candidate against an incumbent."""

    candidate: ModelRecord
    incumbent: ModelRecord
    verdict: Verdict
    candidate_results: Mapping[str, ItemResults]
    """Results of the candidate by suite."""
    incumbent_results: Mapping[str, ItemResults]
    chance: float
    """Chance of an equal candidate to be accepted, as planned before anything was measured."""
    notes: tuple[str, ...]
    """Remarks for the reader, such as suites that were left out."""

    @property
    def exit_code(self) -> int:
        """Code that a command ends with; a gate that only observes accepts."""
        return 0 if self.verdict.accepted else EXIT_CODES[self.verdict.outcome]

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        words = {
            "accepted": "accepted",
            "rejected": "rejected",
            "void": "rejected: it failed on too many items to be judged",
            "too_few_items": "too few items to tell",
        }[self.verdict.outcome]
        if self.verdict.accepted and self.verdict.outcome != "accepted":
            words = f"accepted, since the gate only observes; else {words}"
        return f"{self.candidate.name} against {self.incumbent.name}: {words}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences of what kept the candidate out."""
        return tuple(map(of_incumbent, self.verdict.reasons))

    @property
    def figures(self) -> Iterator[str]:
        """Sentences on figures that stand beside the means of suites and decide nothing."""
        for rule in self.verdict.inputs.suites:
            for model, results in (
                (self.candidate, self.candidate_results),
                (self.incumbent, self.incumbent_results),
            ):
                if sentence := kind_of(rule).side_sentence(results[rule.name]):
                    yield f"{rule.name}, {model.name}: {sentence}"

    @property
    def level(self) -> str:
        """The error that the verdict may make, in words."""
        return spending_sentence(self.verdict.inputs.gate, self.verdict.inputs.looks)

    def lost(self, most: int) -> Iterator[LostItem]:
        """Yield at most ``most`` items per failed suite on which the candidate lost most."""
        failed = {c.suite for c in self.verdict.checks if c.outcome != "passed"}
        for suite in sorted(failed):
            after, before = self.candidate_results[suite], self.incumbent_results[suite]
            places = {item: index for index, item in enumerate(before.item_ids)}
            losses = sorted(
                (after.values[i] - before.values[places[item]], i)
                for i, item in enumerate(after.item_ids)
                if after.values[i] < before.values[places[item]]
            )
            for _, i in losses[:most]:
                j = places[after.item_ids[i]]
                yield LostItem(
                    suite=after.suite,
                    item=after.item_ids[i],
                    before=before.values[j],
                    after=after.values[i],
                    prompt=_at(after.prompts, i),
                    incumbent_answer=_at(before.answers, j),
                    candidate_answer=_at(after.answers, i),
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "outcome": self.verdict.outcome,
            "accepted": self.verdict.accepted,
            "exit_code": self.exit_code,
            "candidate": asdict(self.candidate),
            "incumbent": asdict(self.incumbent),
            "level": self.level,
            "chance_of_an_equal_candidate": self.chance,
            "reasons": self.reasons,
            "suites": [
                {
                    "suite": rule.name,
                    "role": rule.role,
                    "kind": rule.kind,
                    "items": len(self.candidate_results[rule.name].values),
                    "candidate": self.candidate_results[rule.name].mean,
                    "incumbent": self.incumbent_results[rule.name].mean,
                    "margin": rule.margin,
                    "hash": rule.hash,
                    "figures": {
                        "candidate": dict(self.candidate_results[rule.name].beside),
                        "incumbent": dict(self.incumbent_results[rule.name].beside),
                    },
                }
                for rule in self.verdict.inputs.suites
            ],
            "checks": [
                {**asdict(check), "sentence": of_incumbent(check.sentence)}
                for check in self.verdict.checks
            ],
            "notes": self.notes,
        }


def of_incumbent(sentence: str) -> str:
    """Say a sentence of the gate of two models without a campaign.

    >>> of_incumbent("general: no change against parent (0 lost)")
    'general: no change against the incumbent (0 lost)'
    """
    return re.sub(r"\b(against|under|note:) parent\b", rf"\1 {INCUMBENT}", sentence)


def title_of(check: Check) -> str:
    """Name what a check compares.

    >>> from types import SimpleNamespace
    >>> title_of(SimpleNamespace(what="zero_tolerance"))
    'items that must not fail'
    """
    return {
        "value": "mean",
        "truncation": "answers not cut",
        "failure": "answers with a score",
        "zero_tolerance": "items that must not fail",
    }[check.what]


def _at(texts: tuple[str, ...], index: int) -> str:
    return texts[index] if texts else ""
