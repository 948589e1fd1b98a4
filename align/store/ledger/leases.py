"""Lease of a store, which gives it at most one live runner.

A lease says who runs. Its holder renews it all the time, by counting up a number in the ledger, so whoever
wants the store needs no clock but its own stopwatch. A holder that can be looked at is judged by the kernel
(`rollouts.machine.process`). Any other one, on another host or in another PID namespace, counts as dead
once the number has stood still for as long as the holder said. A ledger's server has a clock of its own,
which tells how long the number stood still before anybody watched: it shortens the wait and never decides
alone.

That can be wrong (a paused machine wakes up), so nothing rests on it: what keeps a replaced runner from
writing is the attempt number of its round.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import psutil
from sqlalchemy import ColumnElement, Connection, cast, delete, func, insert, null, select, update

from align.errors import KeelError, StaleAttempt, StoreBusy
from align.store.database.database import Database
from align.store.database.postgres import is_postgres
from align.store.ledger.tables.core import REAL_8, lease_renewals, leases
from rollouts.machine.process import (
    ProcessIdentity,
    ProcessState,
    named_inside,
    sees_every_process,
    this_process,
)

EXPIRY_S = 120.0
"""Silence after which a runner that cannot be looked at counts as dead, where it states no other."""
OLD_EXPIRY_S = 900.0
"""The same for runners of versions that renew at the end of a step."""
RENEWALS_PER_EXPIRY = 8
"""Renewals that may fail or be late before a live runner counts as dead."""
CLOCK_TICK_S = 1.0
"""Largest difference between two readings of one process's start time by an old version."""

Note = Callable[[str], None]
logger = logging.getLogger(__name__)


