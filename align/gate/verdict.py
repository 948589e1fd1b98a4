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
a campaign instead. A verdict carries its inputs and follows from stored results bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from align.config.campaign import GateConfig
from align.gate.checks import MAX_FAILED_SHARE, Against, Check, Items, Role, check
from align.gate.measurement.evaluate import ItemResults
from align.gate.measurement.instrument import instrument_notes
from align.gate.statistics.alpha import alpha_at
from align.gate.statistics.rules import CURRENT_RULE, FIRST_RULE
from align.gate.strict import rate_checks, tolerance_checks
from align.gate.suites.looks import first
from align.gate.suites.suites import Suite, SuiteRule
from align.store.lookback import listed
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Outcome = Literal["accepted", "rejected", "too_few_items", "void"]
"""Outcome of a decision; ``void``: the candidate failed on too many items to be judged."""
NO_TARGET = ""
"""Target of a decision that no round asks for: nothing has to be gained."""
Results = Mapping[str, ItemResults]
Snapshots = Mapping[str, SnapshotId]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictInputs:
    """Everything a verdict follows from, besides the stored results themselves."""

    target: str
    """The round that is decided on, or `NO_TARGET`."""
    gate: GateConfig
    looks: int
    """Number of the decision, or of the declared rounds where it is one of them."""
    suites: tuple[SuiteRule, ...]
    accepted_rounds: tuple[str, ...]
    """Earlier accepted rounds."""
    retired: tuple[str, ...]
    """Suites of rounds that a later one overrode."""
    candidate: Snapshots
    """Snapshot whose results were used, per suite; so for the three comparators."""
    parent: Snapshots
    best: Snapshots
    start: Snapshots
    objections: tuple[str, ...] = ()
    """Objections of the round's watch: signs that the reward was gamed, which no suite can outweigh."""
    left_out: tuple[str, ...] = ()
    """Earlier accepted rounds of templates that were not looked at this time."""
    level: float | None = None
    """Error of this decision if alpha is recycled, or was amended after earlier ones; None: as `alpha_at`
    says."""
    decided_by: int = FIRST_RULE
    """Number of the rule in `align.gate.statistics.rules` by which snapshots were compared."""
    items: Mapping[str, Items] = field(default_factory=dict)
    """Number of first items that were compared, by comparator, of suites that may stop early; files may
    hold more."""


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
        """Return plain JSON values; `from_dict` gives back an equal verdict."""
        plain: dict[str, Any] = _VERDICT.dump_python(self, mode="json")
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        return _VERDICT.validate_python(plain)

    def decides_as(self, other: Verdict) -> bool:
        """Tell if two verdicts agree in every number and outcome; the words for them may differ."""
        return self._numbers() == other._numbers()

    def _numbers(self) -> dict[str, Any]:
        plain = {key: value for key, value in self.to_dict().items() if key != "reasons"}
        words = ("sentence", "needed")
        checks = [{k: v for k, v in check.items() if k not in words} for check in plain["checks"]]
        return {**plain, "checks": checks}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        return cls.from_dict(json.loads(text))


_VERDICT = TypeAdapter(Verdict)


def decide(
    *,
    target: str,
    candidate: Results,
    parent: Results,
    start: Results | None,
    best: Results | None,
    suites: Iterable[Suite | SuiteRule],
    gate: GateConfig,
    accepted_rounds: Collection[str],
    retired: Collection[str] = (),
    looks: int | None = None,
    objections: Sequence[str] = (),
    left_out: Sequence[str] = (),
    level: float | None = None,
    decided_by: int = CURRENT_RULE,
    items: Mapping[str, Items] | None = None,
) -> Verdict:
    """Return the verdict on the candidate of round ``target``.

    Args:
        start: the campaign's start, for a round's suite the round's snapshot.
        best: per suite, the results with the highest mean among accepted snapshots, if any.
        looks: this decision's number in the campaign, retries included; None: the last declared.
        objections: sentences that reject the candidate, whatever its suites say.
        accepted_rounds, retired, left_out, decided_by, items: as in `VerdictInputs`.

    Raises:
        RunError: results are missing or cannot be compared.
    """
    rules, compared, items = _rules(suites, target), _named(parent, best, start), items or {}
    alpha = level_of(gate, looks := max(looks or 0, gate.campaign_rounds), level)
    judged = partial(_suite_checks, candidate, compared, gate.min_gain, alpha)
    role = partial(role_of, target=target, accepted_rounds=accepted_rounds, retired=retired)
    checks = [c for r in rules for c in judged(decided_by, r, role(r), items=items.get(r.name))]
    outcome = "rejected" if objections else _overall(checks)
    notes = [*_unseen(left_out), *instrument_notes(candidate, compared.items())]
    return Verdict(
        accepted=outcome == "accepted" or gate.mode == "observe",
        outcome=outcome,
        checks=tuple(checks),
        reasons=(*objections, *_reasons(checks, outcome, gate, looks, level), *notes),
        inputs=VerdictInputs(
            target=target,
            gate=gate,
            looks=looks,
            suites=rules,
            accepted_rounds=tuple(sorted(accepted_rounds)),
            retired=tuple(sorted(retired)),
            candidate=_snapshots(candidate, rules),
            parent=_snapshots(parent, rules),
            best=_snapshots(best or {}, rules),
            start=_snapshots(start or {}, rules),
            objections=tuple(objections),
            left_out=tuple(left_out),
            level=level,
            decided_by=decided_by,
            items={rule.name: items[rule.name] for rule in rules if rule.name in items},
        ),
    )


