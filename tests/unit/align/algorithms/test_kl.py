"""KL estimators against enumeration over a tiny vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import divergences as kl


def distributions(seed: int, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own, anchor = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    return own, anchor.log_softmax(-1)


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(value, logits)
    return found


def test_full_by_hand() -> None:
    own = torch.tensor([[0.5, 0.5]]).log()
    anchor = torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    assert kl.full(own, anchor).item() == pytest.approx(expected.item(), abs=1e-7)


@given(st.integers(0, 10_000))
def test_full_is_zero_only_on_itself(seed: int) -> None:
    own, anchor = distributions(seed)
    own = own.log_softmax(-1)
    assert kl.full(own[None], own[None]).item() == pytest.approx(0.0, abs=1e-12)
    assert kl.full(own[None], anchor[None]).item() > 0


@pytest.mark.parametrize("seed", range(5))
def test_expected_values_of_the_estimators(seed: int) -> None:
    logits, anchor_V = distributions(seed)
    own_V = logits.log_softmax(-1)
    exact = kl.full(own_V[None], anchor_V[None]).item()
    expected_k3 = (own_V.exp() * kl.k3(own_V, anchor_V)).sum().item()
    assert expected_k3 == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_expected_gradients_of_the_estimators(seed: int) -> None:
    """k2 as a loss gives the reverse KL's gradient, k3 the forward KL's, k1 as a loss none at all."""
    logits, anchor_V = distributions(seed)
    logits.requires_grad_(True)
    own_V = logits.log_softmax(-1)
    weights_V = own_V.exp().detach()
    reverse = gradient(kl.full(own_V[None], anchor_V[None]).sum(), logits)
    forward = gradient((anchor_V.exp() * (anchor_V - logits.log_softmax(-1))).sum(), logits)
    own_V = logits.log_softmax(-1)
    k1 = gradient((weights_V * (own_V - anchor_V)).sum(), logits)
    k2 = gradient((weights_V * kl.k2(logits.log_softmax(-1), anchor_V)).sum(), logits)
    k3 = gradient((weights_V * kl.k3(logits.log_softmax(-1), anchor_V)).sum(), logits)
    torch.testing.assert_close(k2, reverse)
    torch.testing.assert_close(k3, forward)
    torch.testing.assert_close(k1, torch.zeros_like(k1))


def test_k1_in_reward_gives_the_sequence_gradient() -> None:
    """Expectation over all two-token sequences equals the gradient of the exact sequence KL."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = 3
    logits = torch.randn(1 + vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    anchor = torch.randn(1 + vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    logits.requires_grad_(True)
    anchor_logp = anchor.log_softmax(-1)

    own = logits.log_softmax(-1)
    first = kl.full(own[:1], anchor_logp[:1]).sum()
    second = (own[0].exp() * kl.full(own[1:], anchor_logp[1:])).sum()
    exact = gradient(first + second, logits)

    estimate = torch.zeros_like(exact)
    for a in range(vocabulary):
        for b in range(vocabulary):
            own = logits.log_softmax(-1)
            logprobs = torch.stack([own[0, a], own[1 + a, b]])
            anchors = torch.stack([anchor_logp[0, a], anchor_logp[1 + a, b]])
            surrogate = kl.k1_in_reward(logprobs, anchors, torch.tensor([0, 0])).sum()
            estimate += logprobs.sum().exp().detach() * gradient(surrogate, logits)
    torch.testing.assert_close(estimate, exact)


def test_k1_cost_to_go_stays_within_its_row() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    anchors = torch.tensor([-1.5, -2.5, -1.0])
    kl.k1_in_reward(logprobs, anchors, torch.tensor([0, 0, 1])).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1.0, 0.5, -2.0])


def test_several_anchors_are_one_geometric_mixture() -> None:
    logits, first = distributions(1)
    _, second = distributions(2)
    own = logits.log_softmax(-1)
    summed = 0.3 * kl.full(own[None], first[None]) + 0.1 * kl.full(own[None], second[None])
    unnormalised = 0.75 * first + 0.25 * second
    log_z = unnormalised.logsumexp(-1)
    mixture = unnormalised - log_z
    expected = 0.4 * (kl.full(own[None], mixture[None]) - log_z)
    torch.testing.assert_close(summed, expected)


@given(st.integers(0, 10_000))
def test_forward_is_the_other_direction(seed: int) -> None:
    """The forward KL is the likelihood lost on the anchor's own text; its gradient pulls the policy
    there."""
    logits, anchor_V = distributions(seed)
    logits.requires_grad_(True)
    own_V = logits.log_softmax(-1)
    value = kl.forward(own_V[None], anchor_V[None]).sum()
    lost = (anchor_V.exp() * anchor_V).sum() - (anchor_V.exp() * own_V).sum()
    torch.testing.assert_close(value, lost)
    torch.testing.assert_close(gradient(value, logits), own_V.exp().detach() - anchor_V.exp())
