"""Optional package behind everything that is quantised here, and the check that it is installed."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from align.config.campaign import RoundConfig
from rollouts.errors import UserError

NAME = "bitsandbytes"
MOMENTS = "optimizer.moments: 8bit"
"""Setting that needs the package."""


def bitsandbytes() -> Any:
    """Import the package.

    Raises:
        UserError: it is not installed.
    """
    require_package("the learner")
    # It warns that a kernel for inference is missing, which training never calls.
    logging.getLogger(NAME).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def require_package(where: str) -> None:
    """Raise UserError if the package is not installed, without importing it."""
    if find_spec(NAME) is None:
        raise UserError(
            f"{MOMENTS} needs the package {NAME}, which is not installed",
            where=where,
            remedy="pip install 'keel-align[quantized]', or leave the setting out",
        )


def check_quantized(spec: RoundConfig) -> None:
    """Check that the package is there if a round needs it.

    Raises:
        UserError: it is not installed.
    """
    if spec.optimizer.moments == "8bit":
        require_package(f"rounds.{spec.name}.optimizer.moments")
