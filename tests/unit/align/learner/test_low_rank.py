"""Adapted layers as one operation: the numbers of peft's own path, and that path where it must act."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align.config.campaign import LoraConfig
from align.learner.model.adapter import TRAINED, with_adapter
from align.learner.model.low_rank import LowRankLinear, plain_adapter
from tests.unit.align.learner.test_packing import SHAPE


def adapted(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)).eval()
    model = with_adapter(model, LoraConfig(rank=4, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("bias"):
                parameter.normal_()
    return model


def layer_of(model: Any) -> Any:
    return next(
        m for m in model.modules() if hasattr(m, "lora_A") and m.base_layer.bias is not None
    )


def results(layer: Any, inputs: Tensor, *, quick: bool) -> list[Tensor]:
    forward = layer.forward if quick else super(LowRankLinear, layer).forward
    x = inputs.clone().requires_grad_()
    trained = [layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight]
    out = forward(x)
    direction = torch.linspace(-1.0, 1.0, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, [x, *trained], direction)]


def test_the_operation_gives_what_peft_gives() -> None:
    layer = layer_of(adapted(alpha=12))
    inputs = torch.randn(2, 5, 32)
    assert isinstance(layer, LowRankLinear)
    assert plain_adapter(layer, inputs) == TRAINED
    for own, other in zip(
        results(layer, inputs, quick=True), results(layer, inputs, quick=False), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-5)


def test_one_product_by_hand() -> None:
    layer = layer_of(adapted())
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.base_layer.bias.fill_(0.5)
        layer.lora_A[TRAINED].weight.fill_(0.25)
        layer.lora_B[TRAINED].weight.fill_(2.0)
    layer.scaling[TRAINED] = 3.0
    # 32 inputs of 1: each of 4 ranks holds 8, so outputs are 3 * 4 * 8 * 2 and the bias.
    assert layer(torch.ones(1, 32)).tolist() == [[192.5] * layer.base_layer.out_features]


@pytest.mark.parametrize("case", ["dropout", "dora", "double", "autocast", "disabled", "trained"])
def test_peft_acts_where_the_operation_is_another(case: str) -> None:
    changes = {"dropout": {"dropout": 0.5}, "dora": {"dora": True}}.get(case, {})
    layer, inputs = layer_of(adapted(**changes)), torch.randn(3, 32)
    if case == "dropout":
        layer.lora_dropout[TRAINED].eval()
        assert plain_adapter(layer, inputs) == TRAINED
        layer.lora_dropout[TRAINED].train()
    if case == "double":
        layer, inputs = layer.double(), inputs.double()
    if case == "disabled":
        layer.enable_adapters(False)
    if case == "trained":
        layer.base_layer.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert plain_adapter(layer, inputs) is None
        torch.manual_seed(0)
        out = layer(inputs)
        torch.manual_seed(0)
        assert torch.equal(out, super(LowRankLinear, layer).forward(inputs))


def test_parameters_keep_their_names() -> None:
    model = adapted()
    quick = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    assert quick and all(isinstance(m.base_layer, nn.Linear) for m in quick)
    assert {type(m).__name__ for m in quick} == {"Linear"}
