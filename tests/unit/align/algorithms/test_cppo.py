"""CPPO's weights of rollouts by hand, its loss against PPO's, and what it holds to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.policy_gradient.actor_critic.cppo import CPPO, weights
from align.algorithms.policy_gradient.actor_critic.ppo import PPO
from align.algorithms.rows import Batch, Row
from align.learner.batching import to_tensors
from tests.unit.align.algorithms.test_ppo import outputs_of
from tests.unit.tiny import row


def filled(score: float | None, logprob: float, reference: float = -1.0) -> Row:
    """A row of two tokens as the learner fills it in."""
    return replace(
        row((1,), (2, 3), score),
        start_logprobs_T=(logprob, logprob),
        reference_logprobs_T=(reference, reference),
        values_T=(0.0, 0.0),
    )


@pytest.mark.parametrize(
    ("values", "spread", "expected"),
    [
        # Mean 0 and deviation 1: the bounds are reached exactly there.
        ([-1.0, 1.0], 1.0, [0.5, 2.0]),
        # Half of the way to each bound.
        ([-1.0, 1.0], 2.0, [0.75, 1.5]),
        # Beyond its bound a weight stays there: mean 1, deviation 2.
        ([0.0, 0.0, 0.0, 0.0, 5.0], 1.0, [0.75, 0.75, 0.75, 0.75, 2.0]),
        ([3.0, 3.0], 1.0, [1.0, 1.0]),
        ([3.0], 1.0, [1.0]),
        ([], 1.0, []),
    ],
)
def test_weights_by_hand(values: list[float], spread: float, expected: list[float]) -> None:
    assert weights(values, CPPO(spread=spread)) == pytest.approx(expected)


def test_each_kind_of_rollout_gets_its_two_weights() -> None:
    """Learning goes by the log-probability alone and keeping by the score alone."""
    kinds = {  # score, log-probability -> learn, keep
        "high performance": ((1.0, -0.5), (2.0, 2.0)),
        "overfitting": ((-1.0, -0.5), (2.0, 0.5)),
        "high variance": ((1.0, -1.5), (0.5, 2.0)),
        "noisy": ((-1.0, -1.5), (0.5, 0.5)),
    }
    rows = [filled(*given) for given, _ in kinds.values()]
    held = filled(None, -9.0)
    settings: dict[str, Any] = {"lam": 1.0, "whiten": False}
    weighted = CPPO(**settings).complete([held, *rows])
    plain = PPO(**settings).complete([held, *rows])
    assert weighted[-1] == plain[-1] == held
    for ours, theirs, (_, (learn, keep)) in zip(weighted, plain, kinds.values(), strict=False):
        assert theirs.advantages_T is not None and ours.returns_T == theirs.returns_T
        assert ours.advantages_T == pytest.approx([learn * a for a in theirs.advantages_T])
        assert ours.keep_weight == keep


def test_the_retention_term_by_hand() -> None:
    """Two rows of two tokens, .5 and 1 nats off their reference, kept with weights 2 and .5."""
    rows = [
        replace(filled(1.0, -1.0), keep_weight=2.0),
        replace(filled(1.0, -1.0), keep_weight=0.5),
        filled(None, -1.0, reference=9.0),
    ]
    rows = [replace(r, advantages_T=(1.0, 1.0), returns_T=(0.0, 0.0)) for r in rows]
    rows[-1] = replace(rows[-1], advantages_T=None)
    micro, totals = to_tensors(rows), Batch(rows=tuple(rows)).totals
    logprobs_N = torch.tensor([-1.5, -1.5, -2.0, -2.0, -1.0, -1.0], requires_grad=True)
    losses = {}
    for algorithm in (CPPO(keep=0.2), PPO()):
        losses[algorithm.name], metrics = algorithm.objective(
            micro, outputs_of(micro, logprobs_N, torch.zeros(6)), totals
        )
        if algorithm.name == "cppo":
            # (2 * .25 * 2 tokens + .5 * 1 * 2 tokens) / 4 tokens that teach.
            assert metrics["loss/knowledge_retention"].item() == pytest.approx(0.5)
    (difference,) = torch.autograd.grad(losses["cppo"] - losses["ppo"], logprobs_N)
    # .2 * 2 * weight * distance / 4 for each token; the row that is only held has none.
    assert difference.tolist() == pytest.approx([-0.1, -0.1, -0.05, -0.05, 0.0, 0.0])


def test_equal_rollouts_without_a_term_are_ppos() -> None:
    rows = [filled(1.0, -1.0), filled(1.0, -1.0)]
    ours, theirs = CPPO(keep=0.0).complete(rows), PPO().complete(rows)
    assert list(ours) == list(theirs)


def test_only_rows_that_teach_are_compared_with_the_reference() -> None:
    assert CPPO().needs_of(filled(1.0, -1.0)) == {"start", "values", "reference"}
    assert CPPO().needs_of(filled(None, -1.0)) == {"start", "values"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bounds": [2.0, 0.5]}, "bounds"),
        ({"keep": -1.0}, "keep"),
        ({"bounds": [1.0, 1.0], "spread": 2.0}, "remove spread"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        algorithm_from({"name": "cppo", **wrong})
