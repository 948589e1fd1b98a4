"""Every policy-gradient algorithm: what must not matter to any of them, and what must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.algorithms import ALGORITHMS, PolicyGradient, PolicyInputs
from align.algorithms.outputs import Outputs
from align.algorithms.policy_gradient.reinforce_pp import ReinforcePP
from align.algorithms.rows import Batch, Row, Totals
from align.learner.batching import to_tensors
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.tiny import VOCABULARY, row

MAX_TOKENS = 8
LENGTHS = (2, 3, 4, 1)
ADVANTAGES = (1.3, -0.7, 0.9, -2.1)
TOTALS = Totals(tokens=sum(LENGTHS), sequences=len(LENGTHS), units=len(LENGTHS))

everywhere = pytest.mark.parametrize(
    "algorithm",
    [
        kind.model_validate({"name": name}).for_round(MAX_TOKENS)
        for name, kind in ALGORITHMS.items()
        if issubclass(kind, PolicyGradient)
    ],
    ids=lambda algorithm: algorithm.name,
)


def tensors(gap: float = 0.6) -> list[PolicyInputs]:
    """Four completions, each on its own; ratios from exp(-gap) to exp(gap)."""
    torch.manual_seed(0)
    gaps = torch.linspace(-gap, gap, sum(LENGTHS), dtype=torch.float64).split(LENGTHS)
    found = []
    for length, advantage, gap_T in zip(LENGTHS, ADVANTAGES, gaps, strict=True):
        logprobs_T = -torch.rand(length, dtype=torch.float64) - 0.5
        found.append(
            PolicyInputs(
                logprobs_N=logprobs_T.requires_grad_(),
                start_logprobs_N=logprobs_T.detach() - gap_T,
                advantages_N=torch.full((length,), advantage, dtype=torch.float64),
                rows_N=torch.zeros(length, dtype=torch.long),
                weights_N=torch.rand(length, dtype=torch.float64) + 0.5,
            )
        )
    return found


def joined(parts: list[PolicyInputs]) -> PolicyInputs:
    """One micro-batch of several completions; every second row index stays unused."""

    def flat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    rows = [torch.full_like(part.rows_N, 2 * i) for i, part in enumerate(parts)]
    return PolicyInputs(
        logprobs_N=flat("logprobs_N"),
        start_logprobs_N=flat("start_logprobs_N"),
        advantages_N=flat("advantages_N"),
        rows_N=torch.cat(rows),
        weights_N=flat("weights_N"),
    )


def gradients(parts: list[PolicyInputs]) -> list[Tensor]:
    """Return the gradient of the last backward pass at each completion, and clear it."""
    found = []
    for part in parts:
        assert part.logprobs_N.grad is not None
        found.append(part.logprobs_N.grad.clone())
        part.logprobs_N.grad = None
    return found


@everywhere
def test_the_split_into_micro_batches_does_not_matter(algorithm: PolicyGradient) -> None:
    parts = tensors()
    whole, metrics = algorithm.loss(joined(parts), TOTALS)
    whole.backward()
    expected = gradients(parts)
    first, first_metrics = algorithm.loss(joined(parts[:3]), TOTALS)
    rest, rest_metrics = algorithm.loss(joined(parts[3:]), TOTALS)
    (first + rest).backward()
    torch.testing.assert_close(first + rest, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(parts), expected, atol=1e-6, rtol=0)
    for name in metrics:
        assert float(first_metrics[name] + rest_metrics[name]) == pytest.approx(
            float(metrics[name])
        )


@everywhere
def test_the_order_of_completions_does_not_matter(algorithm: PolicyGradient) -> None:
    parts = tensors()
    straight, _ = algorithm.loss(joined(parts), TOTALS)
    straight.backward()
    expected = gradients(parts)
    turned, _ = algorithm.loss(joined(parts[::-1]), TOTALS)
    turned.backward()
    torch.testing.assert_close(turned, straight)
    torch.testing.assert_close(gradients(parts), expected)


@everywhere
def test_on_policy_the_gradient_raises_what_was_better(algorithm: PolicyGradient) -> None:
    parts = tensors(gap=0.0)
    loss, metrics = algorithm.loss(joined(parts), TOTALS)
    loss.backward()
    assert float(metrics["loss/clip_share"]) == 0.0
    for gradient_T, advantage in zip(gradients(parts), ADVANTAGES, strict=True):
        assert (gradient_T.sign() == (-1.0 if advantage > 0 else 1.0)).all()


@everywhere
def test_no_advantage_no_gradient(algorithm: PolicyGradient) -> None:
    parts = [replace(part, advantages_N=part.advantages_N * 0.0) for part in tensors()]
    loss, _ = algorithm.loss(joined(parts), TOTALS)
    loss.backward()
    assert all((gradient_T == 0.0).all() for gradient_T in gradients(parts))


@everywhere
def test_importance_weights_scale_the_loss(algorithm: PolicyGradient) -> None:
    inputs = joined(tensors())
    assert inputs.weights_N is not None
    plain, _ = algorithm.loss(replace(inputs, weights_N=None), TOTALS)
    ones, _ = algorithm.loss(replace(inputs, weights_N=torch.ones_like(inputs.weights_N)), TOTALS)
    twice, _ = algorithm.loss(
        replace(inputs, weights_N=torch.full_like(inputs.weights_N, 2.0)), TOTALS
    )
    torch.testing.assert_close(ones, plain)
    torch.testing.assert_close(twice, 2 * plain)
    assert abs(plain.item()) > 1e-4


@everywhere
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_that_overflows_leaves_the_gradient_finite(
    algorithm: PolicyGradient, advantage: float
) -> None:
    logprobs_N = torch.tensor([-1.0, -2.0], requires_grad=True)
    inputs = PolicyInputs(
        logprobs_N=logprobs_N,
        start_logprobs_N=torch.tensor([-1000.0, -2000.0]),
        advantages_N=torch.full((2,), advantage),
        rows_N=torch.tensor([0, 0]),
    )
    loss, _ = algorithm.loss(inputs, Totals(tokens=2, sequences=1, units=1))
    loss.backward()
    assert logprobs_N.grad is not None and logprobs_N.grad.isfinite().all()


@everywhere
def test_rows_without_an_advantage_are_ignored(algorithm: PolicyGradient) -> None:
    """KL alone holds them: neither loss nor denominators nor gradient know of them."""
    torch.manual_seed(0)
    logits = {length: torch.randn(length, VOCABULARY) for length in (1, 2, 3)}
    teaching = tuple(
        judged(r, logits[len(r.completion_ids)])
        for r in (row(completion=(4, 5), advantage=1.0), row(completion=(9,), advantage=-0.5))
    )
    held = row(completion=(6, 7, 8), advantage=None)

    def objective(rows: tuple[Row, ...]) -> tuple[float, dict[int, Tensor]]:
        leaves = {len(r.completion_ids): logits[len(r.completion_ids)].clone() for r in rows}
        micro = to_tensors(rows)
        outputs = Outputs(
            hidden_ND=torch.cat([leaf.requires_grad_() for leaf in leaves.values()]),
            head=lambda hidden: hidden,
            targets_N=micro.targets_N,
            temperature=1.0,
            dtype=torch.float32,
            vocabulary=VOCABULARY,
            values_N=torch.zeros(len(micro.targets_N)),
        )
        loss, _ = algorithm.objective(micro, outputs, Batch(rows=rows).totals)
        loss.backward()
        return loss.item(), {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}

    expected, gradient = objective(teaching)
    found, mixed = objective((teaching[0], held, teaching[1]))
    assert found == pytest.approx(expected, abs=1e-6) and abs(expected) > 0.01
    assert (mixed[3] == 0.0).all()
    for length in (1, 2):
        assert gradient[length].abs().max() > 0.01
        torch.testing.assert_close(mixed[length], gradient[length])
    nothing, gradient = objective((held,))
    assert nothing == 0.0 and (gradient[3] == 0.0).all()


def judged(plain: Row, logits_TV: Tensor) -> Row:
    """The row with all that any algorithm may need of it, where the policy has not moved yet."""
    targets_T = torch.tensor(plain.completion_ids)
    start_T = logits_TV.log_softmax(-1).gather(-1, targets_T[:, None])[:, 0]
    zeros = (0.0,) * len(targets_T)
    start = tuple(start_T.tolist())
    return replace(
        plain,
        start_logprobs_T=start,
        reference_logprobs_T=start,
        values_T=zeros,
        returns_T=zeros,
    )


@everywhere
@given(
    values=st.lists(st.none() | st.integers(-4, 4), min_size=2, max_size=6),
    random=st.randoms(use_true_random=False),
)
def test_the_order_within_a_group_does_not_matter(
    algorithm: PolicyGradient, values: list[int | None], random: object
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = scored([1.0, 0.0])
    straight, _ = algorithm.advantages([scored([*values]), other])
    turned, _ = algorithm.advantages([scored([values[i] for i in order]), other])
    for position, index in enumerate(order):
        assert turned[position] == pytest.approx(straight[index], abs=1e-9)


@everywhere
def test_what_has_no_reward_has_no_advantage_and_no_row_without_tokens(
    algorithm: PolicyGradient,
) -> None:
    group = scored([1.0, None, 0.0, 0.5], lengths=(3, 3, 3, 0))
    (advantages_G,) = algorithm.advantages([group])
    assert advantages_G[1] is None and advantages_G[0] is not None
    assert [r.advantage for r in algorithm.rows([group]).rows] == advantages_G[:3]


@pytest.mark.parametrize("name", ["cispo", "dapo", "dr_grpo", "grpo", "gspo", "rloo"])
def test_comparing_needs_a_group(name: str) -> None:
    algorithm = ALGORITHMS[name].model_validate({"name": name})
    algorithm.check(2, "rounds.0")
    with pytest.raises(ValueError, match=rf"rounds\.0\.sampling\.group_size: {name} compares"):
        algorithm.check(1, "rounds.0")


def test_reinforce_pp_needs_a_group_only_for_its_baseline() -> None:
    ReinforcePP().check(1, "rounds.0")
    with pytest.raises(ValueError, match="reinforce_pp with group_baseline compares"):
        ReinforcePP(group_baseline=True).check(1, "rounds.0")


@pytest.mark.parametrize("name", ["cispo", "dapo", "dr_grpo", "grpo", "gspo", "rloo"])
def test_equal_rewards_move_nothing_exactly(name: str) -> None:
    """0.1 + 0.1 + 0.1 is not 0.3 in floats, and a row of 1e-17 would cost a backward pass."""
    algorithm = ALGORITHMS[name].model_validate({"name": name}).for_round(MAX_TOKENS)
    assert isinstance(algorithm, PolicyGradient)
    (advantages_G,) = algorithm.advantages([scored([0.1, 0.1, 0.1])])
    assert advantages_G == [0.0, 0.0, 0.0]
    assert not algorithm.moves(0.0) and algorithm.moves(-0.1)


def scored(
    values: list[float | None], lengths: tuple[int, ...] = (), cut: tuple[int, ...] = ()
) -> ScoredGroup:
    """A group with these rewards; two tokens each unless said otherwise."""
    lengths = lengths or (2,) * len(values)
    completions = tuple(
        Completion(
            token_ids=(4,) * length,
            logprobs_T=(-1.0,) * length,
            text="",
            finish_reason="length" if i in cut else "stop",
        )
        for i, length in enumerate(lengths)
    )
    scores = tuple(
        Score(
            value=value,
            status="failed" if value is None else "scored",
            parts={"task": value},
            weights={"task": 1.0},
        )
        for value in values
    )
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id="p", text="p"),
            prompt_ids=(1,),
            completions_G=completions,
            policy="round/0",
            seed=0,
        ),
        scores_G=scores,
    )
