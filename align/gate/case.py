"""One case for the gate: a candidate's results and its comparators', and the terms they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from align.config.campaign import GateConfig
from align.data.retirement import RetiredItems
from align.gate.checks import Against, Items, Role
from align.gate.measurement.results import ItemResults
from align.gate.statistics.alpha import level_of
from align.gate.statistics.rules import CURRENT_RULE, FIRST_RULE
from align.gate.suites.suite import SuiteRule
from rollouts.errors import RunError
from rollouts.types import SnapshotId

NO_TARGET = ""
"""Target of a decision that no round asks for: nothing has to be gained."""
Results = Mapping[str, ItemResults]
Snapshots = Mapping[str, SnapshotId]
Locate = Callable[[SnapshotId, str], str | Path]
"""Path of the results of (snapshot, suite hash)."""
AGAIN = "restore the file from a backup, or evaluate the snapshot again"
"""Remedy where a file holds results of something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Terms of a decision: everything that it follows from, besides results."""

    target: str
    """The round that is decided on, or `NO_TARGET`."""
    gate: GateConfig
    looks: int
    """Number of the decision, or of the declared rounds where it is one of them."""
    suites: tuple[SuiteRule, ...]
    accepted_rounds: tuple[str, ...]
    """Earlier accepted rounds."""
    retired: tuple[str, ...]
    """Suites of rounds that a later one overrode, whole."""
    retired_items: tuple[RetiredItems, ...] = ()
    """Items of earlier rounds' suites that a later one overrode; results hold them no more."""
    objections: tuple[str, ...] = ()
    """Objections of the round's watch: signs that the reward was gamed, which no suite can outweigh."""
    left_out: tuple[str, ...] = ()
    """Earlier accepted rounds of templates that were not looked at this time."""
    level: float | None = None
    """Error of this decision if alpha is recycled, or was amended after earlier ones; None: as `alpha_at`
    says."""
    decided_by: int
    """Number of the rule in `align.gate.statistics.rules` by which snapshots were compared."""
    items: Mapping[str, Items] = field(default_factory=dict)
    """Number of first items that were compared, by comparator, of suites that may stop early; files may
    hold more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictInputs(Terms):
    """Everything a verdict follows from, besides the stored results themselves."""

    decided_by: int = FIRST_RULE
    candidate: Snapshots
    """Snapshot whose results were used, per suite; so for the three comparators."""
    parent: Snapshots
    best: Snapshots
    start: Snapshots


@dataclass(frozen=True, kw_only=True, slots=True)
class Case(Terms):
    """Everything a verdict follows from, with the results in memory."""

    looks: int = 0
    """Number of the decision in the campaign, retries included; up to the declared rounds it is one of
    them."""
    retired: tuple[str, ...] = ()
    decided_by: int = CURRENT_RULE
    candidate: Results
    parent: Results
    best: Results | None = None
    """Per suite, the results with the highest mean among accepted snapshots, if any."""
    start: Results | None = None
    """Results of the campaign's start; on a round's suite, of the round's snapshot."""

    @classmethod
    def from_files(cls, inputs: VerdictInputs, locate: Locate) -> Case:
        """Load the results that a verdict's inputs name.

        Raises:
            RunError: a file is missing, damaged, or holds results of something else.
        """
        hashes = {rule.name: rule.hash for rule in inputs.suites}

        def load(snapshots: Snapshots) -> dict[str, ItemResults]:
            return {
                suite: load_results(locate, suite, hashes[suite], snapshot)
                for suite, snapshot in snapshots.items()
            }

        return cls(
            **{term.name: getattr(inputs, term.name) for term in fields(Terms)},
            candidate=load(inputs.candidate),
            parent=load(inputs.parent),
            best=load(inputs.best) or None,
            start=load(inputs.start) or None,
        )

    @property
    def inputs(self) -> VerdictInputs:
        """The case as a verdict keeps it: snapshots in the place of their results."""

        def snapshots(results: Results | None) -> dict[str, SnapshotId]:
            measured = results or {}
            return {r.name: measured[r.name].snapshot for r in self.suites if r.name in measured}

        terms = {term.name: getattr(self, term.name) for term in fields(Terms)} | {
            "looks": max(self.looks, self.gate.campaign_rounds),
            "accepted_rounds": tuple(sorted(self.accepted_rounds)),
            "retired": tuple(sorted(self.retired)),
        }
        return VerdictInputs(
            **terms,
            candidate=snapshots(self.candidate),
            parent=snapshots(self.parent),
            best=snapshots(self.best),
            start=snapshots(self.start),
        )

    @property
    def comparators(self) -> dict[Against, Results]:
        """The comparators that there are."""
        comparators: dict[Against, Results | None] = {
            "parent": self.parent,
            "best": self.best,
            "start": self.start,
        }
        return {who: results for who, results in comparators.items() if results is not None}

    @property
    def alpha(self) -> float:
        """Error that this decision may make."""
        return level_of(self.gate, self.looks, self.level)

    def role_of(self, rule: SuiteRule) -> Role:
        """Return the part of a suite in this decision."""
        return role_of(rule, self.target, self.accepted_rounds, self.retired)


def role_of(
    rule: SuiteRule, target: str, accepted_rounds: Collection[str], retired: Collection[str] = ()
) -> Role:
    """Return the part of a suite in the decision on round ``target``."""
    if rule.target_of == target:
        return "target"
    if rule.role != "gate" or rule.name in retired:
        return "shown"
    return "retention" if rule.target_of is None or rule.target_of in accepted_rounds else "shown"


def load_results(
    locate: Locate, suite: str, suite_hash: str, snapshot: SnapshotId, remedy: str = AGAIN
) -> ItemResults:
    """Load the results of a snapshot on a suite, and nothing else that may lie there.

    Raises:
        RunError: the file is missing, damaged, or holds results of something else.
    """
    path = locate(snapshot, suite_hash)
    results = ItemResults.load(path)
    if (results.suite, results.suite_hash, results.snapshot) != (suite, suite_hash, snapshot):
        raise RunError(
            f"these are results of {results.snapshot} on {results.suite!r}, wanted {snapshot} on "
            f"{suite!r}",
            where=str(path),
            remedy=remedy,
        )
    return results
