"""Ticks of a cron expression on a clock of some time zone; all moments in and out are UTC.

Summer time is handled as Debian's cron does, which cronsim follows: a fixed time that the clock skips comes
when the skip ends, one that it shows twice comes once, and with a wildcard for the hour every hour that the
clock shows counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

EXAMPLE = "0 3 * * *"
"""Every day at three."""
FIELDS = 5


def check_cron(every: str) -> None:
    """Check that the expression has five fields and a tick; raise ValueError if not."""
    example = f'write five fields, as in "{EXAMPLE}" for every day at 03:00 or "*/30 * * * 1-5"'
    if len(every.split()) != FIELDS:
        raise ValueError(f"{every!r} has {len(every.split())} cron fields, not {FIELDS}; {example}")
    try:
        next(CronSim(every, datetime(2026, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(
            f"{every!r} is no cron expression: {str(error).lower()}; {example}"
        ) from None
    except StopIteration:
        raise ValueError(f"{every!r} never comes; {example}") from None


def check_timezone(name: str) -> None:
    """Check that the zone is known; raise ValueError with the nearest name if not."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = get_close_matches(name, sorted(available_timezones()), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "use an IANA name such as Europe/Berlin"
        raise ValueError(f"there is no time zone {name!r}; {hint}") from None


def next_tick(every: str, timezone: str, now: datetime) -> datetime:
    """Return the first tick after ``now``."""
    return next(CronSim(every, now.astimezone(ZoneInfo(timezone)))).astimezone(UTC)


def last_tick(every: str, timezone: str, since: datetime, now: datetime) -> datetime | None:
    """Return the latest tick after ``since`` and not after ``now``; None where there was none."""
    # The search excludes its own beginning.
    until = (now + timedelta(microseconds=1)).astimezone(ZoneInfo(timezone))
    try:
        tick = next(CronSim(every, until, reverse=True)).astimezone(UTC)
    except StopIteration:
        return None
    return tick if tick > since else None
