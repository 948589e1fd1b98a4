"""Stored results of a campaign as pandas data frames: matrix, rounds, verdicts, steps and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.api.policies import policy_of
from align.config.campaign import CampaignConfig
from align.config.store import StoreSettings
from align.gate.evidence import Evidence, stored_evidence
from align.gate.measurement.reuse import load_with_texts
from align.gate.verdict import Verdict
from align.report.explanation.explain import explain
from align.report.records.history import entries, record_of
from align.report.summary_numbers import summary_of
from align.store.changes.stored_config import config_in_store
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from pandas import DataFrame, Series


class StoredCampaign:
    """Campaign that has a store. Every call reads it anew, so a run may go on meanwhile.

    Attributes:
        config: settings of the campaign.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        rounds = ", ".join(spec.name for spec in self.config.rounds)
        store = self.config.store if self.config.is_remote else self.config.folder
        return f"{type(self).__name__}({self.config.name!r}, rounds: {rounds}, store: {store})"

    @property
    def evidence(self) -> Evidence:
        """Results of all rounds, as the gate reads them.

        Raises:
            UserError: the campaign has not run yet.
        """
        return stored_evidence(self.config)

    @property
    def production(self) -> SnapshotId:
        """Content hash of the snapshot that is production."""
        evidence = self.evidence
        return evidence.ledger.alias("production") or evidence.base

    def matrix(self, *, rejected: bool = True) -> DataFrame:
        """Return the mean score of every snapshot on every suite; NaN where it was not measured.

        Args:
            rejected: also show candidates that did not become production.
        """
        from pandas import DataFrame, Index

        matrix = self.evidence.matrix()
        rows = [row for row in matrix.rows if rejected or row.accepted]
        names = Index([row.name for row in rows], name="round")
        columns = Index(matrix.suites, name="suite")
        return DataFrame([row.scores for row in rows], names, columns, dtype=float)

    def rounds(self) -> DataFrame:
        """Return a row for every round that the store knows: state, outcome, snapshots, times."""
        from pandas import DataFrame, to_datetime

        rows = [asdict(entry) for entry in entries(self.evidence)]
        frame = DataFrame(rows, columns=[*ROUND_COLUMNS]).rename(columns=ROUND_COLUMNS)
        for column in ("started", "ended"):
            frame[column] = to_datetime(frame[column], utc=True, format="ISO8601")
        return frame.set_index("round")

    def verdict(self, round: str) -> DataFrame:
        """Return a row for every comparison that the gate made for a round.

        The attributes of the frame (``.attrs``) say what follows from them: ``accepted``, ``outcome``,
        ``reasons``.

        Raises:
            UserError: there is no such round, or it has no verdict.
        """
        from pandas import DataFrame

        verdict = self.decision(round)
        rows = [
            {
                **asdict(check),
                "against": ", ".join((check.against, *check.also)),
                "low": check.interval[0],
                "high": check.interval[1],
            }
            for check in verdict.checks
        ]
        frame = DataFrame(rows, columns=[*CHECK_COLUMNS])
        frame.attrs = {
            "round": round,
            "accepted": verdict.accepted,
            "outcome": verdict.outcome,
            "reasons": list(verdict.reasons),
        }
        return frame

    def decision(self, round: str) -> Verdict:
        """Return a round's verdict as the gate drew it, with its inputs.

        Raises:
            UserError: there is no such round, or it has no verdict.
        """
        record = record_of(self.evidence, round)
        if not (record.report or {}).get("inputs"):
            raise UserError(
                f"round {round!r} has no verdict",
                where="round",
                cause=f"its state is {record.state!r}",
                remedy="run the campaign; rounds() shows how far it is",
            )
        return Verdict.from_dict(record.report or {})

    def explain(self, round: str, items: int = 3) -> str:
        """Say in sentences why a round was accepted or not.

        Args:
            items: most items shown as lost, and as won, of a suite.
        """
        return "\n".join(explain(self.evidence, round).lines(items))

    def steps(self, round: str, repair: str = "") -> DataFrame:
        """Return the metrics of every learner step of a round, a column each.

        Args:
            repair: label of a repair of the round; empty: the round itself.

        Raises:
            UserError: there is no such round.
        """
        from pandas import DataFrame, Index

        evidence = self.evidence
        record = record_of(evidence, round)
        steps = evidence.store.paths.round(record.index, record.name).steps(repair)
        return DataFrame([*steps.values()], Index([*steps], name="step", dtype=int))

    def items(self, round: str, suite: str) -> DataFrame:
        """Return a row for every item of a suite, as a round's candidate was measured on it.

        Args:
            round: name of a round, or ``base``.

        Raises:
            UserError: the candidate was not measured on that suite.
        """
        from pandas import DataFrame, Index

        evidence = self.evidence
        is_base = round == "base"
        snapshot = evidence.base if is_base else record_of(evidence, round).candidate
        sealed = {spec.name for spec in self.config.suites if spec.role == "sealed"}
        records = evidence.ledger.evaluations(snapshot) if snapshot else []
        by_suite = {record.suite: record for record in records if record.suite not in sealed}
        if suite not in by_suite:
            raise UserError(
                f"{round!r} was not measured on a suite {suite!r}",
                where="suite",
                remedy=nearest(suite, [*by_suite]) if by_suite else "run the campaign first",
            )
        results = load_with_texts(evidence.checked(by_suite[suite]))
        columns: dict[str, tuple[Any, ...]] = {
            "value": results.values,
            "status": results.statuses,
            "finish": results.finishes,
            "prompt": results.prompts,
            "answer": results.answers,
        }
        known = {name: values for name, values in columns.items() if values}
        return DataFrame(known, Index(results.item_ids, name="item"))

    def load_policy(self, snapshot: str = "production", **options: Any) -> tuple[Any, Any]:
        """Load a snapshot's transformers model, in evaluation mode, and its tokenizer.

        Args:
            snapshot: name of a round, ``production``, ``base``, or a snapshot's id or the id's beginning.
            options: arguments of transformers' ``from_pretrained``, such as ``dtype`` and ``device_map``.

        Raises:
            UserError: there is no such snapshot, or it is a reward model.
            RunError: the snapshot is damaged.
        """
        return policy_of(self.evidence, snapshot, options)

    def summary(self) -> Series[float]:
        """Return the summary numbers of continual learning over accepted rounds: AP, BWT, N80 and others.

        `align.report.summary_numbers.SUMMARY` says what each means; NaN where one could not be formed.
        """
        from pandas import Series

        return Series(summary_of(self.evidence), dtype=float, name=self.config.name)


