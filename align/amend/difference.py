"""Differences between two configurations in JSON values, by the names of what they hold.

Entries of a list are told apart by their ``name`` (an anchor's ``to``), so that a round or suite that is
inserted or removed moves no other. A list of plain values is one value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LONGEST = 80
"""Characters of a value in a sentence."""


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()
"""Value of a key that one of the two configurations does not have."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs."""

    path: tuple[str, ...]
    """Keys from the top, with names of rounds and suites in place of positions."""
    old: Any
    new: Any
    order: bool = False
    """The entries of a list are the same and stand in another order; ``old`` and ``new`` name them."""

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def sentence(self) -> str:
        """The change for a person.

        >>> Change(("rounds", "sort", "steps"), 45, 60).sentence
        'rounds.sort.steps: 45 -> 60'
        """
        if self.order:
            return f"{self.key}: order {', '.join(self.old)} -> {', '.join(self.new)}"
        if len(self.path) == 2 and self.path[0] in ("rounds", "suites"):
            if self.old is ABSENT:
                return f"{self.key}: added"
            if self.new is ABSENT:
                return f"{self.key}: removed"
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[Change]:
    """Every value that differs, in the order of ``old``, then what only ``new`` has.

    >>> [c.sentence for c in differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}, "c": 1})]
    ['a.b: [1, 2] -> [1, 3]', 'c: (absent) -> 1']
    """
    if isinstance(old, list) and isinstance(new, list):
        one, other = _by_name(old), _by_name(new)
        if one is not None and other is not None:
            yield from differences(one, other, path)
            common = [[n for n in names if n in one and n in other] for names in (one, other)]
            if common[0] != common[1]:
                yield Change(path, common[0], common[1], order=True)
            return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*old, *(name for name in new if name not in old)):
            yield from differences(old.get(name, ABSENT), new.get(name, ABSENT), (*path, str(name)))
    elif type(old) is not type(new) or old != new:
        yield Change(path, old, new)


def value_at(content: Any, path: tuple[str, ...]) -> Any:
    """The value at a path as `differences` names it; `ABSENT` where there is none."""
    for name in path:
        if isinstance(content, list):
            content = _by_name(content)
        if not isinstance(content, dict) or name not in content:
            return ABSENT
        content = content[name]
    return content


def _by_name(entries: list[Any]) -> dict[str, Any] | None:
    """Entries by their names; None where some have none, or share one."""
    for key in ("name", "to"):
        names = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return dict(zip(map(str, names), entries, strict=True))
    return None


def _shown(value: Any) -> str:
    if value is ABSENT:
        return repr(ABSENT)
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
