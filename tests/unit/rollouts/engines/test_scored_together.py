"""Sequences that are scored at the same time: their logits fit into a fixed memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.engines.protocol import ScoreRequest
from rollouts.engines.vllm_format import scored_together


def of_lengths(*lengths: int) -> list[ScoreRequest]:
    return [ScoreRequest(prompt_ids=(0,) * (n - 1), completion_ids=(0,)) for n in lengths]


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ((100, 100, 56), [[100, 100, 56]]),  # 256 tokens of 1,024 logits of 4 bytes are 1 MiB
        ((100, 100, 57), [[100, 100], [57]]),
        ((300, 10, 246, 1), [[300], [10, 246], [1]]),  # one that is too long goes alone
        ((), []),
    ],
)
def test_parts_by_hand(lengths: tuple[int, ...], parts: list[list[int]]) -> None:
    split = scored_together(of_lengths(*lengths), vocab_size=1024, mib=1)
    assert [[len(r.prompt_ids) + 1 for r in part] for part in split] == parts


@given(st.lists(st.integers(1, 400)), st.integers(1, 3))
def test_every_request_is_in_one_part_and_parts_fit(lengths: list[int], mib: int) -> None:
    requests = of_lengths(*lengths)
    parts = list(scored_together(requests, vocab_size=1024, mib=mib))
    assert [request for part in parts for request in part] == requests
    for part in parts:
        size = sum(len(r.prompt_ids) + len(r.completion_ids) for r in part)
        assert size <= 256 * mib or len(part) == 1
