"""Weights between two snapshots: exact at the ends, a straight line in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.campaign import PolicyConfig
from align.learner.model.adapter import merged
from align.learner.model.blend import between, blended
from align.learner.model.policy import Policy
from rollouts.errors import RunError
from tests.unit.tiny import save_model

SHARES = st.floats(0.0, 1.0)
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


def vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bits(tensor: Tensor) -> list[int]:
    return tensor.view(torch.int32).flatten().tolist()


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=8))
def test_the_ends_are_the_snapshots_bit_for_bit(pairs: list[tuple[float, float]]) -> None:
    start, end = (vector(list(side)) for side in zip(*pairs, strict=True))
    assert bits(between(start, end, 0.0)) == bits(start)
    assert bits(between(start, end, 1.0)) == bits(end)


@given(FLOATS, FLOATS, SHARES)
def test_no_share_leaves_the_line(start: float, end: float, share: float) -> None:
    (found,) = between(vector([start]), vector([end]), share).tolist()
    slack = 1e-6 * max(abs(start), abs(end))
    assert min(start, end) - slack <= found <= max(start, end) + slack


def test_a_quarter_of_the_way() -> None:
    assert between(vector([1.0, -2.0]), vector([3.0, 2.0]), 0.25).tolist() == [1.5, -1.0]


def test_half_precision_is_blended_in_float32() -> None:
    """1 + 2^-9 lies between two neighbours of bfloat16."""
    start, end = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125])
    assert between(start, end, 0.25).tolist() == [1.001953125]


def test_another_set_of_tensors_is_refused(tmp_path: Path) -> None:
    for name, tensors in {"a": {"one": vector([1.0])}, "b": {"two": vector([2.0])}}.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    with pytest.raises(RunError, match="only the second holds 'two'"):
        dict(blended(tmp_path / "a", tmp_path / "b", 0.5))


# policies


def policy(base: Path, **changes: Any) -> Policy:
    config = PolicyConfig.model_validate({"model": str(base), **changes})
    return Policy(base, config, device=torch.device("cpu"))


def saved(policy: Policy, folder: Path) -> dict[str, Tensor]:
    folder.mkdir()
    policy.save(folder)
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def moved(policy: Policy, folder: Path) -> dict[str, Tensor]:
    """The policy's snapshot after its weights have changed."""
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(0.01 * (number + 1))
    return saved(policy, folder)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}])
def test_a_policy_between_two_snapshots(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    one = policy(save_model(tmp_path / "base"), lora=lora)
    parent, candidate = moved(one, tmp_path / "parent"), moved(one, tmp_path / "candidate")
    found = {}
    for share in (0.0, 0.5, 1.0):
        one.blend(tmp_path / "parent", tmp_path / "candidate", share)
        found[share] = saved(one, tmp_path / f"at-{share}")
    for name in candidate:
        assert bits(found[0.0][name]) == bits(parent[name])
        assert bits(found[1.0][name]) == bits(candidate[name])
        torch.testing.assert_close(found[0.5][name], (parent[name] + candidate[name]) / 2)


def test_over_the_base_an_adapters_update_is_scaled(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    one = policy(base, lora={"rank": 2, "alpha": 4.0})
    start = {name: tensor.clone() for name, tensor in merged(one.model).items()}
    moved(one, tmp_path / "candidate")
    end = {name: tensor.clone() for name, tensor in merged(one.model).items()}
    one.blend(base, tmp_path / "candidate", 0.25)
    for name, tensor in merged(one.model).items():
        torch.testing.assert_close(tensor, start[name] + 0.25 * (end[name] - start[name]))


def test_whole_models_under_a_fresh_adapter(tmp_path: Path) -> None:
    """A snapshot with ``merge`` is a model: its weights are blended, and the adapter adds nothing."""
    lora = {"rank": 2, "alpha": 4.0, "serve": "merged", "merge": True}
    base = save_model(tmp_path / "base")
    one = policy(base, lora=lora)
    candidate = moved(one, tmp_path / "candidate")
    one.blend(base, tmp_path / "candidate", 0.5)
    parent = load_file(base / "model.safetensors")
    for name, tensor in saved(one, tmp_path / "half").items():
        torch.testing.assert_close(tensor, (parent[name] + candidate[name]) / 2)
