"""Values of a row's columns: the kinds that are kept, and their form in JSON.

Files hold more than JSON does: not-a-number, bytes, decimals, dates. A column is kept with its prompt for
as long as a campaign lives (replay, checkpoints, workers of rewards), so a row is brought into a closed
set of kinds when it is read, and a value of any other kind is refused there, by row and column.

    None, bool, int, float, str, list, dict with text keys     as JSON has them
    the kinds in `KINDS`, and floats that are not finite       {"$keel": "decimal", "value": "1.10"}
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

TAG = "$keel"
"""Key of a mapping that stands for a value that JSON cannot express."""
NANOSECOND = "a time with nanoseconds"
MICROSECOND = timedelta(microseconds=1)


class Unholdable(ValueError):
    """Error for a value of a kind that is not kept; the message names the kind."""

    def __init__(self, kind: str, path: str = "") -> None:
        super().__init__(f"{kind}{f' at {path}' if path else ''}")
        self.kind, self.path = kind, path


class ValueKind(NamedTuple):
    """One type that JSON cannot express, with its way to text and back."""

    type: type
    write: Callable[[Any], str]
    read: Callable[[str], Any]


# A datetime is a date too, so it stands before it.
KINDS: dict[str, ValueKind] = {
    "bytes": ValueKind(bytes, lambda value: b64encode(value).decode(), b64decode),
    "decimal": ValueKind(Decimal, str, Decimal),
    "datetime": ValueKind(datetime, datetime.isoformat, datetime.fromisoformat),
    "date": ValueKind(date, date.isoformat, date.fromisoformat),
    "time": ValueKind(time, time.isoformat, time.fromisoformat),
    "duration": ValueKind(
        timedelta,
        lambda value: str(value // MICROSECOND),
        lambda text: timedelta(microseconds=int(text)),
    ),
    "uuid": ValueKind(UUID, str, UUID),
}


def normalised(value: Any, path: str = "") -> Any:
    """Return the value in plain kinds: tuples and arrays as lists, numpy's numbers as Python's.

    Args:
        path: keys and positions that lead to the value, for the message.

    Raises:
        Unholdable: the value, or one inside it, is of a kind that is not kept.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        plain = value.tolist()
        if type(plain) is type(value):
            raise Unholdable(f"a {type(value).__name__}", path)
        return normalised(plain, path)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise Unholdable(f"a mapping with the key {odd[0]!r}, which is no text", path)
        return {str(key): normalised(item, _below(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normalised(item, _below(path, index)) for index, item in enumerate(value)]
    for base in (bool, int, float, str):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime | time | timedelta):
        return _normalised_time(value, path)
    if any(isinstance(value, kind.type) for kind in KINDS.values()):
        return value
    raise Unholdable(f"a {type(value).__name__}", path)


def to_json(value: Any) -> Any:
    """Return the JSON form of a `normalised` value, from which `from_json` restores it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {TAG: "float", "value": repr(value)}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        plain = {key: to_json(item) for key, item in value.items()}
        return {TAG: "mapping", "value": plain} if TAG in plain else plain
    for name, kind in KINDS.items():
        if isinstance(value, kind.type):
            return {TAG: name, "value": kind.write(value)}
    return value


def from_json(value: Any) -> Any:
    """Return the value that `to_json` was given.

    Raises:
        ValueError, KeyError: a tag is not one of ours.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: from_json(item) for key, item in value.items()}
    name, inner = value[TAG], value["value"]
    if name == "mapping":
        return {key: from_json(item) for key, item in inner.items()}
    if name == "float":
        return float(inner)
    if name not in KINDS:
        raise ValueError(f"{name!r} is no kind of value that is known here")
    return KINDS[name].read(inner)


def _below(path: str, step: object) -> str:
    return f"{path}.{step}" if path else str(step)


def _normalised_time(value: datetime | time | timedelta, path: str) -> datetime | time | timedelta:
    """Return the time as Python's own class with a fixed offset, which is what its text gives back."""
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        raise Unholdable(NANOSECOND, path)
    if isinstance(value, timedelta):
        return timedelta(value.days, value.seconds, value.microseconds)
    offset = value.utcoffset()
    zone = None if offset is None else timezone(offset)
    if isinstance(value, time):
        return time(value.hour, value.minute, value.second, value.microsecond, tzinfo=zone)
    parts = (value.year, value.month, value.day, value.hour, value.minute, value.second)
    return datetime(*parts, value.microsecond, tzinfo=zone)
