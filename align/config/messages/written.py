"""Places where settings were written: in a round or in the defaults, and the line of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

Path = tuple[int | str, ...]
"""Keys and positions from the top of a file down to a setting."""


def dotted(path: Path) -> str:
    """Spell a path as messages and ``--set`` do.

    >>> dotted(("rounds", 0, "steps"))
    'rounds.0.steps'
    """
    return ".".join(map(str, path))


def is_written(raw: Any, path: Path) -> bool:
    """Tell if a file states something at a path, or a short form above it."""
    for part in path:
        if isinstance(raw, dict):
            if part not in raw:
                return False
            raw = raw[part]
        elif isinstance(raw, list):
            if not (isinstance(part, int) and part < len(raw)):
                return False
            raw = raw[part]
        else:
            return raw is not None
    return True


def as_written(raw: Any, path: Path, *, is_missing: bool = False) -> Path:
    """Return the path in ``defaults`` of a setting that a round inherits; other paths as they are.

    Args:
        is_missing: the last key of the path is absent; the section above it says whose it is.
    """
    if len(path) < 3 or path[0] != "rounds":
        return path
    shared = ("defaults", *path[2:])
    shown = path[:-1] if is_missing else path
    if len(shown) < 3 or is_written(raw, shown) or not is_written(raw, ("defaults", *shown[2:])):
        return path
    return shared


class Lines:
    """Lines of a YAML text, by the paths of its settings."""

    def __init__(self, root: yaml.Node | None, overridden: Iterable[str] = ()) -> None:
        self._root = root
        self._overridden = tuple(overridden)

    def number(self, path: Path, source: Path | None = None) -> int | None:
        """Return the line of the setting at a path, or of the section nearest above it.

        None: ``--set`` gave it or a part of it, it belongs at the top of the file, or there is no file.

        Args:
            source: setting in or beside it that is meant, whose line is returned; None: itself.
        """
        key, meant = f"{dotted(path)}.", f"{dotted(source or path)}."
        is_set = any(
            other.startswith(key) or meant.startswith(other)
            for other in (f"{name}." for name in self._overridden)
        )
        node, line = self._root, None
        for part in () if is_set else source or path:
            if isinstance(node, yaml.MappingNode):
                pairs = [
                    (key_node, value_node)
                    for key_node, value_node in node.value
                    if isinstance(key_node, yaml.ScalarNode) and key_node.value == str(part)
                ]
                if not pairs:
                    break
                line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
            elif isinstance(node, yaml.SequenceNode):
                if not (isinstance(part, int) and part < len(node.value)):
                    break
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line
