"""Rows, padding and micro-batches, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import GRPO
from align.learner.batching import build_batch, micro_batches, to_tensors
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.tiny import row


def test_to_tensors_by_hand() -> None:
    micro = to_tensors([row((1, 2, 3), (4, 5)), row((6,), (7, 8, 9))])
    assert micro.tokens_BT.tolist() == [[1, 2, 3, 4], [6, 7, 8, 0]]
    # token 4 is predicted at position 2 of row 0; token 7 at position 0 of row 1, flat index 4
    assert micro.where_N.tolist() == [2, 3, 4, 5, 6]
    assert micro.targets_N.tolist() == [4, 5, 7, 8, 9]
    assert micro.rows_N.tolist() == [0, 0, 1, 1, 1]
    assert micro.select([False, True]).tolist() == [False, False, True, True, True]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
       st.integers(1, 60))  # fmt: skip
def test_micro_batches_hold_every_row_once(lengths: list[tuple[int, int]], budget: int) -> None:
    rows = tuple(
        row(tuple(range(p)), tuple(range(c)), advantage=float(i))
        for i, (p, c) in enumerate(lengths)
    )
    pieces = list(micro_batches(rows, budget))
    assert sorted(r.advantage for m in pieces for r in m.rows) == [r.advantage for r in rows]  # type: ignore[type-var]
    for micro in pieces:
        assert micro.tokens_BT.numel() <= budget or len(micro.rows) == 1


def group(source: str, values: list[float]) -> ScoredGroup:
    completions = tuple(
        Completion(token_ids=(1, 2), logprobs_T=(0.0, 0.0), text="", finish_reason="stop")
        for _ in values
    )
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id="p", text="p", source=source), prompt_ids=(3,),  # type: ignore[arg-type]
            completions_G=completions, policy="v", seed=0,
        ),
        scores_G=tuple(Score(value=v, status="scored") for v in values),
    )  # fmt: skip


def test_only_new_prompts_carry_an_advantage() -> None:
    groups = [group("new", [1.0, 0.0]), group("past", [1.0, 0.0]), group("general", [1.0, 0.0])]
    kl_only = build_batch(groups, GRPO(scale="none"), replay_rewards=False)
    assert [r.advantage for r in kl_only.rows] == [0.5, -0.5, None, None, None, None]
    rewarded = build_batch(groups, GRPO(scale="none"), replay_rewards=True)
    assert [r.advantage for r in rewarded.rows] == [0.5, -0.5, 0.5, -0.5, None, None]
    assert kl_only.totals.tokens == 4
    assert kl_only.class_tokens == {"new": 4, "past": 4, "general": 4}


def test_failed_completions_are_left_out() -> None:
    scored = group("new", [1.0, 0.0, 0.5])
    broken = (*scored.group.completions_G[:2], Completion.failed("engine died"))
    whole = RolloutGroup(
        prompt=scored.group.prompt, prompt_ids=(3,), completions_G=broken, policy="v", seed=0
    )
    scores = (*scored.scores_G[:2], Score(value=None, status="failed"))
    batch = build_batch(
        [ScoredGroup(group=whole, scores_G=scores)], GRPO(scale="none"), replay_rewards=False
    )
    assert [r.advantage for r in batch.rows] == pytest.approx([0.5, -0.5])
