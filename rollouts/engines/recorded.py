"""What engines have answered, written down as JSON values and read again.

A round that samples ahead of its learner and is stopped would otherwise ask again, from newer weights, and
go on with another curve than an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rollouts.engines.protocol import SampleRequest, SampleResult, Ticket
from rollouts.types import Completion, WeightSpan


class Recorded:
    """Answers that are there already, for requests that are made once more."""

    def __init__(self, results: Sequence[SampleResult]) -> None:
        self._results = list(results)

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """The answers, whatever is asked: whoever collects them compares the ids."""
        return lambda: list(self._results)


def to_json(results: Sequence[SampleResult]) -> list[dict[str, Any]]:
    """Plain values; numbers come back as they were, bit for bit."""
    return [asdict(result) for result in results]


def from_json(told: Sequence[Mapping[str, Any]]) -> list[SampleResult]:
    """What `to_json` was given."""
    return [
        SampleResult(id=one["id"], completions=tuple(map(_completion, one["completions"])))
        for one in told
    ]


def _completion(told: Mapping[str, Any]) -> Completion:
    spans = tuple(WeightSpan(*span) for span in told["weight_versions"])
    tokens, logprobs = tuple(told["token_ids"]), tuple(told["logprobs_T"])
    return Completion(
        **{**told, "token_ids": tokens, "logprobs_T": logprobs, "weight_versions": spans}
    )
