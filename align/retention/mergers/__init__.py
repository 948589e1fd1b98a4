"""Mergers of a round's trained weights with earlier ones; a new one is a new file and one line here.

The package itself imports no torch: a merger's module is imported when its weights are computed.
"""

from __future__ import annotations

MERGERS: dict[str, str] = {
    "linear": "align.retention.mergers.linear:linear",
    "slerp": "align.retention.mergers.slerp:slerp",
    "warp": "align.retention.mergers.warp:warp",
    "ties": "align.retention.mergers.ties:ties",
    "dare": "align.retention.mergers.dare:dare",
    "hma": "align.retention.mergers.hma:hma",
    "lifealign": "align.retention.mergers.lifealign:lifealign",
}
"""Function of each merger by the name that `align.config.mergers.MERGERS` gives its settings."""

FITS: dict[str, str] = {
    "hma": "align.retention.mergers.hma:BlockFit",
}
"""Fit of the shares of each merger that learns them from answers of the trained policy."""