def logged(text: str) -> None:
    """Tell a person by a log line, which commands without another way show."""
    logger.warning(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The runner that holds a lease."""

    token: str
    owner: str
    host: str
    process: ProcessIdentity
    renewals: float
    """Number that every renewal changes."""
    silent_s: float
    """Seconds since the last renewal by the clock of the ledger's server; 0 without a server."""
    expiry_s: float
    """Silence after which the holder counts as dead."""
    began: float | None = None
    """Unix seconds of the process's start, the only sign of it that an old version left; None: see
    ``process``."""

    def state(self) -> ProcessState:
        """Look if the holder lives."""
        if self.began is None:
            return self.process.state()
        if self.host != socket.gethostname():
            return "unknown"
        try:
            process = psutil.Process(self.process.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return "ended"
            # A clock that was set since then moves this time, so another one proves nothing.
            return "lives" if abs(process.create_time() - self.began) <= CLOCK_TICK_S else "unknown"
        except psutil.NoSuchProcess:
            # In another PID namespace of this host it would have another number here, or none.
            return (
                "ended"
                if sees_every_process() and not named_inside(self.process.pid)
                else "unknown"
            )

    @property
    def patience_s(self) -> float:
        """Seconds to watch the holder's number before the lease is taken over."""
        shortest_s = 2 * self.expiry_s / RENEWALS_PER_EXPIRY
        return max(shortest_s, self.expiry_s - max(0.0, self.silent_s))


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimant:
    """Process that wants a lease, and its clocks."""

    owner: str = "keel run"
    host: str = field(default_factory=socket.gethostname)
    process: ProcessIdentity = field(default_factory=this_process)
    expiry_s: float = EXPIRY_S
    """Silence after which this runner may be taken for dead."""
    clock: Callable[[], float] = time.time
    """Clock of the host, whose readings are for people and old versions."""
    stopwatch: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    look: Callable[[Holder], ProcessState] = Holder.state
    note: Note = logged


class Lease:
    """The lease of a runner that lives."""

    def __init__(
        self, database: Database, claimant: Claimant, predecessor: ProcessState | None
    ) -> None:
        self._database, self._claimant, self._token = database, claimant, uuid.uuid4().hex
        self._is_lost = False
        self.predecessor = predecessor
        """State of the runner that the lease was taken from: "ended" if it was killed, and "unknown" if it
        was only silent, so that it may live and not know it; None if it had released the lease."""

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            StaleAttempt: another runner took the store over; stop at once.
        """
        if not self.renew():
            raise StaleAttempt(
                "another runner took this store over",
                where=self._database.where,
                cause="this process was taken for dead, perhaps after a long pause",
                remedy="let the other runner finish; `keel status` shows it",
            )

    def renew(self) -> bool:
        """Count the lease's number up; return False if another runner has the lease."""
        if self._is_lost:
            return False
        heartbeat = update(leases).where(leases.c.token == self._token)
        renewal = update(lease_renewals).where(lease_renewals.c.token == self._token)
        next_number = lease_renewals.c.renewals + 1
        with self._database.write() as connection:
            row = connection.execute(heartbeat.values(heartbeat=self._claimant.clock()))
            connection.execute(
                renewal.values(renewals=next_number, renewed=_server_time(self._database))
            )
            self._is_lost = row.rowcount != 1
        return not self._is_lost

    def keep_renewing(self, stopped: Event) -> None:
        """Keep the lease until the event is set, however long a step of the round takes."""
        while not stopped.wait(self._claimant.expiry_s / RENEWALS_PER_EXPIRY):
            # A ledger that cannot be reached now may be in time for the next renewal.
            with suppress(KeelError):
                if not self.renew():
                    return

    def release(self) -> None:
        """Let the next runner in. Harmless after a takeover."""
        with self._database.write() as connection:
            for table in (leases, lease_renewals):
                connection.execute(delete(table).where(table.c.token == self._token))

    def write(self, connection: Connection) -> None:
        """Put this runner into the ledger in the place of whoever was there."""
        claimant = self._claimant
        for table in (leases, lease_renewals):
            connection.execute(delete(table))
        connection.execute(
            insert(leases).values(
                id=1,
                token=self._token,
                owner=claimant.owner,
                host=claimant.host,
                pid=claimant.process.pid,
                process_started=psutil.Process().create_time(),
                heartbeat=claimant.clock(),
            )
        )
        connection.execute(
            insert(lease_renewals).values(
                id=1,
                token=self._token,
                namespace=claimant.process.namespace,
                start_ticks=claimant.process.start_ticks,
                renewals=0,
                renewed=_server_time(self._database),
                expiry_s=claimant.expiry_s,
            )
        )


@contextmanager
def leased(database: Database, claimant: Claimant) -> Iterator[Lease]:
    """Hold the store's lease for the length of a block.

    Raises:
        StoreBusy: another live process holds it.
    """
    lease, stopped = take_lease(database, claimant), Event()
    renewing = Thread(target=lease.keep_renewing, args=[stopped], name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        stopped.set()
        renewing.join()
        lease.release()


def take_lease(database: Database, claimant: Claimant) -> Lease:
    """Take the lease of a store, if need be after watching its holder until it must be dead.

    Raises:
        StoreBusy: a live process holds it.
    """
    watched: Holder | None = None
    until = 0.0
    while True:
        with database.write() as connection:
            holder = _holder(connection, database)
            state = "ended" if holder is None else claimant.look(holder)
            after_silence = False
            if holder is not None and state == "unknown":
                if watched is None:
                    watched, until = holder, claimant.stopwatch() + holder.patience_s
                    claimant.note(_waiting(holder))
                elif (watched.token, watched.renewals) != (holder.token, holder.renewals):
                    state = "lives"
                after_silence = state == "unknown" and claimant.stopwatch() >= until
            if state == "ended" or after_silence:
                lease = Lease(database, claimant, None if holder is None else state)
                lease.write(connection)
                return lease
        if holder is not None and state == "lives":
            raise StoreBusy(
                f"{holder.owner} is already running on this store (process {holder.process.pid} on "
                f"{holder.host})",
                where=database.where,
                remedy="wait for it or stop it",
            )
        look_s = holder.expiry_s / RENEWALS_PER_EXPIRY / 2 if holder is not None else 0.0
        claimant.sleep(max(0.0, min(look_s, until - claimant.stopwatch())))


def _waiting(holder: Holder) -> str:
    return (
        f"{holder.owner} holds this store (process {holder.process.pid} on {holder.host}) and cannot be "
        f"seen from here; taking over if it stays silent for {holder.patience_s:.0f} s"
    )


def _holder(connection: Connection, database: Database) -> Holder | None:
    """Read who holds the lease; None if nobody does."""
    now = _server_time(database).label("now")
    both = leases.outerjoin(lease_renewals, leases.c.token == lease_renewals.c.token)
    renewal = [c for c in lease_renewals.c if c.name not in ("id", "token")]
    columns = [c for c in leases.c if c.name != "id"]
    row = connection.execute(select(*columns, *renewal, now).select_from(both)).one_or_none()
    return None if row is None else _holder_of(row)


def _holder_of(row: Any) -> Holder:
    is_old = row.namespace is None
    return Holder(
        token=row.token,
        owner=row.owner,
        host=row.host,
        process=ProcessIdentity(
            namespace=row.namespace or "", pid=row.pid, start_ticks=row.start_ticks or 0
        ),
        renewals=row.heartbeat if is_old else row.renewals,
        silent_s=0.0 if row.renewed is None or row.now is None else row.now - row.renewed,
        expiry_s=row.expiry_s or OLD_EXPIRY_S,
        began=row.process_started if is_old else None,
    )


def _server_time(database: Database) -> ColumnElement[Any]:
    """Select the Unix seconds of the ledger's server; NULL where it is a file."""
    if not is_postgres(database.engine.url):
        return null()
    return cast(func.extract("epoch", func.clock_timestamp()), REAL_8)
