"""Memory that a forward pass keeps for its backward pass, by the shape of the model.

This is an estimate for choosing the number of tokens of a pass. For each token a decoder layer keeps nine
vectors of its hidden size (inputs of norms, products and attention) and four of its intermediate size (a
gated layer's two factors, the activation, the product). A completion token adds six vectors of the size of
the vocabulary: log-probabilities of policy and anchor, intermediate results of divergences, and gradients.
"""

from __future__ import annotations

from typing import Any

ACTIVATION_BYTES = 3 << 28
"""Bytes of memory on a CPU for the activations of all simultaneous passes (768 MiB)."""
SMALLEST_PASS = 256
"""Smallest number of tokens of a pass; with fewer its products would be too short."""
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
        return most  # The model's own code may have other names for its sizes.
    return min(most, max(SMALLEST_PASS, ACTIVATION_BYTES // bytes_per_token(config)))
