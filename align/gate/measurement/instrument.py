"""Engines that results were measured by: a note where a candidate and its comparator had different ones.

Versions of vLLM and kinds of devices round differently, so the same weights answer some items differently.
That is no reason to refuse a comparison, and a reader has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from align.gate.measurement.evaluate import ItemResults

Results = Mapping[str, ItemResults]


def instrument_notes(
    candidate: Results, comparators: Iterable[tuple[str, Results]]
) -> Iterator[str]:
    """Yield a sentence for each other engine that a comparator was measured by.

    Args:
        comparators: names, and results by suite.
    """
    others: dict[tuple[str, str, str], list[str]] = {}
    for name, results in comparators:
        for suite in sorted(candidate.keys() & results.keys()):
            engine, other = candidate[suite].measured_by, results[suite].measured_by
            if engine and other and engine != other:
                others.setdefault((name, words_of(engine), words_of(other)), []).append(suite)
    for (name, candidates_engine, comparators_engine), suites in others.items():
        where = ", ".join(suites)
        yield (
            f"note: {name} was measured by {comparators_engine} on {where}, and the candidate by "
            f"{candidates_engine}: what differs between these counts as a change"
        )


def words_of(engine: Mapping[str, str]) -> str:
    """Name an engine.

    >>> words_of({"vllm": "0.32.0", "device": "cpu"})
    'vLLM 0.32.0 on cpu'
    """
    return f"vLLM {engine.get('vllm', '?')} on {engine.get('device', '?')}"
