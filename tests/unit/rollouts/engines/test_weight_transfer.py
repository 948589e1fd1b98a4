"""Tensors on their way through the object store: the same bits, without copies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rollouts.engines.transfer.host import from_host, to_host
from rollouts.engines.transfer.reload import check_complete


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_round_trip_keeps_every_bit(dtype):
    tensor = torch.tensor([[1.5, -2.25], [0.1, 3e4]]).to(dtype)
    ((name, back),) = from_host(to_host({"w": tensor}))
    assert name == "w"
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_shared_both_ways(dtype):
    tensor = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    host = to_host({"w": tensor})
    ((_, back),) = from_host(host)
    assert host["w"].array.ctypes.data == tensor.data_ptr() == back.data_ptr()


def test_a_transposed_tensor_arrives_as_it_reads():
    tensor = torch.arange(6.0).reshape(2, 3).T
    ((_, back),) = from_host(to_host({"w": tensor}))
    assert torch.equal(back, tensor)


def test_plain_arrays_and_packed_ones_pass_through():
    array = np.ones(2, dtype=np.float32)
    once = to_host({"w": array})
    assert to_host(once)["w"] is once["w"]
    assert [t.tolist() for _, t in from_host({"w": array})] == [[1.0, 1.0]]


def test_read_only_arrays_do_not_warn():
    array = np.ones(2, dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(from_host({"w": array}))) == 1


def test_an_update_that_lacks_tensors_names_them():
    check_complete({"a", "b"}, {"a", "b", "c"})
    with pytest.raises(ValueError, match=r"lacks 2 .* tensors: a, c"):
        check_complete({"a", "b", "c"}, {"b"})
