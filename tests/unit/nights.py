"""A store of many nights that were decided without a model, for tests of campaigns that do not end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from align.config.campaign import CampaignConfig
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.suite import Suite
from align.schedule.claims import stated
from align.store.changes.expand import expanded
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables import core as tables
from align.store.ledger.tables.due import due_claims
from align.store.store import Store
from rollouts.types import Prompt
from tests.unit.campaigns import campaign, rounds

N = 100
BASE = "f" * 64
NIGHTLY: dict[str, Any] = {"name": "nightly", "manual": True}
PLAIN: dict[str, Any] = {"name": "plain"}


def snapshot_of(number: int) -> str:
    """Candidate of a night, by its number."""
    return sha256(str(number).encode()).hexdigest()


def with_nights(
    folder: Path, count: int, rejected: Sequence[int] = (), more: int = 0, **changes: Any
) -> Evidence:
    """A plain round and then so many nights, all accepted but some; ``more`` fell due and did not run.

    Args:
        changes: of the campaign; ``remember`` of its template, ``report`` of every verdict.
    """
    remember = {"remember": changes.pop("remember")} if "remember" in changes else {}
    report = changes.pop("report", None)
    config = campaign(folder, rounds=rounds(PLAIN, {**NIGHTLY, **remember}), **changes)
    ledger = Ledger(f"sqlite:///{config.folder / 'ledger.db'}")
    with ledger.database.write() as connection:
        for number in range(1, count + more + 1):
            connection.execute(insert(due_claims).values(**_claim(config, number)))
    whole = expanded(config, ledger)
    ledger.open_campaign(whole.name, whole.content(), whole.hash())
    with ledger.database.write() as connection:
        for id in (BASE, *map(snapshot_of, range(count + more + 1))):
            known = {"id": id, "kind": "model", "bytes": 0, "manifest": "{}", "recorded": ""}
            connection.execute(insert(tables.snapshots).values(known))
    ledger.set_alias_initial("production", BASE)
    with ledger.database.write() as connection:
        production = BASE
        for number in range(count + 1):
            accepted = number not in rejected
            _decide(connection, number, production, accepted=accepted, report=report)
            production = snapshot_of(number) if accepted else production
    return Evidence(store=Store(config.folder, ledger), config=whole)


def _decide(
    connection: Connection, number: int, parent: str, *, accepted: bool, report: Any
) -> None:
    """The round with this index has its verdict; index 0 is the plain one.

    Straight into the tables: 300 nights as transactions of their own would take a minute.
    """
    values = {
        "index": number,
        "attempt": 1,
        "name": "plain" if number == 0 else f"nightly-{number}",
        "state": "accepted" if accepted else "rejected",
        "parent": parent,
        "candidate": snapshot_of(number),
        "report": json.dumps(report or {}),
    }
    connection.execute(insert(tables.rounds).values(values))
    if accepted:
        move = {"alias": "production", "previous": parent, "target": snapshot_of(number)}
        move |= {"round": number, "reason": "accepted", "time": ""}
        connection.execute(insert(tables.alias_moves).values(move))


def _claim(config: CampaignConfig, number: int) -> dict[str, Any]:
    spec = next(spec for spec in config.rounds if spec.name == "nightly")
    name = f"nightly-{number}"
    return {
        "schedule": "nightly",
        "due_key": f"manual/{number}",
        "round": name,
        "spec": json.dumps(stated(spec, name)),
        "reason": "a test",
        "newest": 0,
        "watermark": 0,
        "claimed": "2026-11-20T12:00:00.000+00:00",
    }


def suite_of(name: str, target_of: str | None = None) -> Suite:
    prompts = tuple(Prompt(id=f"{name}/{i}", text=str(i), source="new") for i in range(N))
    return AnswerSuite(
        name=name, role="gate", margin=0.1, budget=0.15, target_of=target_of,
        prompts=prompts,
    )  # fmt: skip


def save(evidence: Evidence, snapshot: str, *right_of: tuple[Suite, int]) -> None:
    """A snapshot has so many items of each suite right, the first ones."""
    found = {
        suite.name: ItemResults(
            suite=suite.name,
            suite_hash=suite.hash,
            snapshot=snapshot,
            item_ids=suite.item_ids,
            values=tuple(float(i < right) for i in range(N)),
            statuses=("scored",) * N,
            finishes=("stop",) * N,
        )
        for suite, right in right_of
    }
    evidence.save(snapshot, found)