def open_against(
    rule: SuiteRule,
    candidate: ItemResults,
    comparators: Mapping[Against, ItemResults],
    *,
    role: Role,
    gate: GateConfig,
    alpha: float,
    items: Items,
) -> set[SnapshotId]:
    """Return the comparators against which more items of a suite could still make a candidate pass.

    Args:
        role: in the decision, ``target`` or ``retention``.
        alpha: error of the decision.
        items: by comparator, the number of first items that were measured.
    """
    assert rule.early is not None
    failing = {
        of.snapshot
        for of in comparators.values()
        if items[of.snapshot] < rule.early.items
        and first(of, n := items[of.snapshot]).failed > MAX_FAILED_SHARE * n
    }
    if failing:  # Of all items their share may be small enough to compare with.
        return {snapshot for snapshot, n in items.items() if n < rule.early.items}
    compared = {who: {rule.name: of} for who, of in comparators.items()}
    checks = _suite_checks(
        {rule.name: candidate},
        compared,
        gate.min_gain,
        alpha,
        CURRENT_RULE,
        rule,
        role,
        items=items,
        with_interval=False,
    )
    return {check.snapshot for check in checks if check.open}


def _named(parent: Results, best: Results | None, start: Results | None) -> dict[Against, Results]:
    """Return the comparators that there are."""
    comparators: dict[Against, Results | None] = {"parent": parent, "best": best, "start": start}
    return {name: results for name, results in comparators.items() if results is not None}


def _rules(suites: Iterable[Suite | SuiteRule], target: str) -> tuple[SuiteRule, ...]:
    rules = tuple(suite if isinstance(suite, SuiteRule) else suite.rule for suite in suites)
    if target != NO_TARGET and target not in {rule.target_of for rule in rules}:
        raise ValueError(f"no suite measures round {target!r}")
    return rules


def level_of(gate: GateConfig, looks: int, level: float | None) -> float:
    """Return the error that a decision may make: ``level`` if it was fixed, else by the rule."""
    if level is not None:
        return level
    return alpha_at(gate.alpha, gate.campaign_rounds, looks, gate.spending)


def decide_from_files(
    inputs: VerdictInputs, locate: Callable[[SnapshotId, str], str | Path]
) -> Verdict:
    """Draw the same verdict again, from the inputs stored with it and the results on disk.

    Args:
        locate: path of the results of (snapshot, suite hash).

    Raises:
        RunError: a file is missing, damaged, or holds results of something else.
    """
    hashes = {rule.name: rule.hash for rule in inputs.suites}

    def load(snapshots: Snapshots) -> dict[str, ItemResults]:
        return {suite: _load(locate, suite, hashes[suite], id) for suite, id in snapshots.items()}

    return decide(
        target=inputs.target,
        candidate=load(inputs.candidate),
        parent=load(inputs.parent),
        start=load(inputs.start) or None,
        best=load(inputs.best) or None,
        suites=inputs.suites,
        gate=inputs.gate,
        accepted_rounds=inputs.accepted_rounds,
        retired=inputs.retired,
        looks=inputs.looks,
        objections=inputs.objections,
        left_out=inputs.left_out,
        level=inputs.level,
        decided_by=inputs.decided_by,
        items=inputs.items,
    )


