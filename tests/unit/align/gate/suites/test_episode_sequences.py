"""Likelihood of recorded episodes: what the environment wrote does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from align.gate.suites.kinds.likelihood import LikelihoodSuite
from rollouts.engines.protocol import ScoreRequest
from rollouts.types import TokenSpan

SEQUENCES = (((1, 2), (4, 5, 9, 9, 6)), ((1,), (7, 8)))
OBSERVED = ((TokenSpan(2, 4),), ())


class Tenths:
    """An engine to which token n has the log-probability -n / 10."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        return [tuple(-token / 10 for token in r.completion_ids) for r in requests]


def suite(**fields: Any) -> LikelihoodSuite:
    return LikelihoodSuite(
        name="calls", role="gate", margin=0.1, budget=0.2,
        **{"sequences": SEQUENCES, "sequence_ids": ("a", "b"), **fields},
    )  # fmt: skip


def test_observed_tokens_do_not_count() -> None:
    made = suite(observed=OBSERVED)
    assert made.lengths == [3, 2]
    results = made.measure(Tenths(), None, "f00", 0)  # type: ignore[arg-type]
    assert results.values == pytest.approx((-0.5, -0.75))
    assert results.tokens == 5
    assert suite().measure(Tenths(), None, "f00", 0).values == pytest.approx(  # type: ignore[arg-type]
        (-0.66, -0.75)
    )


def test_items_are_taken_with_what_was_observed_in_them() -> None:
    made = suite(observed=OBSERVED).reduced([1, 0])
    assert made.sequences == SEQUENCES[::-1] and made.observed == OBSERVED[::-1]
    assert suite().reduced([1]).observed == ()


def test_a_suite_without_episodes_keeps_its_hash() -> None:
    assert "observed" not in suite().content()
    assert suite(observed=OBSERVED).hash != suite().hash
