"""Blocks of decoder layers, by the names of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
"""Number of the decoder layer in the name of a weight, in a model's memory or in its files."""


def layer_of(name: str) -> int | None:
    """Return the number of the decoder layer that a weight belongs to; None if to none.

    >>> layer_of("model.layers.11.mlp.up_proj.weight"), layer_of("model.norm.weight")
    (11, None)
    """
    match = LAYER.search(name)
    return int(match[1]) if match else None


def num_layers(names: Iterable[str]) -> int:
    """Return the number of decoder layers of a model, by the names of its weights; 0 if none is known."""
    return 1 + max((n for name in names if (n := layer_of(name)) is not None), default=-1)


def block_of(name: str, layers: int, blocks: int) -> int | None:
    """Return the block of a weight; None if it belongs to no decoder layer.

    >>> [block_of(f"model.layers.{n}.mlp.weight", 5, 3) for n in range(5)]
    [0, 0, 1, 1, 2]
    """
    layer = layer_of(name)
    return None if layer is None else layer * blocks // layers
