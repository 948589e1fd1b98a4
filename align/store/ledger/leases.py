"""Lease of a store, which gives it at most one live runner.

A lease says who runs; it is taken over when its process is gone, or, on another host, when it has
not been heard of for a while. That test can be wrong (a paused machine wakes up), so nothing rests
on it: what keeps a replaced runner from writing is the attempt number of its round.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil
from sqlalchemy import delete, insert, select, update

from align.errors import StaleAttempt, StoreBusy
from align.store.database.database import Database
from align.store.ledger.tables.core import leases

EXPIRY_S = 900.0
"""Silence after which a runner on another host counts as dead."""

CLOCK_TICK_S = 1.0
"""Largest difference between two readings of one process's start time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lease."""

    token: str
    owner: str
    host: str
    pid: int
    process_started: float
    """Unix seconds; tells a process from a later one with the same pid."""
    heartbeat: float
    """Unix seconds of the last sign of life."""

    def alive(self, now: float) -> bool:
        """Tell if the runner lives: on this host, if its very process is there; elsewhere, if it was
        heard of lately."""
        if self.host != socket.gethostname():
            return now - self.heartbeat < EXPIRY_S
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.process_started) > CLOCK_TICK_S:
                return False
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class Lease:
    """The lease of a runner that lives; `beat` at every step shows other hosts that it does."""

    def __init__(self, database: Database, token: str, clock: Callable[[], float]) -> None:
        self._database, self._token, self._clock = database, token, clock

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            StaleAttempt: another runner took the store over; stop at once.
        """
        own_row = leases.c.token == self._token
        with self._database.write() as connection:
            alive = update(leases).where(own_row).values(heartbeat=self._clock())
            still_held = connection.execute(alive).rowcount == 1
        if not still_held:
            raise StaleAttempt(
                "another runner took this store over",
                where=self._database.where,
                cause="this process was taken for dead, perhaps after a long pause",
                remedy="let the other runner finish; `keel status` shows it",
            )

    def release(self) -> None:
        """Let the next runner in. Harmless after a takeover."""
        with self._database.write() as connection:
            connection.execute(delete(leases).where(leases.c.token == self._token))


@contextmanager
def leased(database: Database, owner: str, clock: Callable[[], float]) -> Iterator[Lease]:
    """Hold the store's lease for the length of a block.

    Raises:
        StoreBusy: another live process holds it.
    """
    token = uuid.uuid4().hex
    own_holder = Holder(
        token=token,
        owner=owner,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        heartbeat=clock(),
    )
    with database.write() as connection:
        row = connection.execute(select(*(c for c in leases.c if c.name != "id"))).one_or_none()
        holder = None if row is None else Holder(**row._mapping)
        if holder is not None and holder.alive(clock()):
            raise StoreBusy(
                f"{holder.owner} is already running on this store (process {holder.pid} on {holder.host})",
                where=database.where,
                remedy="wait for it or stop it; a runner on another host is taken over "
                f"{EXPIRY_S / 60:.0f} minutes after its last sign of life",
            )
        connection.execute(delete(leases))
        connection.execute(insert(leases).values(id=1, **asdict(own_holder)))
    lease = Lease(database, token, clock)
    try:
        yield lease
    finally:
        lease.release()
