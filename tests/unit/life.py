"""A campaign of nights that is lived through without a model: rounds, rollbacks and collections.

Snapshots are real folders, results real files and verdicts the real gate's; only training is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from align.config.campaign import CampaignConfig
from align.gate.case import Case
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.demands import Demands
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import decide
from align.schedule.claims import stated
from align.store.changes.expand import expanded
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.due import due_claims
from align.store.snapshots.snapshots import Provenance, Snapshot
from align.store.store import Store, open_store
from rollouts.types import SnapshotId
from tests.unit.campaigns import ENFORCE, campaign, rounds

ITEMS = 40
START = {"general": 30}
"""Items of a suite that the base passes; of a night's own suite none."""
NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "manual": True,
    "remember": {"newest": 2, "older": 1},
}


class Life:
    """A store with one plain round and as many nights as are lived.

    Args:
        folder: of the campaign; a store that is there already goes on.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.stated = campaign(
            folder, rounds=rounds({"name": "plain"}, NIGHTLY), gate=ENFORCE, **changes
        )
        if self.stated.is_remote:
            self.stated.folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.stated.ledger_url)
        self.store: Store = open_store(self.stated, self.ledger)
        self.passes: dict[SnapshotId, dict[str, int]] = {}
        self.lived = 0
        self.open()
        base = self._published(None, None, "base")
        self.ledger.record_snapshot(base)
        self.ledger.set_alias_initial("production", base.id)
        self.passes[base.id] = dict(START)
        self._measure(base.id, [self._rule("general", None)])

    @property
    def evidence(self) -> Evidence:
        return Evidence(store=self.store, config=self.config)

    def open(self) -> None:
        """Read the campaign again with the rounds that fell due."""
        self.config: CampaignConfig = expanded(self.stated, self.ledger)
        self.ledger.open_campaign(self.config.name, self.config.content(), self.config.hash())

    def begin(self) -> tuple[int, int, str, SnapshotId]:
        """Begin the next round; return its index, attempt, name and parent."""
        name = "plain" if self.lived == 0 else f"nightly-{self.lived}"
        if self.lived:
            spec = next(s for s in self.stated.rounds if s.name == "nightly")
            claim = {
                "schedule": "nightly",
                "due_key": f"manual/{self.lived}",
                "round": name,
                "spec": json.dumps(stated(spec, name)),
                "reason": "a test",
                "newest": 0,
                "watermark": 0,
                "claimed": datetime.now(UTC).isoformat(timespec="milliseconds"),
            }
            with self.ledger.database.write() as connection:
                connection.execute(insert(due_claims).values(**claim))
            self.open()
        index = next(r.index for r in self.ledger.rounds() if r.name == name)
        parent = self.ledger.alias("production") or ""
        return index, self.ledger.begin_round(index, name, parent), name, parent

    def publish(self, name: str, parent: SnapshotId, label: str) -> Snapshot:
        """Publish and record a candidate, with its prompts to replay."""
        snapshot = self._published(name, parent, label)
        self.ledger.record_snapshot(snapshot)
        path = self.store.paths.replay(snapshot.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"round": name}) + "\n")
        self.store.files.record([path])
        return snapshot

    def round(self, gain: int, loss: int = 0, repairs: int = 0) -> str:
        """Live a round whose candidate passes so many more items of its own suite and loses so many of the
        general one; return its state.

        Args:
            repairs: other candidates that it published on the way.
        """
        index, attempt, name, parent = self.begin()
        for number in range(repairs):
            self.publish(name, parent, f"repair-{number}")
        candidate = self.publish(name, parent, "candidate")
        self.ledger.enter_gating(index, attempt, candidate.id)
        before = self.passes[parent]
        general = max(0, before["general"] - loss)
        self.passes[candidate.id] = {**before, "general": general, name: gain}
        evidence = self.evidence
        accepted = evidence.accepted("policy")
        kept = evidence.look_back(name, "gate").kept
        rules = [self._rule("general", None), self._rule(name, name)]
        rules += [self._rule(n, n) for n in kept]
        known = {s: self._measure(s, rules) for s in self._comparable(evidence, candidate.id)}
        start = {r.name: accepted.get(r.target_of or "", evidence.base) for r in rules}
        best = {
            r.name: max(
                (s for s in known if s != candidate.id), key=lambda s: known[s][r.name].mean
            )
            for r in rules
        }
        verdict = decide(
            Case(
                target=name,
                candidate=known[candidate.id],
                parent=known[parent],
                start={n: known[s][n] for n, s in start.items()},
                best={n: known[s][n] for n, s in best.items()},
                suites=tuple(rules),
                gate=self.config.gate,
                looks=evidence.looks() + 1,
                accepted_rounds=tuple(accepted),
                left_out=evidence.look_back(name, "gate").left_out,
            )
        )
        state = "accepted" if verdict.accepted else "rejected"
        self.ledger.commit_round(
            index, attempt, "accepted" if verdict.accepted else "rejected", candidate.id,
            verdict.to_dict(),
        )  # fmt: skip
        self.lived += 1
        return state

    def _comparable(self, evidence: Evidence, candidate: SnapshotId) -> list[SnapshotId]:
        gone = evidence.ledger.collected()
        known = [evidence.base, *evidence.accepted("policy").values()]
        return [s for s in known if s not in gone] + [candidate]

    def _published(self, name: str | None, parent: SnapshotId | None, label: str) -> Snapshot:
        def write(folder: Path) -> None:
            (folder / "config.json").write_text(json.dumps({"made_by": f"{name}/{label}"}))

        origin = Provenance(kind="model", parent=parent, round=name, extra={"label": label})
        return self.store.snapshots.publish(write, origin)

    def _rule(self, name: str, target: str | None) -> SuiteRule:
        return SuiteRule(
            name=name,
            kind="items",
            role="gate",
            margin=0.3,
            budget=0.4,
            target_of=target,
            hash=f"{name:_<64}",
            demands=Demands(family="general"),
        )

    def _measure(self, snapshot: SnapshotId, rules: list[SuiteRule]) -> Mapping[str, ItemResults]:
        """Measure what is not on record; the weights have to be there for it."""
        missing = {}
        for rule in rules:
            if self.ledger.find_evaluation(snapshot, rule.hash) is None:
                passed = self.passes[snapshot].get(rule.name, 0)
                missing[rule.name] = ItemResults(
                    suite=rule.name,
                    suite_hash=rule.hash,
                    snapshot=snapshot,
                    item_ids=tuple(f"{rule.name}-{i}" for i in range(ITEMS)),
                    values=tuple(float(i < passed) for i in range(ITEMS)),
                    statuses=("scored",) * ITEMS,
                    finishes=("stop",) * ITEMS,
                )
        if missing:
            self.store.snapshots.open(snapshot)
            self.evidence.save(snapshot, missing)
        return {r.name: ItemResults.load(self.evidence.locate(snapshot, r.hash)) for r in rules}
