"""Settings in a campaign file that say when a round runs, and the rules for them.

A round waits for the clock (``every``), for rows in the inbox (``when``), for another round (``after``) or
for a person (``manual``). With ``every`` and ``when`` it runs at the first tick at which enough rows have
arrived. ``after`` beside any of them is a further condition: not before that round has a verdict. A round
with none of them is due at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from align.clock import EXAMPLE, check_cron, check_timezone
from align.settings import Name, Settings

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
"""Seconds of each unit of time."""
LONGEST = timedelta(days=3650)
"""Longest duration, which added to a date stays within the calendar."""


def parse_duration(value: Any) -> timedelta:
    """Parse ``90s``, ``15m``, ``6h``, ``7d``, ``2w``, or several such as ``1d12h``."""
    if isinstance(value, timedelta):
        return value
    parts = re.findall(r"(\d+)([wdhms])", value) if isinstance(value, str) else []
    if not parts or "".join(f"{n}{unit}" for n, unit in parts) != value:
        raise ValueError(
            f"{value!r} is no duration; write a number with its unit: 90s, 15m, 6h or 7d"
        )
    long = any(len(number) > 9 for number, _ in parts)
    seconds = 0 if long else sum(int(number) * UNITS[unit] for number, unit in parts)
    if long or seconds > LONGEST.total_seconds():
        shown = value if len(value) <= 20 else f"{value[:17]}..."
        raise ValueError(f"{shown!r} is too long; write at most ten years, {LONGEST.days}d")
    return timedelta(seconds=seconds)


def spell_duration(value: timedelta) -> str:
    """Spell a duration in the form that `parse_duration` reads.

    >>> spell_duration(timedelta(days=1, hours=12))
    '1d12h'
    """
    rest, text = int(value.total_seconds()), ""
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(rest, UNITS[unit])
        text += f"{number}{unit}" if number else ""
    return text or "0s"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(spell_duration)]


class ArrivalsConfig(Settings):
    """Rows that must have arrived in the stream that the round reads."""

    new_pairs: Annotated[int, Field(ge=1)]
    """Number of rows, pairs or ratings, that no round has used. If ``data.use`` reads rows again, the rows
    are counted that arrived since the last of these rounds fell due."""
    min_interval: Duration = timedelta(0)
    """Shortest time between two of these rounds falling due."""
    max_wait: Duration | None = None
    """Longest time that a row waits; after it the round falls due with fewer than ``new_pairs``. None: they
    wait without end."""

    @model_validator(mode="after")
    def _interval_fits(self) -> Self:
        if self.max_wait is not None and self.min_interval > self.max_wait:
            raise ValueError(
                f"min_interval {spell_duration(self.min_interval)} is longer than max_wait "
                f"{spell_duration(self.max_wait)}, so no round could keep to max_wait; raise max_wait or "
                "lower min_interval"
            )
        return self


class ScheduleSettings(Settings):
    """Conditions under which a round falls due; they do not change what the round does."""

    every: str | None = None
    """Cron schedule of five fields, as in ``"0 3 * * *"``: minute, hour, day of month, month, day of week.
    Ticks that were missed count as one. A fixed hour that the clock skips in spring ticks at the end of the
    skip; an hour that the clock shows twice in autumn ticks once."""
    timezone: str = "UTC"
    """IANA name of the time zone of ``every``, such as Europe/Berlin."""
    when: ArrivalsConfig | None = None
    """Number of rows in the stream that ``data`` reads at which the round falls due."""
    after: Name | None = None
    """Name of another round, whose verdict this round waits for."""
    manual: bool = False
    """Wait for ``keel schedule run-now``."""
    repeat: bool | None = None
    """Make the round a template of rounds without end, named ``<name>-1``, ``<name>-2``. None: it is a
    template if it has ``every``, ``when`` or ``manual``."""

    @field_validator("every")
    @classmethod
    def _is_cron(cls, every: str | None) -> str | None:
        if every is not None:
            check_cron(every)
        return every

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, timezone: str) -> str:
        check_timezone(timezone)
        return timezone

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.manual and (self.every or self.when or self.after):
            raise ValueError(
                "manual waits for a person, and every, when and after do not; set one or the other"
            )
        if self.repeat is not None and not self.scheduled:
            raise ValueError(
                f'repeat needs a schedule; set every: "{EXAMPLE}", when, after or manual'
            )
        if self.timezone != "UTC" and self.every is None:
            raise ValueError('timezone is the clock of every; set every, as in every: "0 3 * * *"')
        return self

    @property
    def scheduled(self) -> bool:
        """True if the round waits for more than its turn."""
        return bool(self.every or self.when or self.after or self.manual)

    @property
    def repeats(self) -> bool:
        """True if the round is a template."""
        by_nature = bool(self.every or self.when or self.manual)
        return by_nature if self.repeat is None else self.repeat


class RememberConfig(Settings):
    """Limit on the accepted rounds of a template that a later round measures and replays."""

    newest: Annotated[int, Field(ge=1)] = 7
    """Number of the newest accepted rounds whose suites are measured and whose prompts are replayed."""
    older: Annotated[int, Field(ge=0)] = 3
    """Number of older rounds that are too. Every round draws them again with equal chances, once for the
    gate and once for the replay."""


def check_schedules(rounds: Sequence[RoundConfig], suites: Iterable[str]) -> None:
    """Check the rules between rounds.

    Args:
        suites: names of the campaign's suites.

    Raises:
        ValueError: a rule is broken; states the rule, the value and the remedy.
    """
    by_name = {spec.name: spec for spec in rounds}
    for index, spec in enumerate(rounds):
        where = f"rounds.{index}"
        if spec.when is not None and (spec.data is None or spec.data.stream is None):
            source = "prompts" if spec.data is None else repr(spec.data.source)
            raise ValueError(
                f"{where}.when: counts what arrives in the inbox, and round {spec.name!r} reads {source}; "
                "set data to inbox://NAME, or use every"
            )
        before = _predecessors(spec, by_name, where)
        for other in (*by_name, *suites):
            if spec.repeats and re.fullmatch(rf"{re.escape(spec.name)}-\d+", other):
                raise ValueError(
                    f"{where}: {spec.name!r} is a template whose rounds are called {spec.name}-1 and so "
                    f"on, and {other!r} is taken; rename one"
                )
        if spec.remember is not None and not spec.repeats:
            raise ValueError(
                f"{where}.remember: it limits the rounds of a template, and {spec.name!r} is a plain "
                "round; remove remember, or make the round a template with every, when, manual or repeat"
            )
        for _, _, name in spec.named_rounds():
            target = by_name.get(name)
            if target is None or not target.scheduled:
                continue
            if target.repeats:
                raise ValueError(
                    f"{where}: round:{name} names a template, which is many rounds; use parent, base or "
                    "owner"
                )
            if name not in before:
                raise ValueError(
                    f"{where}: round:{name} runs at its own time, perhaps after {spec.name!r}; "
                    f"set after: {name}"
                )
    _check_streams(rounds)


def _predecessors(spec: RoundConfig, by_name: dict[str, RoundConfig], where: str) -> list[str]:
    """List the rounds whose verdicts a round waits for by ``after``, the nearest first.

    Raises:
        ValueError: one of them does not exist, or rounds wait for each other.
    """
    chain, name = [spec.name], spec.after
    while name is not None:
        if name not in by_name:
            known = ", ".join(sorted(by_name.keys() - {spec.name})) or "none"
            raise ValueError(f"{where}.after: {name!r} names no round; other rounds: {known}")
        if name in chain:
            raise ValueError(
                f"{where}.after: rounds wait for each other: {' after '.join([*chain, name])}; remove one"
            )
        chain.append(name)
        name = by_name[name].after
    return chain[1:]


def _check_streams(rounds: Sequence[RoundConfig]) -> None:
    """Check that no two scheduled rounds use up the rows of one stream.

    Raises:
        ValueError: two of them do.
    """
    readers: dict[str, str] = {}
    for index, spec in enumerate(rounds):
        stream = spec.data.stream if spec.data is not None and spec.data.use == "once" else None
        if stream is None or not spec.scheduled:
            continue
        if stream in readers:
            raise ValueError(
                f"rounds.{index}.data: {readers[stream]!r} and {spec.name!r} both use up inbox://{stream} "
                "as it arrives; give each a stream of its own, or one of them use: all"
            )
        readers[stream] = spec.name
