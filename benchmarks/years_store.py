"""Store of a campaign whose template ran every night for years, written through the ledger's own tables."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from align.config.campaign import CampaignConfig
    from align.gate.measurement.evaluate import ItemResults

BEGAN = datetime(2026, 1, 1, 3, tzinfo=UTC)
TEMPLATE, STREAM, PLAIN = "nightly", "taste", "plain"
NEWEST, OLDER, REJECTED = 7, 3, 10
"""Rounds that a night looks back on, as the defaults have it; every tenth night is rejected."""
RECENT = 40
"""Newest nights whose results a run reads."""
ROWS_A_FILE = 20_000
"""Rows written at once."""
ITEMS = 30
"""Items of every suite."""
LINKS = 20_000
"""Names of one file: file systems allow 65,000."""


def campaign_text(store: Path) -> str:
    """Return the campaign file: a plain round, a template that reads feedback, and a suite."""
    return f"""\
name: years
policy: {{model: demo://digits}}
store: {store}
defaults:
  sampling: {{max_tokens: 6, group_size: 4, prompts_per_step: 4}}
  replay: {{general_prompts: demo://general}}
  suite: {{items: 30}}
rounds:
  - {{name: {PLAIN}, prompts: demo://rev, rewards: [exact_match], steps: 30}}
  - name: {TEMPLATE}
    when: {{new_pairs: 100000}}
    repeat: true
    algorithm: {{name: dpo, pairs: file}}
    data: {{source: "inbox://{STREAM}", heldout: 0.2}}
    suite: {{prompts: demo://rev, items: 30}}
    steps: 30
suites:
  - {{name: general, prompts: demo://general, metric: exact_match, items: 30}}
gate: {{underpowered: warn}}
"""


@dataclass(frozen=True, slots=True)
class Night:
    """A round of the template."""

    number: int

    @property
    def name(self) -> str:
        """Name in the ledger."""
        return f"{TEMPLATE}-{self.number}" if self.number else PLAIN

    @property
    def accepted(self) -> bool:
        """True if its candidate became production."""
        return self.number % REJECTED != REJECTED - 1

    @property
    def candidate(self) -> str:
        """Snapshot that it made."""
        return digest("candidate", self.number)

    @property
    def suite_hash(self) -> str:
        """Hash of its own suite."""
        return digest("suite", self.name)

    @property
    def began(self) -> datetime:
        """Time at which it fell due."""
        return BEGAN + timedelta(hours=self.number)


def digest(*parts: object) -> str:
    """Return a hash that stands for a content."""
    return sha256("/".join(map(str, parts)).encode()).hexdigest()


def spelt(moment: datetime) -> str:
    """Spell a time as the ledger does."""
    return moment.isoformat(timespec="milliseconds")


class Years:
    """Writer of the store.

    Args:
        folder: an empty one; ``campaign.yaml`` and ``store`` are made in it.
        events: rows of the ledger in all; feedback makes up what the rounds leave open.
    """

    def __init__(self, folder: Path, rounds: int, events: int) -> None:
        from align.config.file import load_campaign
        from align.store.ledger.ledger import Ledger

        self.folder, self.file = folder, folder / "campaign.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(campaign_text(folder / "store"))
        self.config: CampaignConfig = load_campaign(self.file).config
        self.nights = [Night(number) for number in range(rounds)]
        self.events = events
        self.ledger = Ledger(self.config.ledger_url)
        self._base = digest("base")
        self._report = report_text()

    def write(self) -> int:
        """Write all rows; return their number."""
        from align.store.changes.settle import settle
        from align.store.database.connections import keeping_log
        from align.store.ledger.tables import core, due, inbox, logs

        with keeping_log(self.ledger.database.engine):
            tables: Sequence[tuple[Table, Iterator[dict[str, Any]]]] = (
                (core.snapshots, self._snapshots()),
                (due.due_claims, self._claims()),
                (core.rounds, self._rounds()),
                (core.alias_moves, self._moves()),
                (core.evaluations, self._evaluations()),
                (logs.stored_files, self._files()),
                (inbox.inbox_reservations, self._reservations()),
            )
            total = sum(self._fill(table, rows) for table, rows in tables)
            total += self._fill(inbox.inbox_rows, self._feedback(self.events - total - 1))
            with self.ledger.database.write() as connection:
                self._count_stream(connection)
            settled = settle(self.config, self.ledger)
            self.ledger.open_campaign(
                self.config.name, settled.content, settled.content_hash, quiet=settled.due
            )
        return total + 1

    def _fill(self, table: Table, rows: Iterator[dict[str, Any]]) -> int:
        """Insert rows by the thousand; a row without a column has it empty."""
        from itertools import islice

        from sqlalchemy import insert

        total = 0
        while part := list(islice(rows, ROWS_A_FILE)):
            keys = {key for row in part for key in row}
            whole = [{key: row.get(key) for key in keys} for row in part]
            with self.ledger.database.write() as connection:
                connection.execute(insert(table), whole)
            total += len(part)
        return total

    def _snapshots(self) -> Iterator[dict[str, Any]]:
        for id in (self._base, *(night.candidate for night in self.nights)):
            yield {
                "id": id,
                "kind": "model",
                "bytes": 1,
                "manifest": "{}",
                "recorded": spelt(BEGAN),
            }

    def _claims(self) -> Iterator[dict[str, Any]]:
        from align.schedule.claims import stated

        spec = next(spec for spec in self.config.rounds if spec.name == TEMPLATE)
        text = json.dumps(stated(spec, "@"), sort_keys=True)
        for night in self.nights[1:]:
            yield {
                "schedule": TEMPLATE,
                "due_key": f"pairs/{night.suite_hash[:12]}",
                "round": night.name,
                "spec": text.replace('"@"', json.dumps(night.name)),
                "reason": "500 of 500 new rows",
                "newest": night.number,
                "watermark": night.number - 1,
                "claimed": spelt(night.began),
            }

    def _parents(self) -> Iterator[tuple[Night, str]]:
        """Yield every night with production as it found it."""
        production = self._base
        for night in self.nights:
            yield night, production
            if night.accepted:
                production = night.candidate

    def _rounds(self) -> Iterator[dict[str, Any]]:
        accepted: list[str] = []
        for night, parent in self._parents():
            place = {"index": night.number, "name": night.name}
            yield {**place, "attempt": 0, "state": "planned"}
            yield {
                **place,
                "attempt": 1,
                "state": "accepted" if night.accepted else "rejected",
                "parent": parent,
                "candidate": night.candidate,
                "report": self._report_of(night, parent, accepted),
                "started": spelt(night.began),
                "ended": spelt(night.began + timedelta(minutes=20)),
            }
            if night.accepted:
                accepted.append(night.name)

    def _report_of(self, night: Night, parent: str, accepted: Sequence[str]) -> str:
        """Return a verdict's JSON: that of `report_text`, on this night and those that it looks back on."""
        from align.store.lookback import folded

        seen = [earlier.name for earlier in self._looked_at(night)]
        names = {"@target": night.name}
        for number in range(NEWEST + OLDER):
            names[f"@{number}@"] = seen[number] if number < len(seen) else PLAIN
        report = self._report
        for word, name in names.items():
            report = report.replace(digest("suite", word), digest("suite", name))
            report = report.replace(word, name)
        report = report.replace(digest("candidate"), night.candidate)
        report = report.replace(digest("parent"), parent)
        report = report.replace(digest("fixed"), self.nights[0].candidate)
        outcome = "accepted" if night.accepted else "rejected"
        report = report.replace("@outcome", outcome)
        report = report.replace('"@accepted"', json.dumps(folded(accepted))[1:-1])
        left_out = [name for name in accepted if name not in {*seen, PLAIN}]
        report = report.replace('"@left_out"', json.dumps(folded(left_out))[1:-1])
        return report.replace('"@looks"', str(night.number + 1))

    def _looked_at(self, night: Night) -> list[Night]:
        """Choose the newest and some older accepted nights, as `align.store.lookback` does."""
        earlier = [n for n in self.nights[max(1, night.number - 12) : night.number] if n.accepted]
        newest, rng = earlier[-NEWEST:], random.Random(night.number)
        first = newest[0].number if newest else 0
        older = {rng.randrange(1, first) for _ in range(OLDER)} if first > OLDER else set()
        return [*(self.nights[n] for n in sorted(older) if self.nights[n].accepted), *newest]

    def _moves(self) -> Iterator[dict[str, Any]]:
        first = {"alias": "production", "previous": None, "target": self._base, "round": None}
        yield {**first, "reason": "start of the campaign", "time": spelt(BEGAN)}
        for night, parent in self._parents():
            if night.accepted:
                move = {"alias": "production", "previous": parent, "target": night.candidate}
                reason = f"round {night.name!r} was accepted"
                yield {**move, "round": night.number, "reason": reason, "time": spelt(night.began)}

    def _measured(self) -> Iterator[tuple[Night, str, str, str]]:
        """Yield the night, snapshot, suite and hash of every evaluation."""
        general = digest("suite", "general")
        yield self.nights[0], self._base, "general", general
        for night, parent in self._parents():
            for snapshot in dict.fromkeys((self._base, self.nights[0].candidate, parent)):
                yield night, snapshot, night.name, night.suite_hash
            yield night, night.candidate, "general", general
            if night is self.nights[-1]:
                for earlier in (night, self.nights[0], *self._looked_at(night)):
                    yield night, parent, earlier.name, earlier.suite_hash
                    yield night, self.nights[0].candidate, earlier.name, earlier.suite_hash
            for earlier in {night, self.nights[0], *self._looked_at(night)}:
                yield night, night.candidate, earlier.name, earlier.suite_hash

    def _evaluations(self) -> Iterator[dict[str, Any]]:
        known = set()
        for night, snapshot, suite, suite_hash in self._measured():
            if (snapshot, suite_hash) in known:
                continue
            known.add((snapshot, suite_hash))
            yield {
                "snapshot": snapshot,
                "suite": suite,
                "suite_hash": suite_hash,
                "path": f"evaluations/{snapshot[:16]}/{suite}-{suite_hash[:8]}.parquet",
                "n": 30,
                "mean": int(digest(snapshot, suite)[:4], 16) % 31 / 30,
                "recorded": spelt(night.began),
            }

    def _files(self) -> Iterator[dict[str, Any]]:
        """Yield the record of every file, and make the file: a name of one of a few."""
        store = self.config.folder
        first = {
            "suite": "general",
            "suite_hash": digest("suite", "general"),
            "snapshot": self._base,
        }
        results, replayed = results_of(first), b"{}\n"
        snapshots, suites = self._read_by_a_run()
        paths = [
            (
                row["path"],
                results_of(row)
                if row["snapshot"] in snapshots and row["suite"] in suites
                else results,
            )
            for row in self._evaluations()
        ]
        for night in self.nights:
            for kind in ("", "examples-"):
                paths.append((f"replay/{kind}{night.candidate[:16]}.jsonl", replayed))
            paths.append((f"evaluations/references/{night.candidate[:16]}-0.json", replayed))
            self._leave_metrics(store, night)
        links: dict[bytes, tuple[Path, int]] = {}
        for path, content in paths:
            file = store / path
            file.parent.mkdir(parents=True, exist_ok=True)
            source, count = links.get(content, (file, LINKS))
            if count >= LINKS:
                file.write_bytes(content)
                source, count = file, 0
            else:
                os.link(source, file)
            links[content] = (source, count + 1)
            sha = sha256(content).hexdigest()
            row = {"path": path, "bytes": len(content), "sha256": sha, "reason": "written"}
            yield {**row, "time": spelt(BEGAN)}

    def _read_by_a_run(self) -> tuple[set[str], set[str]]:
        """Return the snapshots and suites whose results are their own, and not those of another pair."""
        newest = self.nights[-RECENT:]
        looked_at = {earlier.name for night in newest for earlier in self._looked_at(night)}
        candidates = {night.candidate for night in (self.nights[0], *newest)}
        suites = {"general", PLAIN, *(night.name for night in newest), *looked_at}
        return {self._base, *candidates}, suites

    def _leave_metrics(self, store: Path, night: Night) -> None:
        from align.store.paths import StorePaths

        folder = StorePaths(store).attempt(night.number, night.name, 1)
        folder.path.mkdir(parents=True)
        step = {"rollouts/new": 64.0, "reward/mean": 0.5, "loss": 0.1}
        lines = (json.dumps({"step": n, **step, "reward/mean": n / 30}) for n in range(30))
        folder.metrics.write_text("\n".join(lines) + "\n")

    def _reservations(self) -> Iterator[dict[str, Any]]:
        for night in self.nights[1:]:
            yield {
                "round": night.name, "stream": STREAM, "above": night.number - 1,
                "newest": night.number, "watermark": night.number - 1, "after_rejection": "used",
                "num_rows": 1, "state": "used", "taken": spelt(night.began),
                "ended": spelt(night.began),
            }  # fmt: skip

    def _feedback(self, count: int) -> Iterator[dict[str, Any]]:
        for number in range(1, max(count, len(self.nights)) + 1):
            yield feedback_row(number)
        self._newest = max(count, len(self.nights))

    def _count_stream(self, connection: Connection) -> None:
        from sqlalchemy import insert

        from align.store.ledger.tables.inbox import inbox_streams

        values = {"newest": self._newest, "watermark": self._newest}
        connection.execute(insert(inbox_streams).values(stream=STREAM, **values))


def feedback_row(number: int) -> dict[str, Any]:
    """Return a row of the inbox."""
    digits = " ".join(f"{number:06d}"[-5:])
    pair = {"prompt": f"rev _ {digits} =", "chosen": digits[::-1], "rejected": digits}
    return {
        "stream": STREAM, "number": number, "kind": "pair", "payload": json.dumps(pair),
        "hash": digest("row", number), "user_key": f"user-{number % 997}", "source": "http",
        "received": spelt(BEGAN + timedelta(seconds=number)), "state": "ready",
    }  # fmt: skip


def results_of(row: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file of an evaluation."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.parquet"
        item_results(row["suite"], row["suite_hash"], row["snapshot"]).save(path)
        return path.read_bytes()


def item_results(suite: str, suite_hash: str, snapshot: str) -> ItemResults:
    """Return results of which every other item is right."""
    from align.gate.measurement.evaluate import ItemResults

    return ItemResults(
        suite=suite,
        suite_hash=suite_hash,
        snapshot=snapshot,
        item_ids=tuple(map(str, range(ITEMS))),
        values=tuple(float(i % 2) for i in range(ITEMS)),
        statuses=tuple(repeat("scored", ITEMS)),
        finishes=tuple(repeat("stop", ITEMS)),
    )


def report_text() -> str:
    """Return a verdict that the gate drew, as JSON with words to replace."""
    from align.config.gate import GateConfig
    from align.gate.case import Case
    from align.gate.suites.suite import SuiteRule
    from align.gate.verdict import decide

    names = ["general", PLAIN, "@target", *(f"@{n}@" for n in range(NEWEST + OLDER))]

    def results(snapshot: str) -> Mapping[str, ItemResults]:
        return {name: item_results(name, digest("suite", name), digest(snapshot)) for name in names}

    rules = [
        SuiteRule(
            name=name,
            kind="items",
            role="gate",
            margin=0.05,
            budget=0.1,
            hash=digest("suite", name),
            target_of=None if name == "general" else name,
        )
        for name in names
    ]
    verdict = decide(
        Case(
            target="@target",
            candidate=results("candidate"),
            parent=results("parent"),
            start=results("fixed"),
            best=results("fixed"),
            suites=tuple(rules),
            gate=GateConfig(spending="window"),
            looks=1,
            accepted_rounds=("@accepted",),
            left_out=("@left_out",),
        )
    ).to_dict()
    verdict["inputs"]["looks"] = "@looks"
    verdict["outcome"] = "@outcome"
    return json.dumps(verdict, sort_keys=True)
