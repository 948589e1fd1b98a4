"""Reservations of a stream's rows by a round: fixed when it begins, spent when its verdict is written.

A reservation is a range of numbers. It may move until the round has begun, and not after: every attempt
reads the same rows. The stream's watermark moves in the transaction of the verdict and only from where the
reservation found it, so two rounds never both spend a row. A failed attempt spends nothing, and a round
that reads rows again (``use`` is ``all`` or ``last:N``) takes none of them from rounds that read each once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from align.errors import StaleAttempt
from align.store.database.database import Database
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.inbox import inbox_reservations, inbox_rows, inbox_streams

ReservationState = Literal["held", "used", "returned"]
AfterRejection = Literal["used", "returned"]
MEANINGS: Mapping[ReservationState, str] = {
    "held": "held until its verdict",
    "used": "used by it",
    "returned": "given back to the next round, since it was rejected",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """The rows of ``stream`` with numbers above ``above`` and up to ``newest``."""

    round: str
    stream: str
    above: int
    newest: int
    watermark: int
    """Watermark of the stream, which is ``above``; ``newest`` in a round that reads rows again, since
    its verdict moves nothing."""
    after_rejection: AfterRejection
    """Use of the rows when the gate rejects the round."""
    num_rows: int
    """Usable rows in the range when it was fixed; a purge or a quarantine may have taken some since."""
    state: ReservationState
    """``held`` until the verdict; then ``used``, or ``returned`` to the stream."""
    taken: str
    """ISO 8601, UTC; so is ``ended``."""
    ended: str | None

    @property
    def sentence(self) -> str:
        """Rows that the round read, and what became of them, for people."""
        return (
            f"{self.num_rows:,} rows of inbox://{self.stream}, of the numbers {self.above + 1:,} to "
            f"{self.newest:,}: {MEANINGS[self.state]}"
        )

    @property
    def spends(self) -> bool:
        """True if the round's verdict moves the watermark."""
        return self.watermark == self.above


def reserve(
    connection: Connection,
    round: str,
    stream: str,
    *,
    use: str,
    limit: int | None,
    after_rejection: AfterRejection,
    now: str,
) -> Reservation | None:
    """Reserve the rows of a round, unless it has begun and has its own; return None where there is
    nothing to read.

    A reservation of the same rows by another unfinished round is released, if this one spends them: that
    round reserves again when it runs.

    Args:
        use: ``once``: rows above the watermark; ``all``: also those below; ``last:N``: the newest N. Only
            ``once`` moves it.
        limit: at most so many rows, the oldest first; the rest stays for the next round.
    """
    begun = connection.scalar(select(func.max(rounds.c.attempt)).where(rounds.c.name == round))
    known = reservation_of(connection, round)
    if known is not None and (begun or known.state != "held"):
        return known
    release(connection, round)
    if use == "once":
        rivals = and_(
            inbox_reservations.c.stream == stream,
            inbox_reservations.c.state == "held",
            inbox_reservations.c.watermark == inbox_reservations.c.above,
        )
        connection.execute(delete(inbox_reservations).where(rivals))
    counters = select(inbox_streams).where(inbox_streams.c.stream == stream)
    stream_counters = connection.execute(counters.with_for_update()).one_or_none()
    if stream_counters is None:
        return None
    above, newest = _numbers(connection, stream_counters, use, limit)
    num_rows = connection.scalar(select(func.count()).where(ready(stream, above, newest))) or 0
    if not num_rows:
        return None
    reservation = Reservation(
        round=round,
        stream=stream,
        above=above,
        newest=newest,
        watermark=stream_counters.watermark if use == "once" else newest,
        after_rejection=after_rejection,
        num_rows=num_rows,
        state="held",
        taken=now,
        ended=None,
    )
    values = {name: getattr(reservation, name) for name in Reservation.__dataclass_fields__}
    connection.execute(insert(inbox_reservations).values(values))
    return reservation


def consume(connection: Connection, round: str, verdict: str, now: str) -> None:
    """Spend the rows of a round, if it does spend them, as part of the transaction that writes its verdict.

    Raises:
        StaleAttempt: the watermark is not where the reservation found it; no verdict is written either.
    """
    reservation = reservation_of(connection, round)
    if reservation is None or reservation.state != "held" or verdict == "failed":
        return
    state = reservation.after_rejection if verdict == "rejected" else "used"
    if state == "used" and reservation.spends:
        stands = and_(
            inbox_streams.c.stream == reservation.stream,
            inbox_streams.c.watermark == reservation.watermark,
        )
        moved = update(inbox_streams).where(stands).values(watermark=reservation.newest)
        if connection.execute(moved).rowcount != 1:
            raise StaleAttempt(
                f"the watermark of inbox://{reservation.stream} is no longer {reservation.watermark}, "
                f"where round {round!r} found it",
                cause="another round has used these rows meanwhile",
                remedy="run again: the round will take what is new",
            )
    this = inbox_reservations.c.round == round
    connection.execute(update(inbox_reservations).where(this).values(state=state, ended=now))


def release(connection: Connection, round: str) -> None:
    """Release the rows of a round that will not run to the next one; what it has spent stays spent."""
    reserved = and_(inbox_reservations.c.round == round, inbox_reservations.c.state == "held")
    connection.execute(delete(inbox_reservations).where(reserved))


def reservation_of(connection: Connection, round: str) -> Reservation | None:
    """Return what a round reserved, if anything."""
    row = connection.execute(
        select(inbox_reservations).where(inbox_reservations.c.round == round)
    ).one_or_none()
    return None if row is None else _reservation(row)


def all_reservations(connection: Connection) -> list[Reservation]:
    """List every reservation, in the order they were made."""
    query = select(inbox_reservations).order_by(
        inbox_reservations.c.taken, inbox_reservations.c.round
    )
    return [_reservation(row) for row in connection.execute(query)]


def reservations_by_round(database: Database) -> dict[str, Reservation]:
    """Return what every round that reads feedback reserved, by its name."""
    with database.read() as connection:
        return {reserved.round: reserved for reserved in all_reservations(connection)}


def ready(stream: str, above: int, newest: int | None = None) -> ColumnElement[bool]:
    """Select usable rows of a stream with numbers in a range."""
    wanted = and_(
        inbox_rows.c.stream == stream,
        inbox_rows.c.state == "ready",
        inbox_rows.c.number > above,
    )
    return wanted if newest is None else and_(wanted, inbox_rows.c.number <= newest)


def _numbers(connection: Connection, counters: Any, use: str, limit: int | None) -> tuple[int, int]:
    """Choose the numbers of a stream's rows: those above the first and up to the second."""
    above, newest = counters.watermark if use == "once" else 0, counters.newest
    if use.startswith("last:"):
        numbers = select(inbox_rows.c.number).where(ready(counters.stream, 0))
        count = int(use.removeprefix("last:"))
        before = numbers.order_by(inbox_rows.c.number.desc()).offset(count).limit(1)
        above = connection.scalar(before) or 0
    if limit is not None:
        numbers = select(inbox_rows.c.number).where(ready(counters.stream, above))
        last = numbers.order_by(inbox_rows.c.number).offset(limit - 1).limit(1)
        newest = connection.scalar(last) or newest
    return above, newest


def _reservation(row: Any) -> Reservation:
    return Reservation(**row._mapping)
