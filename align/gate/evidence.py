"""Evidence about every snapshot: per-item results on disk, and verdicts drawn from them alone.

Files lie under ``evaluations/<snapshot>/<suite>.parquet``; the ledger names them. A verdict reads the
files, never memory, so it can be recomputed at any later time and comes out the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import is_
from pathlib import Path

from align.config.campaign import CampaignConfig, GateConfig
from align.data.retirement import RetiredItems, Retirement, emptied, retired_items
from align.gate.case import Case, role_of
from align.gate.checks import Against, Items, Role
from align.gate.forgetting import PathScores, ScoreMatrix
from align.gate.measurement.evaluate import ItemResults
from align.gate.measurement.scores import path_scores, score_rows
from align.gate.reward_models import decide_pairs
from align.gate.statistics.alpha import Decision, level_of, spent_by
from align.gate.statistics.spent import decisions_of, level_after
from align.gate.suites.looks import first, looks
from align.gate.suites.suites import Suite, SuiteRule
from align.gate.verdict import Verdict, decide, decide_from_files, open_against
from align.store.changes.gone import unmeasurable, without_gone
from align.store.changes.settle import settle
from align.store.ledger.baseline import baseline_of
from align.store.ledger.digests import VerdictDigest, digests_of, judged_by_hash, last_best
from align.store.ledger.ledger import EvaluationRecord, Ledger, RoundRecord
from align.store.ledger.lineage import lineage
from align.store.lookback import Lookback, Purpose, look_back, nights_of
from align.store.store import Store, begun_ledger, open_store
from align.store.stored_files import MEASURED_AGAIN, RUN_AGAIN, StoredFiles, checked, fault_of
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedRounds:
    """Candidates of accepted rounds, and what they follow from."""

    rounds: Sequence[RoundRecord]
    production: SnapshotId | None
    candidates: Mapping[str, SnapshotId]

    def follows_from(self, rounds: Sequence[RoundRecord], production: SnapshotId | None) -> bool:
        """Tell if these are the very same records; equal ones would have their reports compared."""
        same = len(self.rounds) == len(rounds) and all(map(is_, self.rounds, rounds))
        return same and self.production == production


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Results by snapshot and suite, for one campaign."""

    store: Store
    config: CampaignConfig
    _accepted: dict[str, AcceptedRounds] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Accepted rounds by what they make, as of the rounds that they follow from."""

    @property
    def folder(self) -> Path:
        """Folder of the store; paths in the ledger are relative to it."""
        return self.store.folder

    @property
    def ledger(self) -> Ledger:
        """The store's ledger."""
        return self.store.ledger

    @property
    def base(self) -> SnapshotId:
        """The snapshot the campaign started from."""
        return self.ledger.first_production()

    @property
    def files(self) -> StoredFiles:
        """Hashes of the store's files."""
        return self.store.files

    @property
    def gate(self) -> GateConfig:
        """Settings of the gate, with the way of spending alpha that suits rounds that end or do not."""
        return spent_by(self.config.gate, endless=bool(nights_of(self.ledger.database)))

    def look_back(
        self, round: str, purpose: Purpose, earlier: Sequence[str] | None = None
    ) -> Lookback:
        """Choose the earlier rounds that a round looks back on, and those that it leaves out.

        Args:
            earlier: the rounds in question, in order; None: all that are accepted. Those whose snapshots
                were collected are left out.
        """
        names = list(self.accepted("policy")) if earlier is None else earlier
        draw = f"{self.config.seed}/{purpose}/{round}"
        collected = self.ledger.collected()
        gone = {n for n, snapshot in self.accepted("policy").items() if snapshot in collected}
        return look_back(names, nights_of(self.ledger.database), draw, gone)

    def missing(
        self,
        snapshot: SnapshotId,
        suites: Sequence[Suite],
        items: Mapping[str, int] | None = None,
    ) -> list[Suite]:
        """Return the suites that were not measured on the snapshot as they stand now, or on too few items.

        Args:
            items: by suite, the number of its first items that are needed; where it is not named, all.
        """
        needed = items or {}
        return [
            suite
            for suite in suites
            if self.measured(snapshot, suite) < needed.get(suite.name, len(suite.item_ids))
        ]

    def measured(self, snapshot: SnapshotId, suite: Suite) -> int:
        """Number of items of a suite, in the order of measuring, that are on record for a snapshot."""
        record = self.ledger.find_evaluation(snapshot, suite.hash)
        return 0 if record is None else record.n

    def save(self, snapshot: SnapshotId, results: Mapping[str, ItemResults]) -> None:
        """Store per-item results and note them in the ledger.

        Results that hold those on record and further items get a file of their own, so that a run that
        dies on the way leaves a file and a record that agree.
        """
        paths: dict[str, str] = {}
        known = {n: self.ledger.find_evaluation(snapshot, r.suite_hash) for n, r in results.items()}
        for name, items in results.items():
            before = known[name]
            more = f"-{len(items.values)}" if before and before.n < len(items.values) else ""
            file = f"{name}-{items.suite_hash[:8]}{more}.parquet"
            path = self.store.paths.evaluation(snapshot, file)
            items.save(path)
            paths[name] = self.store.paths.relative(path)
        self.files.record(self.folder / path for path in paths.values())
        for name, items in results.items():
            before, n = known[name], len(items.values)
            if before is None or before.n >= n:
                self.ledger.record_evaluation(
                    snapshot, name, items.suite_hash, paths[name], n=n, mean=items.mean
                )
                continue
            self.ledger.extend_evaluation(snapshot, items.suite_hash, paths[name], n, items.mean)
            self.store.withdraw([before.path])

    def load(self, snapshot: SnapshotId, suites: Sequence[Suite]) -> dict[str, ItemResults]:
        """Load the stored results of a snapshot."""
        return {s.name: ItemResults.load(self.locate(snapshot, s.hash)) for s in suites}

    def locate(self, snapshot: SnapshotId, suite_hash: str) -> Path:
        """Return the file of the results of one snapshot on one suite."""
        record = self.ledger.find_evaluation(snapshot, suite_hash)
        if record is None:
            raise UserError(
                f"snapshot {snapshot[:16]} was never measured on the suite {suite_hash[:16]}",
                where=str(self.folder),
                remedy="run the campaign with keel run",
            )
        return self.checked(record)

    def checked(self, record: EvaluationRecord) -> Path:
        """Return the file of stored results, once its bytes are those that were written.

        Raises:
            EvidenceError: it is missing, or was changed.
        """
        return checked(self.folder / record.path, record.sha256)

    def faults(self, snapshots: Iterable[SnapshotId | None] | None = None) -> Iterator[str]:
        """Yield a sentence about every file of results that is missing or was changed.

        Args:
            snapshots: those whose results are looked at; None: all.
        """
        records = (
            self.ledger.evaluations()
            if snapshots is None
            else [e for s in snapshots if s is not None for e in self.ledger.evaluations(s)]
        )
        for record in records:
            if fault := fault_of(self.folder / record.path, record.sha256):
                yield f"{record.path} {fault}: {RUN_AGAIN}"

    def replace(self, record: EvaluationRecord, items: ItemResults, fault: str) -> None:
        """Store results that were measured again, since their file ``fault``."""
        path = self.folder / record.path
        items.save(path)
        self.files.record([path], f"{MEASURED_AGAIN}{fault}")
        n = len(items.values)
        self.ledger.replace_evaluation(record.snapshot, record.suite_hash, n, items.mean)

    def looks(self) -> int:
        """Count the decisions so far: one a round, or one for every candidate that it put forward."""
        digests = digests_of(self.ledger.database)
        return sum(digests[r.index, r.attempt].num_looks for r in self.committed())

    def decisions(self) -> list[Decision]:
        """Return every decision so far, in order, with the error that it was allowed."""
        return decisions_of(self.judged())

    def judged(self) -> list[tuple[RoundRecord, VerdictDigest]]:
        """List the committed rounds whose report is a verdict of this gate, with its digest."""
        digests = digests_of(self.ledger.database)
        judged = [(record, digests[record.index, record.attempt]) for record in self.committed()]
        return [(record, digest) for record, digest in judged if digest.gate is not None]

    def amended_level(self, look: int) -> float | None:
        """Return the error of a decision to come if it depends on those before it: alpha is recycled, or
        was amended after some of them.

        None: the rule of `align.gate.statistics.alpha` says it, since all decisions were taken by the same
        settings.
        """
        return level_after(self.judged(), self.gate, look)

    def look_of(self, name: str) -> int:
        """Number of the decision that a committed round ended with, its repairs counted."""
        looks = 0
        digests = digests_of(self.ledger.database)
        for record in self.committed():
            digest = digests[record.index, record.attempt]
            if record.name == name:
                chosen = (look for look, id in digest.tried if id == record.candidate)
                return next(chosen, looks + 1)
            looks += digest.num_looks
        raise ValueError(f"round {name!r} has no verdict")

    def judge(
        self,
        target: str,
        candidate: SnapshotId,
        parent: SnapshotId,
        suites: Sequence[Suite],
        look: int | None = None,
        objections: Sequence[str] = (),
        items: Mapping[str, Items] | None = None,
        compared: Mapping[str, Mapping[Against, SnapshotId]] | None = None,
    ) -> Verdict:
        """Return the gate's verdict on a candidate of round ``target``.

        Args:
            look: number of this decision in the campaign; None: the one after the last round's.
            objections: what was noticed while it was trained and keeps it out.
            items: by suite that stopped early and comparator, the number of first items that decide.
            compared: by such a suite, the comparators that it was measured against; those of the others
                are chosen here.

        Raises:
            ValueError: ``items`` of a suite do not name exactly the snapshots that it is compared with.
        """
        accepted, compared = self.accepted("policy"), compared or {}
        _require_measured(compared, items or {})
        best = {n: chosen["best"] for n, chosen in compared.items() if "best" in chosen}
        best |= {s.name: h for s, h in self._best([s for s in suites if s.name not in best])}
        start = {
            s.name: compared.get(s.name, {}).get("start", self.baseline(s.name)) for s in suites
        }
        look = look or self.looks() + 1
        return decide(
            Case(
                target=target,
                candidate=self.load(candidate, suites),
                parent=self.load(parent, suites),
                start={s.name: self.load(start[s.name], [s])[s.name] for s in suites},
                best={s.name: self.load(best[s.name], [s])[s.name] for s in suites},
                suites=tuple(suite.rule for suite in suites),
                gate=self.gate,
                looks=look,
                accepted_rounds=tuple(accepted),
                retired=tuple(self.retired((*accepted, target))),
                retired_items=self.retired_items((*accepted, target)),
                objections=tuple(objections),
                left_out=(
                    *self.look_back(target, "gate").left_out,
                    *unmeasurable(self.config.rounds, tuple(accepted)),
                ),
                level=self.amended_level(look),
                items=items or {},
            )
        )

    def comparators(self, suites: Sequence[Suite]) -> dict[str, frozenset[SnapshotId]]:
        """Return the snapshots that have to be measured before a candidate is judged, by suite.

        The start and every accepted snapshot; of rounds of templates only production, the suite's anchor
        and what the last verdict on the suite called best. The best is sought among all that were measured,
        as every snapshot was in its own round; on items that rotate in, the best until then competes again.
        """
        nights, accepted = nights_of(self.ledger.database), self.accepted("policy")
        known = {self.base, *accepted.values()} - self.ledger.collected()
        names = [suite.name for suite in suites]
        best = last_best(self.ledger.database, names) if nights else {}
        plain = {self.base, *(s for name, s in accepted.items() if name not in nights)}
        plain.add(self.ledger.alias("production") or self.base)
        return {
            name: frozenset(known & {*plain, self.baseline(name), best.get(name, self.base)})
            for name in names
        }

    def _best(self, suites: Sequence[Suite]) -> Iterator[tuple[Suite, SnapshotId]]:
        """Yield every suite with the first kept snapshot that has the highest mean on its items."""
        collected = self.ledger.collected()
        history = [self.base, *self.accepted("policy").values()]
        history = [snapshot for snapshot in history if snapshot not in collected]
        measured = self.ledger.evaluations_on([suite.hash for suite in suites])
        records = {(e.suite_hash, e.snapshot): e for e in measured}
        needed = self.comparators(suites)
        for suite in suites:
            known = {h: records[suite.hash, h] for h in history if (suite.hash, h) in records}
            if suite.early is not None:
                on = self._common_means(suite, known)
            else:  # What stopped early before the campaign turned to fixed is no mean of the suite.
                on = {h: e.mean for h, e in known.items() if e.n == len(suite.item_ids)}
            for snapshot in needed[suite.name] - on.keys():
                self.locate(snapshot, suite.hash)  # Says what was not measured.
            yield suite, max(on, key=on.__getitem__)

    def _common_means(
        self, suite: Suite, snapshots: Collection[SnapshotId]
    ) -> dict[SnapshotId, float]:
        """Return the means of snapshots over as many first items as accepted ones were judged on.

        They follow from committed verdicts, so they stay the same while a candidate is measured. Without a
        verdict the items are those of the first look.
        """
        counts, accepted = self._judged_on(suite, snapshots)
        common = min(accepted, default=0)
        if not 0 < common <= max(counts.values(), default=0):
            common = min(counts.values(), default=1)
        return {
            snapshot: first(self.load(snapshot, [suite])[suite.name], common).mean
            for snapshot, n in counts.items()
            if n >= common
        }

    def _judged_on(
        self, suite: Suite, snapshots: Collection[SnapshotId]
    ) -> tuple[dict[SnapshotId, int], list[int]]:
        """Return by snapshot the most first items of a suite that a verdict was drawn from, and by accepted
        round the fewest.

        A verdict that names no items was drawn from all, and every accepted snapshot was measured on them.
        """
        assert suite.early is not None
        ends = looks(suite.name, suite.item_ids, suite.item_clusters, suite.early.looks)
        counts = dict.fromkeys(snapshots, ends[0])
        accepted: list[int] = []
        states = {(r.index, r.attempt): r.state for r, _ in self.judged()}
        whole = dict.fromkeys(snapshots, len(suite.item_ids))
        for judged in judged_by_hash(self.ledger.database, suite.hash):
            if (state := states.get((judged.index, judged.attempt))) is None:
                continue
            items = json.loads(judged.items) if judged.items else whole
            counted = {judged.candidate or "": max(items.values()), **items}
            for snapshot in counts.keys() & counted.keys():
                counts[snapshot] = max(counts[snapshot], counted[snapshot])
            if state == "accepted":
                accepted.append(min(items.values()))
        measured = {e.snapshot: e.n for e in self.ledger.evaluations_on([suite.hash])}
        return {s: min(n, measured.get(s, 0)) for s, n in counts.items()}, accepted

    def comparator_snapshots(
        self, target: str, suites: Sequence[Suite], parent: SnapshotId
    ) -> dict[str, dict[Against, SnapshotId]]:
        """Return by suite the snapshots that a candidate of round ``target`` is compared with."""
        role = self.role_in(target)
        compared: dict[str, dict[Against, SnapshotId]] = {
            s.name: {"parent": parent} for s in suites
        }
        for suite, best in self._best([s for s in suites if role(s.rule) == "retention"]):
            compared[suite.name] |= {"best": best, "start": self.baseline(suite.name)}
        return compared

    def role_in(self, target: str) -> Callable[[SuiteRule], Role]:
        """Return what tells the role of a suite in the decision on round ``target``."""
        accepted = tuple(self.accepted("policy"))
        retired = self.retired((*accepted, target))
        return partial(role_of, target=target, accepted_rounds=accepted, retired=retired)

    def level_at(self, look: int) -> float:
        """Return the error that the decision with this number may make."""
        return level_of(self.gate, look, self.amended_level(look))

    def open_against(
        self,
        suite: Suite,
        target: str,
        candidate: SnapshotId,
        compared: Mapping[Against, SnapshotId],
        alpha: float,
        items: Items,
    ) -> set[SnapshotId]:
        """Return the comparators against which more than these items could still make a candidate pass."""
        accepted = tuple(self.accepted("policy"))
        results = {who: self.load(snapshot, [suite]) for who, snapshot in compared.items()}
        return open_against(
            Case(
                target=target,
                candidate=self.load(candidate, [suite]),
                parent=results["parent"],
                best=results.get("best"),
                start=results.get("start"),
                suites=(suite.rule,),
                gate=self.gate,
                accepted_rounds=accepted,
                retired=tuple(self.retired((*accepted, target))),
                level=alpha,
                items={suite.name: items},
            )
        )

    def baseline(self, suite: str) -> SnapshotId:
        """Return the snapshot that a suite's budget counts from.

        It is the campaign's start, or for a round's suite the snapshot of that round. A baseline that a
        person chose takes its place, if it is a later snapshot.
        """
        accepted = self.accepted("policy")
        usual, chosen = accepted.get(suite, self.base), baseline_of(self.ledger)
        if chosen is None:
            return usual
        order = [self.base, *accepted.values()]
        return usual if order.index(chosen) < order.index(usual) else chosen

    def recompute(self, name: str) -> tuple[Verdict, Verdict]:
        """Return a finished round's verdict, drawn again from the stored items, and the one on record."""
        committed = {record.name: record for record in self.committed()}
        report = committed[name].report if name in committed else None
        if report is None:
            known = nearest(name, list(committed))
            raise UserError(f"round {name!r} has no verdict", where="ROUND", remedy=known)
        recorded = Verdict.from_dict(report)
        decide_again = decide_pairs if self._makes(name) == "reward_model" else decide_from_files
        return decide_again(recorded.inputs, self.locate), recorded

    def accepted(self, makes: str) -> dict[str, SnapshotId]:
        """Return the candidate of every accepted round that makes a policy, or a reward model; in order.

        Policies that production was moved back behind are not among them: their rounds count as
        rejected, until production is moved forward again.
        """
        rounds, production = self.ledger.rounds(), self.ledger.alias("production")
        known = self._accepted.get(makes)
        if known is None or not known.follows_from(rounds, production):
            accepted = self._read_accepted(makes, rounds, production)
            known = AcceptedRounds(rounds=rounds, production=production, candidates=accepted)
            self._accepted[makes] = known
        return dict(known.candidates)

    def _read_accepted(
        self, makes: str, records: Sequence[RoundRecord], production: SnapshotId | None
    ) -> dict[str, SnapshotId]:
        rounds = [r for r in records if r.state == "accepted"]
        path = lineage(rounds, production) if makes == "policy" else None
        kinds = {spec.name: spec.algorithm.makes for spec in self.config.rounds}
        return {
            r.name: r.candidate
            for r in rounds
            if r.candidate
            and kinds.get(r.name, "policy") == makes
            and (path is None or r.candidate in path)
        }

    def production_words(self) -> str:
        """Return the round that production is from, and its snapshot, as a person says it."""
        target = self.ledger.alias("production") or self.base
        rounds = self.accepted("policy").items()
        names = (f"round {name!r}" for name, snapshot in rounds if snapshot == target)
        return f"{next(names, 'the base')} ({target[:16]})"

    def due_index(self) -> int:
        """Index of the first round to come; of the next one, where all are over."""
        attempts = self.ledger.attempts()
        free = max((r.index for r in attempts), default=-1) + 1
        return next((r.index for r in self.ledger.rounds() if not r.closed), free)

    def _makes(self, name: str) -> str:
        spec = next((spec for spec in self.config.rounds if spec.name == name), None)
        return "policy" if spec is None else spec.algorithm.makes

    def retired(self, rounds: Sequence[str]) -> frozenset[str]:
        """Return those of these rounds whose suite a later one has retired, whole or item by item."""
        return self.replaced(rounds) | emptied(self.retired_items(rounds))

    def replaced(self, rounds: Sequence[str]) -> frozenset[str]:
        """Return those of these rounds whose preference a later one with the same prompts has replaced."""
        names = set(rounds)
        specs = [
            spec
            for spec in self.config.rounds
            if spec.name in names and spec.algorithm.makes == "policy"
        ]
        return frozenset(
            earlier.name
            for i, later in enumerate(specs)
            if later.mode == "override"
            for earlier in specs[:i]
            if later.replaces(earlier.name) and earlier.asks == later.asks
        )

    def retirements(self, rounds: Collection[str]) -> list[Retirement]:
        """Load what those of these rounds that override others have retired, in the rounds' order.

        Raises:
            EvidenceError: a record is missing, or was changed.
        """
        overriding = {s.name for s in self.config.rounds if s.mode == "override"} & set(rounds)
        paths = [
            self.store.paths.round(record.index, record.name).retired
            for record in (self.ledger.rounds() if overriding else ())
            if record.name in overriding
        ]
        hashes = self.files.hashes() if paths else {}
        on_record = [path for path in paths if self.store.paths.relative(path) in hashes]
        remedy = "restore it from a backup"
        return [Retirement.load(self.files.check(path, remedy)) for path in on_record]

    def retired_items(self, rounds: Collection[str]) -> tuple[RetiredItems, ...]:
        """Return the items of suites that these rounds have retired."""
        return tuple(retired_items(self.retirements(rounds)))

    def committed(self) -> list[RoundRecord]:
        """List the rounds with a verdict, in order."""
        return [r for r in self.ledger.rounds() if r.state in ("accepted", "rejected")]

    def policy_rounds(self) -> list[RoundRecord]:
        """List the committed rounds that make a policy, in order."""
        kinds = {spec.name: spec.algorithm.makes for spec in self.config.rounds}
        return [r for r in self.committed() if kinds.get(r.name, "policy") == "policy"]

    def matrix(self, indices: Container[int] | None = None) -> ScoreMatrix:
        """Return the mean score of every measured snapshot on every suite; unseen cells stay empty.

        Args:
            indices: places in the ledger of the rounds to show; None: all.
        """
        return score_rows(self, indices).matrix()

    def path_scores(self) -> PathScores:
        """Return the scores on the accepted path, for sums over rounds however many there were."""
        return path_scores(self)


