"""Routing of a bank's suites: which adapters answered, how often the right one, and what it took."""

from __future__ import annotations

from align.gate.measurement.results import ItemResults


def routing_accuracy(results: ItemResults) -> float | None:
    """Return the share of a round's items that the round's own adapter answered.

    None where the suite is no round's, or the bank has no adapter of it.

    Args:
        results: measurement of a bank; the suite of a round has the round's name.
    """
    return results.routed.get(results.suite)


def retrieval_share(results: ItemResults) -> float | None:
    """Return retrieval's share of the wall time of a measurement; None where that is not known."""
    if results.retrieval_s is None or not results.seconds:
        return None
    return results.retrieval_s / results.seconds


def routing_sentence(results: ItemResults) -> str:
    """Say which adapters answered the items of a suite; empty without a bank that has any."""
    if not set(results.routes) - {"base"}:
        return ""
    largest_first = sorted(results.routed.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in largest_first)
    sentence = f"answered by the adapters of {shares}"
    if (share := retrieval_share(results)) is not None:
        sentence += f"; retrieval took {100 * share:.1f}% of the time"
    return sentence
