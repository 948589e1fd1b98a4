"""Settings of the mergers that make a candidate of a round's weights and earlier ones."""

from __future__ import annotations

from typing import Any

from align.config.mergers.settings import (
    DareMergeConfig,
    HMAMergeConfig,
    LifeAlignMergeConfig,
    LinearMergeConfig,
    MergeConfig,
    SlerpMergeConfig,
    TiesMergeConfig,
    WarpMergeConfig,
)
from rollouts.errors import nearest

MERGERS: dict[str, type[MergeConfig]] = {
    "linear": LinearMergeConfig,
    "slerp": SlerpMergeConfig,
    "warp": WarpMergeConfig,
    "ties": TiesMergeConfig,
    "dare": DareMergeConfig,
    "hma": HMAMergeConfig,
    "lifealign": LifeAlignMergeConfig,
}
"""Settings of each merger by name; `align.retention.mergers.MERGERS` has the mergers themselves."""


def merger_from(value: Any) -> Any:
    """Return the settings of a merger, from ``slerp`` or ``{name: slerp, share: 0.5}``; false is none.

    Raises:
        ValueError: the value names no merger, or one that does not exist.
    """
    if value is False:
        return None
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"{value} names no merger; write which one as name")
    return merger_class(value["name"]).model_validate(value)


def merger_class(name: object) -> type[MergeConfig]:
    """Return the class of a merger's settings.

    Raises:
        ValueError: no merger has this name.
    """
    if isinstance(name, str) and name in MERGERS:
        return MERGERS[name]
    raise ValueError(f"no merger {name!r}; {nearest(str(name), list(MERGERS))}")
