"""Snapshots that a store still needs, each with the reason.

A snapshot is needed as long as a round that may still come, or a person, can ask for its weights: it is the
base, an alias or the baseline; a round under way began from it or made it; a setting names it; prompts that
are replayed are held to it; a suite that is looked at is measured on it, or had its best result with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from align.config.campaign import RoundConfig
from align.config.store import KeepConfig
from align.gate.evidence import Evidence
from align.store.ledger.baseline import baseline_of
from align.store.ledger.records import EvaluationRecord, RoundRecord
from align.store.lookback import Purpose, Template, nights_of
from rollouts.types import SnapshotId

PURPOSES: tuple[Purpose, ...] = ("gate", "replay")
Need = tuple[SnapshotId | None, str]
"""Snapshot and the reason for which it is needed."""


def needed_snapshots(
    evidence: Evidence, keep: KeepConfig, stated: Sequence[RoundConfig] = ()
) -> dict[SnapshotId, str]:
    """Return the snapshots that have to stay, each with the first reason for it.

    Args:
        keep: what a person wants to keep besides.
        stated: rounds of the campaign file, those that wait for their schedule among them.
    """
    view = _View(evidence, keep, stated)
    needs: dict[SnapshotId, str] = {}
    for reasons in (
        view.named_by_aliases(),
        view.of_open_rounds(),
        view.of_settings(),
        view.looked_back_on(),
        view.of_sealed_suites(),
        view.best_so_far(),
        view.wanted(),
    ):
        for snapshot, reason in reasons:
            if snapshot is not None:
                needs.setdefault(snapshot, reason)
    reference_of = evidence.store.snapshots.reference
    for snapshot in list(needs):
        reference = reference_of(snapshot)
        while reference is not None and reference not in needs:
            needs[reference] = f"snapshot {snapshot[:16]} is stored as its difference"
            snapshot, reference = reference, reference_of(reference)
    return needs


@dataclass(slots=True)
class _View:
    """Records of a campaign, read once."""

    evidence: Evidence
    keep: KeepConfig
    stated: Sequence[RoundConfig]
    """Rounds of the campaign file."""
    templates: dict[str, Template] = field(init=False)
    """Template of every round that is one's."""
    rounds: list[RoundRecord] = field(init=False)
    on_line: dict[str, SnapshotId] = field(init=False)
    """Candidates of accepted rounds that production goes back to, by round."""
    evaluations: list[EvaluationRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.templates = nights_of(self.evidence.ledger.database)
        self.rounds = self.evidence.ledger.rounds()
        self.on_line = self.evidence.accepted("policy")
        self.evaluations = self.evidence.ledger.evaluations()

    def named_by_aliases(self) -> Iterator[Need]:
        ledger = self.evidence.ledger
        yield self.evidence.base, "the base"
        for alias, target in {move.alias: move.target for move in ledger.alias_moves()}.items():
            yield target, f"alias {alias}"
        yield baseline_of(ledger), "the baseline of total budgets"

    def of_open_rounds(self) -> Iterator[Need]:
        """Yield what a round under way goes on from: its parent, all that it published, its lookback."""
        begun = [r for r in self.rounds if not r.closed and r.attempt > 0]
        names = {record.name for record in begun}
        for record in begun:
            yield record.parent, f"round {record.name} began from it and has no verdict"
            lookbacks = [self.evidence.look_back(record.name, p) for p in PURPOSES]
            names_back = {name for lookback in lookbacks for name in lookback.kept}
            for name in sorted(names_back & self.on_line.keys()):
                yield self.on_line[name], f"round {record.name} looks back on round {name}"
        for snapshot in self.evidence.ledger.snapshots():
            if snapshot.round in names:
                yield snapshot.id, f"made by round {snapshot.round}, which has no verdict"

    def of_settings(self) -> Iterator[Need]:
        closed = {record.name for record in self.rounds if record.closed}
        accepted = {r.name: r.candidate for r in self.rounds if r.state == "accepted"}
        for spec in (*self.evidence.config.rounds, *self.stated):
            for setting, _, name in () if spec.name in closed else spec.named_rounds():
                yield accepted.get(name), f"{setting} of round {spec.name}"

    def looked_back_on(self) -> Iterator[Need]:
        """Yield what rounds to come replay and are measured against: every plain round, and the newest
        of each template."""
        parents = {r.name: r.parent for r in self.rounds if r.state == "accepted"}
        for name in self._in_view(self.on_line):
            yield self.on_line[name], f"later rounds look back on round {name}"
            yield parents.get(name), f"round {name} began from it"
        models = self.evidence.accepted("reward_model")
        for name in self._in_view(models):
            yield models[name], f"the reward model of round {name}"

    def of_sealed_suites(self) -> Iterator[Need]:
        sealed = [s.name for s in self.evidence.config.suites if s.role == "sealed"]
        for suite in sealed:
            measured = {e.snapshot for e in self.evaluations if e.suite == suite}
            for snapshot in self.on_line.values():
                if snapshot not in measured:
                    yield snapshot, f"sealed suite {suite} was not opened since"

    def best_so_far(self) -> Iterator[Need]:
        """Yield what candidates have to be as good as, by the last verdicts and by stored results."""
        live = {suite.name for suite in self.evidence.config.suites}
        live |= set(self._in_view(self.on_line))
        latest: dict[tuple[str, str], SnapshotId] = {}
        for record in self.evidence.committed():
            inputs = (record.report or {}).get("inputs", {})
            for against in ("best", "start"):
                latest |= {(against, s): id for s, id in inputs.get(against, {}).items()}
        for (against, suite), snapshot in latest.items():
            if suite in live:
                words = "best so far" if against == "best" else "start"
                yield snapshot, f"the {words} on suite {suite}"
        for result in self._best_results(live):
            yield result.snapshot, f"the best so far on suite {result.suite}"

    def _best_results(self, suites: Collection[str]) -> Iterator[EvaluationRecord]:
        """Yield the best results on the items that production was measured on too, of equal ones the first
        on the line, as the gate chooses: among those over most items, and among all where some stopped
        early."""
        production = self.evidence.ledger.alias("production")
        current = {e.suite_hash for e in self.evaluations if e.snapshot == production}
        collected = self.evidence.ledger.collected()
        line = dict.fromkeys([self.evidence.base, *self.on_line.values()])
        places = {snapshot: index for index, snapshot in enumerate(line)}
        by_hash: dict[str, list[EvaluationRecord]] = {}
        for result in self.evaluations:
            competes = result.snapshot in places and result.snapshot not in collected
            if competes and result.suite in suites and result.suite_hash in current:
                by_hash.setdefault(result.suite_hash, []).append(result)
        for results in by_hash.values():
            results.sort(key=lambda result: places[result.snapshot])
            most = max(result.n for result in results)
            yield max((r for r in results if r.n == most), key=lambda result: result.mean)
            yield max(results, key=lambda result: result.mean)

    def wanted(self) -> Iterator[Need]:
        """Yield what a person asked to keep."""
        accepted = [r.name for r in self.rounds if r.state == "accepted"]
        candidates = {r.name: r.candidate for r in self.rounds}
        for name in self._newest(accepted, self.keep.accepted):
            yield candidates[name], f"keep.accepted: {self.keep.accepted}"
        chosen = {record.candidate for record in self.rounds if record.state == "accepted"}
        others: dict[str, list[SnapshotId]] = {}
        for snapshot in self.evidence.ledger.snapshots():
            if snapshot.round is not None and snapshot.id not in chosen:
                others.setdefault(snapshot.round, []).append(snapshot.id)
        count = len(others) if self.keep.rejected == "all" else self.keep.rejected
        for name in list(others)[len(others) - count :] if count else ():
            for candidate in others[name]:
                yield candidate, f"keep.rejected: {self.keep.rejected}"

    def _in_view(self, names: dict[str, SnapshotId]) -> list[str]:
        """Return the rounds that no template made, and of every template as many as it remembers newest."""
        newest: set[str] = set()
        for template in set(self.templates.values()):
            nights = [name for name in names if self.templates.get(name) == template]
            remember = template.remember
            newest.update(nights if remember is None else nights[-remember.newest :])
        return [name for name in names if name not in self.templates or name in newest]

    def _newest(self, names: Sequence[str], count: int | str) -> list[str]:
        """Return the newest rounds of every template, and of the plain rounds together."""
        if not isinstance(count, int):
            return list(names)
        groups: dict[Template | None, list[str]] = {}
        for name in names:
            groups.setdefault(self.templates.get(name), []).append(name)
        return [name for group in groups.values() for name in group[-count:]]
