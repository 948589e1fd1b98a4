"""One number per item from what a harness metric says of it; higher is better in all of them."""

from __future__ import annotations

import math
from typing import Any

LIKELIHOODS = {
    "perplexity": "nats",
    "word_perplexity": "nats per word",
    "byte_perplexity": "nats per byte",
    "bits_per_byte": "bits per byte",
}
"""Metrics whose items are log-likelihoods, which only their mean over all items turns into the name's, and
the units of those."""

WHOLE = frozenset({"f1", "mcc", "brier_score", "likelihood", "bleu", "chrf", "ter", "bypass"})
"""Metrics that have a value only for all items together."""


def item_value(metric: str, measured: Any, *, higher_is_better: bool) -> float | None:
    """Return an item's value, or None where the metric has none.

    A log-likelihood is in nats: of the whole answer for ``perplexity``, per word or byte for
    ``word_perplexity`` and ``byte_perplexity``; ``bits_per_byte`` is its negative. A list, as of IFEval's
    instructions, counts by its mean. Where less is better the sign is turned.

    >>> item_value("word_perplexity", (-6.0, 3), higher_is_better=False)
    -2.0
    >>> item_value("inst_level_strict_acc", [True, False], higher_is_better=True)
    0.5

    Raises:
        TypeError: what the metric says is no number.
    """
    if measured is None:
        return None
    if metric in LIKELIHOODS:
        if not isinstance(measured, list | tuple):
            return float(measured)
        logprob, weight = measured
        per = float(logprob) / float(weight)
        return per / math.log(2) if metric == "bits_per_byte" else per
    if isinstance(measured, list | tuple):
        if not measured:
            return None
        value = math.fsum(map(float, measured)) / len(measured)
    else:
        value = float(measured)
    return value if higher_is_better else -value