def _require_measured(
    compared: Mapping[str, Mapping[Against, SnapshotId]], items: Mapping[str, Items]
) -> None:
    """Raise ValueError unless every comparator was measured, and nothing else that would not decide."""
    for suite, snapshots in compared.items():
        if set(snapshots.values()) != set(items.get(suite, {})):
            raise ValueError(
                f"suite {suite!r} was measured against {sorted(items.get(suite, {}))}, and would be "
                f"compared with {sorted(set(snapshots.values()))}"
            )
    if unchosen := sorted(items.keys() - compared.keys()):
        raise ValueError(f"no comparators were chosen for {unchosen}, which were measured in looks")


def in_view(evidence: Evidence, rounds: Sequence[str]) -> CampaignConfig:
    """Return the campaign without what these rounds do not look at: rounds of templates that the gate
    leaves out, that were rejected, or whose turn is still to come; nor files of decided rounds that are
    gone."""
    config, nights = evidence.config, nights_of(evidence.ledger.database)
    names = {name for round in rounds for name in evidence.look_back(round, "gate").kept}
    names |= {spec.name for spec in config.rounds if spec.name not in nights} | set(rounds)
    decided = {record.name for record in evidence.committed()}
    rounds_in_view = without_gone([s for s in config.rounds if s.name in names], decided)
    return config.model_copy(update={"rounds": rounds_in_view})


def view_of_due(config: CampaignConfig, ledger: Ledger | None) -> CampaignConfig:
    """Return an expanded campaign without the rounds that those to come do not look back on."""
    if ledger is None:
        return config
    evidence = Evidence(store=Store(config.folder, ledger), config=config)
    done = ledger.closed()
    return in_view(evidence, [spec.name for spec in config.rounds if spec.name not in done])


def stored_evidence(config: CampaignConfig) -> Evidence:
    """Return the evidence of a campaign that ran before."""
    ledger = begun_ledger(config)
    if ledger is None:
        raise UserError(
            "there is no campaign in this store yet",
            where=config.store if config.is_remote else str(config.folder),
            remedy="start it with keel run",
        )
    store = open_store(config, ledger)
    store.pull()
    return Evidence(store=store, config=settle(config, ledger).config)
