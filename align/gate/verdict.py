"""Verdict on a candidate, which becomes production if it is better at its target and worse at nothing.

    target      the round's own suite: superior to the parent by more than ``gate.min_gain``
    retention   every gate suite and the suite of every earlier accepted round: non-inferior to the
                parent (margin), and to a fixed anchor and the best so far (budget), so that many small
                losses cannot add up; no more answers cut or without a score than either allows; no
                item lost that must not be
    shown       watch suites, future, rejected and retired rounds' suites: never decide

The best so far has a margin of its own, by default as wide as the budget. It is chosen for its high mean:
among snapshots that are all equal it is the luckiest, after twenty of them sqrt(2 * 20 psi / (pi n)) above
the last: 1.6 points on 6,000 items of which psi = 12% change in a round. Held to the margin of one round,
20 candidates that change nothing would be accepted 13 times; by the budget 17 times, 18 without this rule.
What it protects is what was gained since the start, and of that no more may be lost than of what was there
before: hence the budget (``python -m benchmarks.gate``).

All checks must pass, so testing many suites needs no correction; alpha is spread over the looks of
a campaign instead. A verdict carries its inputs and follows from stored results; what one version of Keel
draws, it draws again bit for bit (see `Verdict.decides_as` for verdicts of earlier versions).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from align.gate.case import NO_TARGET, Case, Locate, Results, VerdictInputs
from align.gate.checks import MAX_FAILED_SHARE, Against, Check, CheckOptions, check, distinct
from align.gate.measurement.instrument import instrument_notes
from align.gate.measurement.results import ItemResults
from align.gate.strict import rate_checks, tolerance_checks
from align.gate.suites.looks import first
from align.gate.suites.suite import SuiteRule
from align.store.lookback import first_names, folded, unfolded
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Outcome = Literal["accepted", "rejected", "too_few_items", "void"]
"""Outcome of a decision; ``void``: the candidate failed on too many items to be judged."""
REPLACED = ("paired_t", "exact")
"""Tests whose distribution was once computed in another way."""
NAMES_OF_ROUNDS = ("accepted_rounds", "left_out")
"""Inputs that name every earlier round."""
LISTED = 50
"""Rounds that are named one by one; more are folded, see `align.store.lookback.folded`."""
ROUNDING = 1e-9
"""Relative difference up to which two p values, or two ends of an interval, are the same."""
ZERO = 1e-12
"""Difference up to which they are the same near zero, as small differences of large numbers are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Decision of the gate, with its reasons and its inputs."""

    accepted: bool
    """True if the candidate becomes production; always in ``observe`` mode."""
    outcome: Outcome
    """Result of the evidence, whatever the mode."""
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    """Sentences of what kept the candidate out; notes a reader needs come last."""
    inputs: VerdictInputs

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, long lists of rounds folded; `from_dict` gives back an equal verdict.

        Verdicts that are older than retired items have no such key, and nor have those without any.
        """
        plain: dict[str, Any] = _VERDICT.dump_python(self, mode="json")
        inputs = plain["inputs"]
        if not self.inputs.retired_items:
            del inputs["retired_items"]
        for names in NAMES_OF_ROUNDS:
            if len(whole := inputs[names]) > LISTED:
                in_order = names == "left_out"
                inputs[names] = folded(whole if in_order else sorted(whole, key=_numbered))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        inputs = dict(plain.get("inputs") or {})
        for names in NAMES_OF_ROUNDS:
            if len(entries := inputs.get(names) or ()) != len(whole := unfolded(entries)):
                inputs[names] = sorted(whole) if names == "accepted_rounds" else whole
        return _VERDICT.validate_python({**plain, "inputs": inputs} if inputs else dict(plain))

    @classmethod
    def to_show(cls, plain: Mapping[str, Any]) -> Verdict:
        """Return the verdict without the names of all earlier rounds, for whoever shows many verdicts."""
        unnamed = dict.fromkeys(NAMES_OF_ROUNDS, ())
        return cls.from_dict({**plain, "inputs": {**plain["inputs"], **unnamed}})

    def decides_as(self, other: Verdict) -> bool:
        """Tell if two verdicts agree in every number and outcome; the words for them may differ.

        Numbers agree to the last bit. P values and intervals of Student's t and of the beta distribution,
        which were once computed in another way, agree to nine digits.
        """
        same = self._numbers() == other._numbers()
        return same and all(
            math.isclose(number, other_number, rel_tol=ROUNDING, abs_tol=ZERO)
            if check.test in REPLACED
            else number == other_number
            for check, other_check in zip(self.checks, other.checks, strict=True)
            for number, other_number in zip(
                (check.p, *check.interval), (other_check.p, *other_check.interval), strict=True
            )
        )

    def _numbers(self) -> dict[str, Any]:
        """Return all but words, p values and intervals."""
        plain = {key: value for key, value in self.to_dict().items() if key != "reasons"}
        others = ("sentence", "needed", "p", "interval")
        checks = [{k: v for k, v in check.items() if k not in others} for check in plain["checks"]]
        return {**plain, "checks": checks}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        return cls.from_dict(json.loads(text))


_VERDICT = TypeAdapter(Verdict)


def _numbered(name: str) -> tuple[str, int, str]:
    """Return the key that sorts the rounds of a template by their numbers."""
    head, _, number = name.rpartition("-")
    return (head, int(number), name) if head and number.isdecimal() else (name, 0, name)


