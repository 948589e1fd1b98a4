"""What a round cost is divided between what is new and what holds on to the old."""

from __future__ import annotations

import pytest

from align.round.spending import Split, spent

STEPS: list[dict[str, float]] = [
    {"rollouts/new": 8, "rollouts/past": 2, "batch/new_tokens": 30, "batch/past_tokens": 10}
    | {"time/update_s": 4.0},
    {"rollouts/new": 8, "rollouts/general": 1, "batch/new_tokens": 20, "batch/general_tokens": 20}
    | {"time/update_s": 2.0},
]


def test_the_sums_by_hand() -> None:
    found = spent(STEPS)
    assert found.rollouts == Split(new=16.0, retention=3.0)
    assert found.tokens == Split(new=50.0, retention=30.0)
    # 3 of 4 s and 1 of 2 s for what is new: every step in the ratio of its own tokens.
    assert found.seconds == Split(new=4.0, retention=2.0)
    assert found.seconds.share == pytest.approx(1 / 3)


def test_what_was_not_measured_is_nothing() -> None:
    found = spent([{"loss": 1.0}])
    assert found.tokens == Split(new=0.0, retention=0.0)
    assert found.tokens.share is None
    assert spent([]).seconds.share is None
