"""Differences between two configurations in JSON values, by the names of their entries.

Entries of a list are told apart by their ``name`` (an anchor's ``to``), so that a round or suite that is
inserted or removed moves no other. A list of plain values is one value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LONGEST = 80
"""Most characters of a value in a sentence."""


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()
"""Stand-in for the value of a key that one of the two configurations lacks."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One value that differs."""

    path: tuple[str, ...]
    """Keys from the top, with names of rounds and suites instead of positions."""
    old: Any
    new: Any
    order: bool = False
    """True if a list has the same entries in another order; ``old`` and ``new`` are then their names."""

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def sentence(self) -> str:
        """Change as a sentence for people.

        >>> ConfigChange(("rounds", "sort", "steps"), 45, 60).sentence
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


def differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[ConfigChange]:
    """List every value that differs: first those in ``old``, in order, then those only in ``new``.

    >>> [c.sentence for c in differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}, "c": 1})]
    ['a.b: [1, 2] -> [1, 3]', 'c: (absent) -> 1']
    """
    if isinstance(old, list) and isinstance(new, list):
        old_entries, new_entries = _by_name(old), _by_name(new)
        if old_entries is not None and new_entries is not None:
            yield from differences(old_entries, new_entries, path)
            common = [
                [n for n in names if n in old_entries and n in new_entries]
                for names in (old_entries, new_entries)
            ]
            if common[0] != common[1]:
                yield ConfigChange(path, common[0], common[1], order=True)
            return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*old, *(name for name in new if name not in old)):
            yield from differences(old.get(name, ABSENT), new.get(name, ABSENT), (*path, str(name)))
    elif type(old) is not type(new) or old != new:
        yield ConfigChange(path, old, new)


def value_at(content: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path as `differences` names it; `ABSENT` if there is none."""
    for name in path:
        if isinstance(content, list):
            content = _by_name(content)
        if not isinstance(content, dict) or name not in content:
            return ABSENT
        content = content[name]
    return content


def _by_name(entries: list[Any]) -> dict[str, Any] | None:
    """Return entries by name; None if an entry has no name or two share one."""
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
