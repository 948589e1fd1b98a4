"""Reservations of a stream's rows by a round: fixed when it begins, spent when its verdict is written.

A take is a range of numbers. It may move until the round has begun, and not after: every attempt reads the
same rows. The stream's watermark moves in the transaction of the verdict and only from where the take
found it, so two rounds never both spend a row. A failed attempt spends nothing, and a round that reads rows
again (``use`` is ``all`` or ``last:N``) takes none of them from the rounds that read each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from align.errors import StaleAttempt
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.inbox import inbox_rows, inbox_streams, inbox_takes

TakeState = Literal["held", "used", "returned"]
AfterRejection = Literal["used", "returned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
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
    state: TakeState
    """``held`` until the verdict; then ``used``, or ``returned`` to the stream."""
    taken: str
    """ISO 8601, UTC; so is ``ended``."""
    ended: str | None

    @property
    def spends(self) -> bool:
        """True if the round's verdict moves the watermark."""
        return self.watermark == self.above


def hold(
    connection: Connection,
    round: str,
    stream: str,
    *,
    use: str,
    limit: int | None,
    after_rejection: AfterRejection,
    now: str,
) -> Take | None:
    """Reserve the rows of a round, unless it has begun and has its own; return None where there is
    nothing to read.

    What another unfinished round was to spend of the stream is let go, if this one spends: it takes again
    when it runs.

    Args:
        use: ``once``: rows above the watermark; ``all``: also those below; ``last:N``: the newest N. Only
            ``once`` moves it.
        limit: at most so many rows, the oldest first; the rest stays for the next round.
    """
    begun = connection.scalar(select(func.max(rounds.c.attempt)).where(rounds.c.name == round))
    known = take_of(connection, round)
    if known is not None and (begun or known.state != "held"):
        return known
    let_go(connection, round)
    if use == "once":
        rivals = and_(
            inbox_takes.c.stream == stream,
            inbox_takes.c.state == "held",
            inbox_takes.c.watermark == inbox_takes.c.above,
        )
        connection.execute(delete(inbox_takes).where(rivals))
    counters = select(inbox_streams).where(inbox_streams.c.stream == stream)
    stream_counters = connection.execute(counters.with_for_update()).one_or_none()
    if stream_counters is None:
        return None
    above = _above(connection, stream, use, stream_counters.watermark)
    newest = _newest(connection, stream, above, stream_counters.newest, limit)
    num_rows = connection.scalar(select(func.count()).where(ready(stream, above, newest))) or 0
    if not num_rows:
        return None
    take = Take(
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
    values = {name: getattr(take, name) for name in Take.__dataclass_fields__}
    connection.execute(insert(inbox_takes).values(values))
    return take


def settle(connection: Connection, round: str, verdict: str, now: str) -> None:
    """Spend what the round took, if it does, as part of the transaction that writes its verdict.

    Raises:
        StaleAttempt: the watermark is not where the take found it; the verdict is not written either.
    """
    take = take_of(connection, round)
    if take is None or take.state != "held" or verdict == "failed":
        return
    state = take.after_rejection if verdict == "rejected" else "used"
    if state == "used" and take.spends:
        stands = and_(
            inbox_streams.c.stream == take.stream, inbox_streams.c.watermark == take.watermark
        )
        moved = update(inbox_streams).where(stands).values(watermark=take.newest)
        if connection.execute(moved).rowcount != 1:
            raise StaleAttempt(
                f"the watermark of inbox://{take.stream} is no longer {take.watermark}, "
                f"where round {round!r} found it",
                cause="another round has used these rows meanwhile",
                remedy="run again: the round will take what is new",
            )
    this = inbox_takes.c.round == round
    connection.execute(update(inbox_takes).where(this).values(state=state, ended=now))


def let_go(connection: Connection, round: str) -> None:
    """Release the rows of a round that will not run to the next one; what it has spent stays spent."""
    reserved = and_(inbox_takes.c.round == round, inbox_takes.c.state == "held")
    connection.execute(delete(inbox_takes).where(reserved))


def take_of(connection: Connection, round: str) -> Take | None:
    """Return what a round took, if anything."""
    row = connection.execute(select(inbox_takes).where(inbox_takes.c.round == round)).one_or_none()
    return None if row is None else _take(row)


def all_takes(connection: Connection) -> list[Take]:
    """List every take, in the order they were made."""
    query = select(inbox_takes).order_by(inbox_takes.c.taken, inbox_takes.c.round)
    return [_take(row) for row in connection.execute(query)]


def ready(stream: str, above: int, newest: int | None = None) -> ColumnElement[bool]:
    """Select usable rows of a stream with numbers in a range."""
    wanted = and_(
        inbox_rows.c.stream == stream,
        inbox_rows.c.state == "ready",
        inbox_rows.c.number > above,
    )
    return wanted if newest is None else and_(wanted, inbox_rows.c.number <= newest)


def _above(connection: Connection, stream: str, use: str, watermark: int) -> int:
    if use == "once":
        return watermark
    if use == "all":
        return 0
    count = int(use.removeprefix("last:"))
    numbers = select(inbox_rows.c.number).where(ready(stream, 0))
    before = numbers.order_by(inbox_rows.c.number.desc()).offset(count).limit(1)
    return connection.scalar(before) or 0


def _newest(connection: Connection, stream: str, above: int, newest: int, limit: int | None) -> int:
    if limit is None:
        return newest
    numbers = select(inbox_rows.c.number).where(ready(stream, above))
    last = numbers.order_by(inbox_rows.c.number).offset(limit - 1).limit(1)
    return connection.scalar(last) or newest


def _take(row: Any) -> Take:
    return Take(**row._mapping)