def decide(case: Case) -> Verdict:
    """Return the verdict on a case.

    Raises:
        RunError: results are missing or cannot be compared.
    """
    if case.target != NO_TARGET and case.target not in {rule.target_of for rule in case.suites}:
        raise ValueError(f"no suite measures round {case.target!r}")
    checks = tuple(c for rule in case.suites for c in _suite_checks(case, rule))
    outcome = "rejected" if case.objections else _overall(checks)
    notes = instrument_notes(case.candidate, case.comparators.items())
    return Verdict(
        accepted=outcome == "accepted" or case.gate.mode == "observe",
        outcome=outcome,
        checks=checks,
        reasons=(*case.objections, *_reasons(case, checks, outcome), *notes),
        inputs=case.inputs,
    )


def decide_from_files(inputs: VerdictInputs, locate: Locate) -> Verdict:
    """Draw the same verdict again, from the inputs stored with it and the results on disk.

    Raises:
        RunError: a file is missing, damaged, or holds results of something else.
    """
    return decide(Case.from_files(inputs, locate))


def open_against(case: Case) -> set[SnapshotId]:
    """Return the comparators against which more items of the case's one suite could still make it pass."""
    (rule,) = case.suites
    assert rule.early is not None
    items = case.items[rule.name]
    compared = [results[rule.name] for results in case.comparators.values()]
    all_items = rule.early.items

    def failed_on_too_many(results: ItemResults) -> bool:
        n = items[results.snapshot]
        return n < all_items and first(results, n).failed > MAX_FAILED_SHARE * n

    if any(map(failed_on_too_many, compared)):
        # Of all items their share may be small enough to compare with.
        return {snapshot for snapshot, n in items.items() if n < all_items}
    checks = _suite_checks(case, rule, with_interval=False)
    return {check.snapshot for check in checks if check.open}


def _suite_checks(case: Case, rule: SuiteRule, *, with_interval: bool = True) -> list[Check]:
    """Return one check per distinct comparator; a snapshot that plays two parts is tested once."""
    role, comparators, alpha = case.role_of(rule), case.comparators, case.alpha
    if role == "shown" and not (rule.name in case.candidate and rule.name in case.parent):
        return []
    measured = _need(case.candidate, rule, "the candidate")
    whom: Sequence[Against] = tuple(comparators) if role == "retention" else ("parent",)
    before = {against: _need(comparators[against], rule, against) for against in whom}
    options: CheckOptions = {
        "alpha": alpha,
        "decided_by": case.decided_by,
        "items": case.items.get(rule.name),
        "with_interval": with_interval,
    }
    checks = [
        check(
            rule,
            measured,
            comparator,
            role=role,
            against=names[0],
            also=names[1:],
            margin=case.gate.min_gain
            if role == "target"
            else min(margin_against(rule, name) for name in names),
            **options,
        )
        for comparator, names in distinct(before)
    ]
    if role == "retention":
        checks += rate_checks(rule, measured, before, **options)
        checks += tolerance_checks(rule, measured, before, alpha)
    return checks


def margin_against(rule: SuiteRule, against: Against) -> float:
    """Return the largest loss against a comparator, in units of the metric."""
    best = rule.demands.best_margin
    return {
        "parent": rule.margin,
        "best": rule.margin if best is None else best,
        "start": rule.budget,
    }[against]


def _overall(checks: Iterable[Check]) -> Outcome:
    """Return what the checks that decide come to."""
    outcomes = {check.outcome for check in checks if check.role != "shown"}
    if outcomes <= {"passed"}:
        return "accepted"
    if "void" in outcomes:
        return "void"
    return "rejected" if outcomes & {"regressed", "not_improved"} else "too_few_items"


def _reasons(case: Case, checks: Iterable[Check], outcome: Outcome) -> Iterator[str]:
    """Yield what kept the candidate out, then what a reader of the verdict needs to know."""
    yield from (c.sentence for c in checks if c.role != "shown" and c.outcome != "passed")
    gate, level, looks = case.gate, case.level, max(case.looks, case.gate.campaign_rounds)
    if gate.mode == "observe" and outcome != "accepted":
        yield "accepted all the same: the gate only observes"
    undeclared = looks > gate.campaign_rounds
    if gate.spending == "recycle":
        if undeclared and level is not None and level <= gate.alpha / looks:
            yield (
                f"decision {looks} of {gate.campaign_rounds} declared, after a rejection: nothing is left "
                f"of alpha, and {level:.3g} exceeds it"
            )
    elif level is not None:
        yield (
            f"alpha was amended after earlier decisions, and what they took stays spent: {level:.3g} here"
        )
    elif undeclared and gate.spending in (None, "campaign"):
        yield f"decision {looks} of {gate.campaign_rounds} declared: alpha is spread over {looks}"
    yield from (entry.sentence for entry in case.retired_items)
    if unseen := case.left_out:
        subject = "round was" if len(unseen) == 1 else "rounds were"
        yield f"{len(unseen)} earlier {subject} not looked at this time: {first_names(unseen)}"


def _need(results: Results, rule: SuiteRule, whose: str) -> ItemResults:
    """Return the results on a suite, or say whose are missing."""
    if rule.name not in results:
        raise RunError(
            f"there are no results of {whose} on suite {rule.name!r}",
            remedy="evaluate that snapshot on every suite before deciding",
        )
    return results[rule.name]
