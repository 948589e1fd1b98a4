"""Weights sent straight to engines: buckets cut alike, every bit there, and errors that end the wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.config.policy import PolicyConfig
from align.learner.model.policy import Policy
from align.learner.ranks.ranks import SOLO
from align.learner.sender import DirectTransfer, PolicyTensors
from rollouts.engines.transfer.backends import receive_buckets
from rollouts.engines.transfer.buckets import TensorForm, form_of, in_buckets, pack, unpack
from rollouts.engines.transfer.client import EngineClient
from rollouts.engines.transfer.link import Link, LinkAddress
from rollouts.engines.transfer.sender import GlooSender
from tests.patience import patient
from tests.unit.model_kinds import save_kind
from tests.unit.tiny import save_model

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 60))
def test_buckets_keep_order_and_bits(sizes, limit):
    dtypes = [torch.float32, torch.bfloat16, torch.uint8]
    tensors = {str(n): torch.arange(size).to(dtypes[n % 3]) + n for n, size in enumerate(sizes)}
    forms = [form_of(name, tensor) for name, tensor in tensors.items()]
    buckets = in_buckets(forms, limit)
    assert [form for bucket in buckets for form in bucket] == forms
    assert all(len(b) == 1 or sum(f.nbytes for f in b) <= limit for b in buckets)
    pairs = iter(tensors.items())
    for bucket in buckets:
        buffer = torch.empty(sum(form.nbytes for form in bucket), dtype=torch.uint8)
        pack(bucket, pairs, buffer)
        for name, tensor in unpack(bucket, buffer):
            assert tensor.dtype == tensors[name].dtype
            assert torch.equal(tensor, tensors[name])


def test_another_tensor_than_announced_is_not_sent():
    form = TensorForm("a", "float32", (2,))
    with pytest.raises(ValueError, match="expect"):
        pack([form], [("b", torch.zeros(2))], torch.empty(8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tensors ended 8 bytes before"):
        pack([form], [], torch.empty(8, dtype=torch.uint8))


class Layers:
    """What `Reload` does with tensors, without a model: keeps copies."""

    def __init__(self, expected: set[str]) -> None:
        self.expected, self.tensors = expected, {}

    def take(self, pairs: Iterator[tuple[str, Tensor]]) -> None:
        # Not copied: a layer holds on to what it gets until all of it is there.
        self.tensors |= dict(pairs)

    def check_whole(self) -> None:
        if missing := self.expected - self.tensors.keys():
            raise ValueError(f"lacks {missing}")


class Workers(EngineClient):
    """Engines' workers as threads of this process, each with a real link."""

    def __init__(self, count: int, expected: set[str], *, fault: str = "") -> None:
        super().__init__((), 1, timeout_s=patient(60.0), version="v1")
        self.layers = [Layers(expected) for _ in range(count)]
        self.links: list[Link] = []
        self.log: list[str] = []
        self._count, self._fault = count, fault
        self._threads = ThreadPoolExecutor(count)

    @property
    def num_workers(self) -> int:
        return self._count

    def open(self, info: Any) -> None:
        address = LinkAddress(**info["address"])
        self.links = self._each(lambda rank: Link(address, rank + 1))

    def start_weight_update(self) -> None:
        self.log.append("start")

    def update_weights(self, update_info: Any) -> None:
        forms = [TensorForm(n, d, tuple(s)) for n, d, s in update_info["forms"]]
        if self._fault == "leaves":
            self.links[-1].close()
            return
        if self._fault == "refuses":
            raise ValueError("these are not my weights")
        self._each(
            lambda rank: receive_buckets(
                self.links[rank], forms, update_info["bucket_bytes"], self.layers[rank]
            )
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.log.append(f"finish {self.version}")

    def _each(self, work: Callable[[int], Any]) -> list[Any]:
        calls: list[Future[Any]] = [self._threads.submit(work, n) for n in range(self._count)]
        return [call.result() for call in calls]


def address_of(size: int) -> LinkAddress:
    return LinkAddress(host="127.0.0.1", port=0, size=size, timeout_s=patient(20.0))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_every_worker_gets_the_files_of_the_policy(tmp_path, kind):
    """Tensors that are stacked in memory arrive as files have them, tied ones once."""
    folder = save_model(tmp_path / "m") if kind == "llama" else save_kind(tmp_path / "m", kind)
    policy = Policy(folder, PolicyConfig(model=str(folder)), device=CPU)
    source = PolicyTensors(policy)
    wanted = dict(policy.weights("v", tmp_path).tensors)
    workers = Workers(2, set(wanted))
    sender = GlooSender(source, workers, address_of(3), rank=0, bucket_bytes=2000)
    assert len(in_buckets(source.forms(), 2000)) > 3
    for _ in range(2):
        sender.send()
        for layers in workers.layers:
            assert layers.tensors.keys() == wanted.keys()
            assert all(torch.equal(layers.tensors[name], wanted[name]) for name in wanted)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(1.0)
        wanted = dict(policy.weights("v", tmp_path).tensors)
    assert workers.log == ["start", "finish v1"] * 2
    sender.close()


def test_a_worker_that_leaves_or_refuses_ends_the_sending(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "m")
    policy = Policy(folder, PolicyConfig(model=str(folder)), device=CPU)
    names = {form.name for form in PolicyTensors(policy).forms()}
    transfer = DirectTransfer(policy, SOLO, "gloo", patient(20.0))
    monkeypatch.setattr("align.learner.sender.reachable_host", lambda: "127.0.0.1")
    for fault, said in (("leaves", "onnect"), ("refuses", "not my weights"), ("", "")):
        workers = Workers(2, names, fault=fault)
        monkeypatch.setattr("align.learner.sender.EngineClient", lambda *_, w=workers, **__: w)
        failure = transfer.send("v1", [object()], 1)
        assert said in failure
        assert bool(said) == bool(failure)
    transfer.close()
