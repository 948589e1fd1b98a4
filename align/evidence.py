"""What is known about every snapshot: per-item results on disk, and verdicts drawn from them alone.

Files lie under ``evaluations/<snapshot>/<suite>.parquet``; the ledger names them. A verdict reads the
files, never memory, so it can be recomputed at any later time and comes out the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config import CampaignConfig
from align.gate.evaluate import ItemResults
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.gate.gate import Verdict, decide, decide_from_files
from align.gate.pairs import decide_pairs
from align.gate.suites import Suite
from align.memory.ledger import Ledger, RoundRecord
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Results by snapshot and suite, for one campaign."""

    folder: Path
    """The store; paths in the ledger are relative to it."""
    ledger: Ledger
    config: CampaignConfig

    @property
    def base(self) -> SnapshotId:
        """The snapshot the campaign started from."""
        return self.ledger.alias_moves()[0].target

    def missing(self, snapshot: SnapshotId, suites: Sequence[Suite]) -> list[Suite]:
        """Suites, as they stand now, that were not measured on the snapshot."""
        return [s for s in suites if self.ledger.find_evaluation(snapshot, s.hash) is None]

    def save(self, snapshot: SnapshotId, results: Mapping[str, ItemResults]) -> None:
        """Store per-item results and note them in the ledger."""
        for name, items in results.items():
            path = Path("evaluations") / snapshot[:16] / f"{name}-{items.suite_hash[:8]}.parquet"
            items.save(self.folder / path)
            self.ledger.record_evaluation(
                snapshot, name, items.suite_hash, str(path), n=len(items.values), mean=items.mean
            )

    def load(self, snapshot: SnapshotId, suites: Sequence[Suite]) -> dict[str, ItemResults]:
        """Stored results of a snapshot."""
        return {s.name: ItemResults.load(self.locate(snapshot, s.hash)) for s in suites}

    def locate(self, snapshot: SnapshotId, suite_hash: str) -> Path:
        """File of the results of one snapshot on one suite."""
        record = self.ledger.find_evaluation(snapshot, suite_hash)
        if record is None:
            raise UserError(
                f"snapshot {snapshot[:16]} was never measured on the suite {suite_hash[:16]}",
                where=str(self.folder),
                remedy="run the campaign with keel run",
            )
        return self.folder / record.path

    def judge(
        self, target: str, candidate: SnapshotId, parent: SnapshotId, suites: Sequence[Suite]
    ) -> Verdict:
        """The gate's verdict on a candidate of round ``target``."""
        accepted = self.accepted("policy")
        history = [self.base, *accepted.values()]
        known = {s: self.load(s, suites) for s in dict.fromkeys([*history, parent, candidate])}
        return decide(
            target=target,
            candidate=known[candidate],
            parent=known[parent],
            start={s.name: known[accepted.get(s.name, self.base)][s.name] for s in suites},
            best={
                s.name: max((known[h][s.name] for h in history), key=lambda items: items.mean)
                for s in suites
            },
            suites=suites,
            gate=self.config.gate,
            looks=len(self.committed()) + 1,
            accepted_rounds=tuple(accepted),
            retired=self.retired((*accepted, target)),
        )

    def recompute(self, name: str) -> tuple[Verdict, Verdict]:
        """A finished round's verdict drawn again from the stored items, and the one on record."""
        reports = {r.name: r.report for r in self.committed()}
        report = reports.get(name)
        if report is None:
            raise UserError(
                f"round {name!r} has no verdict", where="ROUND", remedy=nearest(name, list(reports))
            )
        recorded = Verdict.from_dict(report)
        decide_again = decide_pairs if self._makes(name) == "reward_model" else decide_from_files
        return decide_again(recorded.inputs, self.locate), recorded

    def accepted(self, makes: str) -> dict[str, SnapshotId]:
        """Candidate of every accepted round that makes a policy, or a reward model; in order."""
        return {
            r.name: r.candidate
            for r in self.committed()
            if r.state == "accepted" and r.candidate and self._makes(r.name) == makes
        }

    def _makes(self, name: str) -> str:
        spec = next((spec for spec in self.config.rounds if spec.name == name), None)
        return "policy" if spec is None else spec.algorithm.makes

    def retired(self, rounds: Sequence[str]) -> frozenset[str]:
        """Of these rounds, those whose preference a later one with the same prompts has replaced."""
        specs = [
            spec
            for spec in self.config.rounds
            if spec.name in rounds and spec.algorithm.makes == "policy"
        ]
        return frozenset(
            earlier.name
            for i, later in enumerate(specs)
            if later.mode == "override"
            for earlier in specs[:i]
            if earlier.asks == later.asks
        )

    def committed(self) -> list[RoundRecord]:
        """Rounds with a verdict, in order."""
        return [r for r in self.ledger.rounds() if r.state in ("accepted", "rejected")]

    def matrix(self) -> ScoreMatrix:
        """Mean score of every measured snapshot on every suite; unseen cells stay empty."""
        means = {(e.snapshot, e.suite): e.mean for e in self.ledger.evaluations()}
        names = tuple(
            dict.fromkeys(
                [s.name for s in self.config.suites]
                + [r.name for r in self.config.rounds if r.algorithm.makes == "policy"]
            )
        )
        rows = [("base", self.base, True)]
        rows += [
            (r.name, r.candidate or "", r.state == "accepted")
            for r in self.committed()
            if self._makes(r.name) == "policy"
        ]
        return ScoreMatrix(
            rows=tuple(
                MatrixRow(
                    name=name,
                    accepted=accepted,
                    scores=tuple(means.get((snapshot, suite)) for suite in names),
                )
                for name, snapshot, accepted in rows
            ),
            suites=names,
            retired=self.retired([name for name, _, accepted in rows if accepted]),
        )


def stored_evidence(config: CampaignConfig) -> Evidence:
    """The evidence of a campaign that ran before."""
    path = config.folder / "ledger.db"
    if not path.is_file():
        raise UserError(
            "there is no campaign in this store yet",
            where=str(config.folder),
            remedy="start it with keel run",
        )
    return Evidence(folder=config.folder, ledger=Ledger(f"sqlite:///{path}"), config=config)
