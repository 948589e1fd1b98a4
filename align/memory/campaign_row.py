"""Is this store that campaign? Continue it, extend it by rounds, or say what has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from align.errors import StoreError
from align.memory.tables import campaigns

SHOWN = 20
"""Changed keys listed in an error; of more than that, the number is given."""

Read = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What a stored configuration, perhaps of an older version, is in this one."""

_ABSENT = object()


def open_campaign_row(
    connection: Connection,
    name: str,
    config: Mapping[str, Any],
    config_hash: str,
    *,
    where: str,
    now: str,
    read: Read = dict,
) -> list[tuple[int, str]]:
    """Create, continue or extend the campaign; returns index and name of rounds new to the store.

    Args:
        read: applied to the stored configuration before it is compared.

    Raises:
        StoreError: another campaign, or this one with another configuration.
    """
    new = json.loads(json.dumps(config))
    names = [(index, spec["name"]) for index, spec in enumerate(new.get("rounds", []))]
    values = {"config": json.dumps(new, sort_keys=True), "config_hash": config_hash}
    row = connection.execute(select(campaigns)).one_or_none()
    if row is None:
        connection.execute(insert(campaigns).values(id=1, name=name, created=now, **values))
        return names
    if row.name != name:
        raise StoreError(
            f"this store holds the campaign {row.name!r}, not {name!r}",
            where=where,
            remedy="set store to another folder, or restore the old name",
        )
    if row.config_hash == config_hash:
        return []
    stored = json.loads(row.config)
    old = dict(read(stored))
    known = len(old.get("rounds", []))
    changes = list(differences(old, {**new, "rounds": new.get("rounds", [])[:known]}))
    # What has become longer by nothing but defaults is written down: they may be others tomorrow.
    if changes or (len(names) <= known and old == stored):
        raise _changed(name, changes or [f"config hash: {row.config_hash} -> {config_hash}"], where)
    connection.execute(update(campaigns).values(**values))
    return names[known:]


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Lines such as ``rounds.0.steps: 45 -> 60``, one for every value that differs.

    >>> list(differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3, 4]}}))
    ['a.b.1: 2 -> 3', 'a.b.2: (absent) -> 4']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*old, *(name for name in new if name not in old)):
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list):
        yield from differences(dict(enumerate(old)), dict(enumerate(new)), key)
    elif type(old) is not type(new) or old != new:
        yield f"{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _changed(name: str, changes: list[str], where: str) -> StoreError:
    lines = changes[:SHOWN]
    if len(changes) > SHOWN:
        lines.append(f"and {len(changes) - SHOWN} more")
    return StoreError(
        f"campaign {name!r} was started with another configuration:\n    " + "\n    ".join(lines),
        where=where,
        cause="results of two configurations in one ledger could not be told apart",
        remedy="set store to another folder, or restore the old value; appending rounds is fine",
    )
