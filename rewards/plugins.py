"""Rewards of other distributions, by the entry point group ``keel.rewards``.

    [project.entry-points."keel.rewards"]
    politeness = "my_package.rewards:politeness"

The object is a reward, or a `rewards.registry.RewardSpec` with facts about it. A distribution is imported
when one of its rewards is asked for, so a broken one stands in nobody's way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rewards.patience import importing
from rollouts.errors import UserError

GROUP = "keel.rewards"


def plugins() -> Mapping[str, Sequence[EntryPoint]]:
    """Return every entry point by its name. Of several under one name none can be used."""
    return _plugins_in(tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=1)
def _plugins_in(folders: tuple[tuple[str, int], ...]) -> Mapping[str, Sequence[EntryPoint]]:
    """Read the metadata of every distribution on the path, which takes 20 ms.

    Args:
        folders: folders on the path, with the times at which something was installed or removed in them.
    """
    by_name: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        # One distribution can be on the path twice, as an editable install often is.
        by_name.setdefault(point.name, {}).setdefault((_distribution(point), point.value), point)
    return {name: list(points.values()) for name, points in sorted(by_name.items())}


def _changed(folder: str) -> int:
    """Return the time in ns at which an entry of a folder was last added or removed; 0: no such folder."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def origin(point: EntryPoint) -> str:
    """Describe where an entry point comes from: distribution, version and object."""
    version = f" {point.dist.version}" if point.dist else ""
    return f"{_distribution(point)}{version} ({point.value})"


def load_plugin(point: EntryPoint, where: str | None) -> Any:
    """Load the object that an entry point names.

    Raises:
        UserError: importing it raised; the error names the distribution.
    """
    try:
        with importing(point.value):
            return point.load()
    except (Exception, SystemExit) as error:  # another distribution's module code runs here
        raise UserError(
            f"reward {point.name!r} of {origin(point)} cannot be imported",
            where=where,
            cause=f"{type(error).__name__}: {error}",
            remedy=f"correct or uninstall {_distribution(point)}; other rewards are not affected",
        ) from error


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