def role_of(
    rule: SuiteRule, target: str, accepted_rounds: Collection[str], retired: Collection[str] = ()
) -> Role:
    """Return the part of a suite in the decision on round ``target``."""
    if rule.target_of == target:
        return "target"
    if rule.role != "gate" or rule.name in retired:
        return "shown"
    return "retention" if rule.target_of is None or rule.target_of in accepted_rounds else "shown"


def _suite_checks(
    candidate: Results,
    comparators: Mapping[Against, Results],
    min_gain: float,
    alpha: float,
    decided_by: int,
    rule: SuiteRule,
    role: Role,
    *,
    items: Items | None = None,
    with_interval: bool = True,
) -> list[Check]:
    """Return one check per distinct comparator; a snapshot that plays two parts is tested once."""
    if role == "shown" and not (rule.name in candidate and rule.name in comparators["parent"]):
        return []
    measured = _need(candidate, rule, "the candidate")
    whom: Sequence[Against] = tuple(comparators) if role == "retention" else ("parent",)
    before = {against: _need(comparators[against], rule, against) for against in whom}
    by_snapshot: dict[SnapshotId, list[Against]] = {}
    for against, results in before.items():
        by_snapshot.setdefault(results.snapshot, []).append(against)
    checks = [
        check(
            rule,
            measured,
            before[names[0]],
            role=role,
            against=names[0],
            also=names[1:],
            margin=min_gain
            if role == "target"
            else min(margin_against(rule, name) for name in names),
            alpha=alpha,
            decided_by=decided_by,
            items=items,
            with_interval=with_interval,
        )
        for names in by_snapshot.values()
    ]
    if role == "retention":
        parent, start = before["parent"], before.get("start")
        checks += rate_checks(
            rule, measured, parent, alpha, start, decided_by, items, with_interval
        )
        fixed: dict[Against, ItemResults] = {n: before[n] for n in before if n != "best"}
        checks += tolerance_checks(rule, measured, fixed, alpha)
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
    outcomes = {check.outcome for check in checks if check.role != "shown"}
    if outcomes <= {"passed"}:
        return "accepted"
    if "void" in outcomes:
        return "void"
    return "rejected" if outcomes & {"regressed", "not_improved"} else "too_few_items"


def _reasons(
    checks: Iterable[Check], outcome: str, gate: GateConfig, looks: int, level: float | None
) -> tuple[str, ...]:
    reasons = [c.sentence for c in checks if c.role != "shown" and c.outcome != "passed"]
    if gate.mode == "observe" and outcome != "accepted":
        reasons.append("accepted all the same: the gate only observes")
    undeclared = looks > gate.campaign_rounds
    if gate.spending == "recycle":
        if undeclared and level is not None and level <= gate.alpha / looks:
            reasons.append(
                f"decision {looks} of {gate.campaign_rounds} declared, after a rejection: nothing is left "
                f"of alpha, and {level:.3g} exceeds it"
            )
    elif level is not None:
        reasons.append(
            f"alpha was amended after earlier decisions, and what they took stays spent: {level:.3g} here"
        )
    elif undeclared and gate.spending in (None, "campaign"):
        reasons.append(
            f"decision {looks} of {gate.campaign_rounds} declared: alpha is spread over {looks}"
        )
    return tuple(reasons)


def _unseen(left_out: Sequence[str]) -> tuple[str, ...]:
    """Name what the verdict says nothing about."""
    if not left_out:
        return ()
    subject = "round was" if len(left_out) == 1 else "rounds were"
    return (f"{len(left_out)} earlier {subject} not looked at this time: {listed(left_out)}",)


def _snapshots(results: Results, rules: Iterable[SuiteRule]) -> dict[str, SnapshotId]:
    return {rule.name: results[rule.name].snapshot for rule in rules if rule.name in results}


def _need(results: Results, rule: SuiteRule, whose: str) -> ItemResults:
    if rule.name not in results:
        raise RunError(
            f"there are no results of {whose} on suite {rule.name!r}",
            remedy="evaluate that snapshot on every suite before deciding",
        )
    return results[rule.name]


def _load(
    locate: Callable[[SnapshotId, str], str | Path], suite: str, suite_hash: str, id: SnapshotId
) -> ItemResults:
    path = locate(id, suite_hash)
    results = ItemResults.load(path)
    if (results.suite, results.suite_hash, results.snapshot) != (suite, suite_hash, id):
        raise RunError(
            f"these are results of {results.snapshot} on {results.suite!r}, wanted {id} on "
            f"{suite!r}",
            where=str(path),
            remedy="restore the file from a backup, or evaluate the snapshot again",
        )
    return results
