"""The float32 products: torch's own numbers and gradients, in every shape and under every switch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from align.learner.model import linear
from align.learner.model.linear import FloatLinear, product, speed_up


def pair(bias: bool) -> tuple[nn.Linear, FloatLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(7, 5, bias=bias)
    quick = deepcopy(plain)
    quick.__class__ = FloatLinear
    return plain, quick  # type: ignore[return-value]


def outcome(layer: nn.Linear, given: Tensor) -> list[Tensor]:
    """Result, and the gradients of input and parameters."""
    own = given.clone().requires_grad_()
    out = layer(own)
    (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
    assert own.grad is not None
    return [out.detach(), own.grad, *[p.grad for p in layer.parameters() if p.grad is not None]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (1, 7), (2, 3, 7), (0, 7)])
def test_the_same_numbers_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, expected = (outcome(layer, given) for layer in reversed(pair(bias)))
    assert len(found) == len(expected) == 3 + bias
    for own, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(own, reference, atol=1e-5, rtol=1e-5)


def test_transposed_operands() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(6, 4, generator=generator) for _ in range(2))
    torch.testing.assert_close(product(left.T, right.T), left.T @ right, atol=1e-5, rtol=1e-5)


def test_frozen_weights_get_no_gradient() -> None:
    _, layer = pair(bias=True)
    layer.requires_grad_(False)
    given = torch.randn(3, 7, requires_grad=True)
    layer(given).sum().backward()
    assert given.grad is not None and layer.weight.grad is None and layer.bias.grad is None


def test_autocast_and_other_precisions_stay_torchs_own() -> None:
    plain, quick = pair(bias=True)
    given = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(given).dtype == torch.bfloat16
        assert torch.equal(quick(given), plain(given))
    double = given.double()
    assert torch.equal(quick.double()(double), plain.double()(double))


def test_only_plain_layers_change_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.Sequential(nn.Linear(2, 2)))
    names = [name for name, _ in model.named_parameters()]
    monkeypatch.setattr(linear, "_is_served", lambda: False)
    speed_up(model)
    assert type(model[0]) is nn.Linear
    monkeypatch.setattr(linear, "_is_served", lambda: True)
    speed_up(model)
    assert [type(part) for part in (model[0], model[1], model[2][0])] == [
        FloatLinear, Own, FloatLinear,
    ]  # fmt: skip
    assert [name for name, _ in model.named_parameters()] == names
