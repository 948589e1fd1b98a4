"""Routing of a bank's suites: which adapters answered, how often the right one, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.gate.measurement.results import ItemResults, header_of


def routing_accuracy(suite: str, routed: Mapping[str, float]) -> float | None:
    """Return the share of a round's items that the round's own adapter answered.

    None where the suite is no round's, or the bank has no adapter of it.

    Args:
        suite: name of the suite; that of a round has the round's name.
        routed: share of the items that each adapter answered, by its name.
    """
    return routed.get(suite)


def retrieval_share(retrieval_s: float | None, seconds: float | None) -> float | None:
    """Return retrieval's share of the wall time of a measurement; None where that is not known."""
    return None if retrieval_s is None or not seconds else retrieval_s / seconds


def measured_routing(path: Path) -> dict[str, float]:
    """Return routing accuracy and retrieval's share of the time, of a file that `ItemResults.save` wrote.

    What is not known is missing. Only the file's header is read.
    """
    header = header_of(path)
    try:
        figures = {
            "routing accuracy": routing_accuracy(header.get("suite", ""), header.get("routed", {})),
            "retrieval share": retrieval_share(header.get("retrieval_s"), header.get("seconds")),
        }
        return {name: float(value) for name, value in figures.items() if value is not None}
    except (ValueError, TypeError, AttributeError):
        return {}


def routing_sentence(results: ItemResults) -> str:
    """Say which adapters answered the items of a suite; empty without a bank that has any."""
    if not set(results.routes) - {"base"}:
        return ""
    largest_first = sorted(results.routed.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in largest_first)
    sentence = f"answered by the adapters of {shares}"
    if (share := retrieval_share(results.retrieval_s, results.seconds)) is not None:
        sentence += f"; retrieval took {100 * share:.1f}% of the time"
    return sentence
