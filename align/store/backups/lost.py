"""Refusal of a lost ledger: a store with snapshots never begins a new life by itself.

A campaign's row is in the ledger before its first snapshot is published, so snapshots beside a ledger that
is missing, empty or without a campaign mean that the ledger was lost.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from align.config.store import StoreSettings
from align.errors import KeelError, LedgerLost, StoreError
from align.store.backups.ledger_backups import LedgerBackups, backups_of, ledger_file
from align.store.paths import StorePaths, inner
from align.store.remote import Remote
from align.store.snapshots.manifest import MANIFEST
from align.store.snapshots.published import FOLDER as SNAPSHOTS

SHOWN = 6
"""Rounds that a message names."""
PATHS = {"stored_files": "path", "evaluations": "path", "snapshots": "id", "rounds": "name"}
"""Columns of a ledger, by table, that become paths below the store."""
SERVER_REMEDY = (
    "restore the database from a backup of its server (pg_restore), or correct ledger; to begin anew, set "
    "store to another place"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupState:
    """Content of a backup that was read whole."""

    campaign: str
    decided: tuple[str, ...]
    """Rounds with a verdict, in order."""
    newest: str
    """ISO 8601, UTC: the time of the last verdict, or of the campaign's beginning."""


def check_not_lost(config: StoreSettings) -> None:
    """Refuse a ledger that is not there although the store has snapshots; a new store passes.

    Raises:
        LedgerLost: the file is missing, empty or no file, or the database has no campaign.
    """
    file = ledger_file(config)
    if file is None:
        return
    fault = _fault_of(file)
    if fault and (rounds := snapshots_in(config)):
        raise lost(config, fault, rounds)


def check_has_campaign(config: StoreSettings, has_campaign: bool) -> None:
    """Refuse a ledger without a campaign although the store has snapshots.

    Raises:
        LedgerLost: that is so.
    """
    if not has_campaign and (rounds := snapshots_in(config)):
        raise lost(config, "holds no campaign", rounds)


def damaged(config: StoreSettings, error: LedgerLost) -> LedgerLost:
    """Return an error about a ledger that cannot be read, with what can bring it back."""
    return lost(config, f"is damaged: {error.what}", snapshots_in(config))


def lost(config: StoreSettings, fault: str, rounds: list[str]) -> LedgerLost:
    """Describe a lost ledger, what is left of the store, and what brings the ledger back.

    Args:
        fault: the end of a sentence about the ledger.
        rounds: rounds that the store has snapshots of.
    """
    names = ", ".join(rounds[:SHOWN]) + (", ..." if len(rounds) > SHOWN else "")
    left = f"; the store still has snapshots of {names}" if rounds else ""
    return LedgerLost(
        f"the ledger {fault}{left}",
        where=_place(config),
        cause="the file was removed or overwritten, or the disk lost it; nothing was written here",
        remedy=_remedy(config),
    )


def snapshots_in(config: StoreSettings) -> list[str]:
    """List the rounds that the store has snapshots of, here or behind its URL; ``the base`` is one."""
    paths = StorePaths(config.folder)
    manifests = sorted(paths.snapshots.glob(f"*/{MANIFEST}"), key=_age)
    rounds = [_round_of(path) for path in manifests]
    if not rounds and config.is_remote:
        # Out of reach it cannot be compared; whoever goes on to use the store says so.
        with suppress(KeelError):
            remote = Remote(config.store, config.store_options)
            rounds = [path.split("/")[1][:12] for path in remote.versions(SNAPSHOTS)]
    return list(dict.fromkeys(rounds))


def read_backup(path: Path) -> BackupState:
    """Check a ledger's file as a whole, and read what it holds; nothing is written.

    Raises:
        LedgerLost: it is no ledger, or damaged.
        StoreError: it names files outside a store.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as ledger:
            faults = [text for (text,) in ledger.execute("PRAGMA integrity_check(3)")]
            faults += [str(row) for row in ledger.execute("PRAGMA foreign_key_check").fetchmany(3)]
            if faults != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(faults))
            name, created = ledger.execute("SELECT name, created FROM campaigns").fetchone()
            rows = ledger.execute(
                "SELECT name, ended FROM rounds WHERE state IN ('accepted', 'rejected') "
                'ORDER BY "index"'
            ).fetchall()
            for relative in _paths_in(ledger):
                inner(relative)
    except (sqlite3.Error, OSError, TypeError) as error:
        raise LedgerLost(
            f"this is no ledger that can be restored ({error})",
            where=str(path),
            remedy="name another backup with --from FILE",
        ) from error
    newest = max((ended for _, ended in rows if ended), default=created)
    return BackupState(campaign=name, decided=tuple(name for name, _ in rows), newest=newest)


def _paths_in(ledger: sqlite3.Connection) -> Iterator[str]:
    """Yield the names of files, snapshots and rounds that a ledger has."""
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master")}
    for table, column in PATHS.items():
        if table in tables:
            rows = ledger.execute(f"SELECT DISTINCT {column} FROM {table}")
            yield from (str(path) for (path,) in rows)


def sound_backups(backups: LedgerBackups) -> Iterator[tuple[Path, BackupState]]:
    """Yield the backups that are whole, newest first, and what they hold."""
    with suppress(KeelError):
        backups.newest()  # Fetched where only the URL has it.
    for path in reversed(backups.files()):
        with suppress(LedgerLost, StoreError):
            yield path, read_backup(path)


def _remedy(config: StoreSettings) -> str:
    begin = "to begin anew, set store to another folder"
    try:
        backups = backups_of(config)
    except KeelError:
        backups = None
    if backups is None:
        return SERVER_REMEDY if ledger_file(config) is None else f"restore the file; {begin}"
    newest = next(sound_backups(backups), None)
    if newest is None:
        return (
            "there is no backup beside it: restore one of your own with keel restore CAMPAIGN --from FILE; "
            f"without one the verdicts are gone, while each snapshot can be a policy.model; {begin}"
        )
    path, state = newest
    count = len(state.decided)
    rounds = "1 decided round" if count == 1 else f"{count} decided rounds"
    return (
        f"keel restore CAMPAIGN brings back the newest backup, {path}, with {rounds} up to "
        f"{state.newest[:19]}, and says what came after it; {begin}"
    )


def _place(config: StoreSettings) -> str:
    file = ledger_file(config)
    return "ledger" if file is None else str(file)


def _fault_of(file: Path) -> str:
    """Return what is wrong with a ledger's file at first sight, as the end of a sentence."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not file.is_file():
        return "is no file"
    # The first commit of a fresh ledger may lie in its log alone.
    log = file.with_name(f"{file.name}-wal")
    return "is empty" if size == 0 and not (log.is_file() and log.stat().st_size) else ""


def _round_of(manifest: Path) -> str:
    try:
        name = json.loads(manifest.read_bytes())["provenance"]["round"]
    except (OSError, ValueError, KeyError, TypeError):
        return manifest.parent.name[:12]
    return name or "the base"


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns
