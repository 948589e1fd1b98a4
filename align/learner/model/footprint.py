"""Memory that a forward pass keeps for its backward pass, by the shape of the model.

An estimate for choosing how many tokens a pass may have, not a measurement: floats that a decoder layer
keeps for a token are nine of its hidden size (inputs of norms, products and attention) and four of its
intermediate size (a gated layer's two factors, the activation, the product). At a completion token come six
of the vocabulary: log-probabilities of policy and anchor, what divergences make of them, and gradients.
"""

from __future__ import annotations

from typing import Any

ACTIVATION_BYTES = 3 << 28
"""Memory on a CPU for what all simultaneous passes keep (768 MiB)."""
SMALLEST_PASS = 256
"""Tokens below which a pass does not become smaller: its products would be too short."""
FLOAT_BYTES = 4
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


def bytes_per_token(config: Any) -> int:
    """Return the bytes that a pass keeps for one token, from a model's config.

    >>> from types import SimpleNamespace
    >>> bytes_per_token(SimpleNamespace(hidden_size=10, intermediate_size=20, num_hidden_layers=2,
    ...     vocab_size=100))
    3760
    """
    hidden = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) and inner else 4 * hidden
    layers = int(config.num_hidden_layers)
    return FLOAT_BYTES * (layers * (9 * hidden + 4 * inner) + 6 * int(config.vocab_size))


def tokens_that_fit(config: Any, most: int) -> int:
    """Return the tokens of one pass on a CPU: ``most``, or fewer if a large model would keep too much."""
    if not all(isinstance(getattr(config, name, None), int) for name in SIZES):
        return most  # A model's own code may call its sizes otherwise.
    return min(most, max(SMALLEST_PASS, ACTIVATION_BYTES // bytes_per_token(config)))
