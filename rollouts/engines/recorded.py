"""Answers of engines as JSON values, written down and read again.

A round that samples ahead of its learner and is stopped would otherwise ask again, from newer weights, and
go on with another curve than an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rollouts.engines.protocol import SampleRequest, SampleResult, Ticket
from rollouts.types import Completion, Episode, TokenSpan, WeightSpan


class Recorded:
    """Answers that are there already, for requests that are made once more."""

    def __init__(self, results: Sequence[SampleResult]) -> None:
        self._results = list(results)

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Return the recorded answers, whatever the requests are: `collect` compares the ids."""
        return lambda: list(self._results)


def to_json(results: Sequence[SampleResult]) -> list[dict[str, Any]]:
    """Return the results as JSON values; numbers come back bit for bit."""
    return [asdict(result) for result in results]


def from_json(records: Sequence[Mapping[str, Any]]) -> list[SampleResult]:
    """Restore the results that `to_json` was given."""
    return [
        SampleResult(
            id=record["id"],
            completions=tuple(map(_completion, record["completions"])),
            prompt_ids=tuple(ids) if (ids := record.get("prompt_ids")) is not None else None,
        )
        for record in records
    ]


def _completion(fields: Mapping[str, Any]) -> Completion:
    spans = tuple(WeightSpan(*span) for span in fields["weight_versions"])
    episode = fields.get("episode")
    return Completion(
        **{
            **fields,
            "token_ids": tuple(fields["token_ids"]),
            "logprobs_T": tuple(fields["logprobs_T"]),
            "weight_versions": spans,
            "episode": None if episode is None else _episode(episode),
        }
    )


def _episode(fields: Mapping[str, Any]) -> Episode:
    return Episode(
        **{
            **fields,
            "observed": tuple(TokenSpan(*span) for span in fields["observed"]),
            "messages": tuple(fields["messages"]),
            "turn_rewards": tuple(fields["turn_rewards"]),
        }
    )