ROUND_COLUMNS: Mapping[str, str] = {
    "name": "round",
    "index": "index",
    "state": "state",
    "verdict": "outcome",
    "attempt": "attempt",
    "parent": "parent",
    "candidate": "candidate",
    "started": "started",
    "ended": "ended",
    "seconds": "seconds",
    "skipped": "skipped",
}
"""Fields of a round's entry, and what their columns are called."""

CHECK_COLUMNS = (
    "suite", "what", "role", "against", "outcome", "difference", "low", "high", "margin", "p", "alpha",
    "n", "lost", "won", "failed", "test", "family", "snapshot", "sentence",
)  # fmt: skip
"""Fields of a comparison that are columns; ``low`` and ``high`` are the bounds of its interval."""


def open_store(
    store: str | Path,
    *,
    ledger: str = "",
    cache: str = "",
    store_options: Mapping[str, Any] | None = None,
) -> StoredCampaign:
    """Open the store of a campaign that ran before, without its campaign file; it is only read.

    Args:
        store: folder or URL of the store.
        ledger: SQLAlchemy URL of its ledger, where that does not lie in the store.
        cache: local folder for a store with a URL.
        store_options: options of the file system of a store with a URL.

    Raises:
        UserError: there is no store.
    """
    places = StoreSettings(
        name="unknown",
        store=str(store),
        ledger=ledger,
        cache=cache,
        store_options=dict(store_options or {}),
    )
    config = config_in_store(places)
    if config is None:
        raise UserError(
            "there is no campaign in this store yet",
            where=str(store),
            remedy="give the folder that a campaign names as its store; it holds ledger.db",
        )
    return StoredCampaign(config)
