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
from align.settings import settings_from

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
    """Return the settings of a merger, see `settings_from`; false is none."""
    return None if value is False else settings_from(value, MERGERS, "merger")
