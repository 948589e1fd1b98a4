"""Weights on their way from the learner's memory straight to the workers of engines.

Every rank of the learner makes a `WeightSender`. Its ranks gather one tensor at a time, and the first one
sends it in a bucket while the next are gathered: nobody ever holds the whole model. vLLM's own trainer side
does so for ``nccl`` and ``ipc``; ``gloo`` is the same path over the memory of CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from rollouts.engines.protocol import WeightTransfer
from rollouts.engines.transfer.buckets import BUCKET_BYTES, TensorForm, in_buckets, pack
from rollouts.engines.transfer.client import EngineClient
from rollouts.engines.transfer.link import SENDER, Link, LinkAddress, open_store

if TYPE_CHECKING:
    from torch import Tensor


POLL_S = 0.0005
"""Seconds between two looks at a bucket that is on its way."""


class WeightSource(Protocol):
    """Weights of the learner, as one of its ranks sees them."""

    def forms(self) -> Sequence[TensorForm]:
        """List the tensors to come, in their order, as files have them; nothing is gathered."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole tensors one at a time. All ranks must go through them together."""
        ...


class WeightSender(Protocol):
    """One rank's end of the way to a group of engines."""

    def send(self) -> None:
        """Send all weights, and return when every engine has loaded them."""
        ...

    def close(self) -> None:
        """Leave the engines: none of them waits for more. Safe to call twice."""
        ...


def open_sender(
    backend: WeightTransfer,
    source: WeightSource,
    client: EngineClient,
    *,
    rank: int,
    host: str,
    timeout_s: float,
    bucket_bytes: int = BUCKET_BYTES,
) -> WeightSender:
    """Open the way to the workers of engines; all ranks of the learner call this.

    Args:
        host: address of this machine that the engines' reach.
        timeout_s: seconds that a message of a bucket may take.
    """
    if backend != "gloo":
        return _VLLMSender(backend, source, client, rank=rank, host=host, bucket_bytes=bucket_bytes)
    address = LinkAddress(host=host, port=0, size=client.num_workers + 1, timeout_s=timeout_s)
    return GlooSender(source, client, address, rank=rank, bucket_bytes=bucket_bytes)


class GlooSender:
    """Sender over gloo; only the first rank has a link, the others gather with it."""

    def __init__(
        self,
        source: WeightSource,
        client: EngineClient,
        address: LinkAddress,
        *,
        rank: int,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._source, self._client, self._bucket_bytes = source, client, bucket_bytes
        self._link: Link | None = None
        if rank > 0:
            return
        store = open_store(address, is_master=True)
        address = replace(address, port=int(store.port))
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(client.open, {"address": address.to_dict()})
            self._link = Link(address, SENDER, store)
            opening.result()

    def send(self) -> None:
        """Send all weights; the next bucket is gathered while one is on its way."""
        forms = self._source.forms()
        if self._link is None:
            for _ in self._source.tensors():
                pass
            return
        listed = [(form.name, form.dtype, list(form.shape)) for form in forms]
        pool, tensors = ThreadPoolExecutor(1), self._source.tensors()
        try:
            self._client.start_weight_update()
            update = {"forms": listed, "bucket_bytes": self._bucket_bytes}
            loading = pool.submit(self._client.update_weights, update)
            self._broadcast(self._link, forms, tensors, loading)
            loading.result()
            self._client.finish_weight_update()
        finally:
            # The other ranks go through all tensors, whatever became of the engines.
            for _ in tensors:
                pass
            # Not waited for: an engine that is stuck is ended by the pool, which replaces it.
            pool.shutdown(wait=False)

    def close(self) -> None:
        """Leave the link."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _broadcast(
        self,
        link: Link,
        forms: Sequence[TensorForm],
        tensors: Iterator[tuple[str, Tensor]],
        loading: Future[None],
    ) -> None:
        import torch

        under_way: list[tuple[Any, Any]] = []
        for bucket in in_buckets(forms, self._bucket_bytes):
            buffer = torch.empty(sum(form.nbytes for form in bucket), dtype=torch.uint8)
            pack(bucket, tensors, buffer)
            if under_way:
                _wait(under_way.pop()[0], loading)
            under_way.append((link.broadcast(buffer), buffer))
        for work, _ in under_way:
            _wait(work, loading)


def _wait(work: Any, loading: Future[None]) -> None:
    """Wait until a bucket has been sent, or an engine has failed, which would not take it."""
    while not work.is_completed():
        if loading.done():
            loading.result()
        time.sleep(POLL_S)
    work.wait()


class _VLLMSender:
    """Sender of vLLM's own: ``nccl`` between GPUs, ``ipc`` within one."""

    def __init__(
        self,
        backend: WeightTransfer,
        source: WeightSource,
        client: EngineClient,
        *,
        rank: int,
        host: str,
        bucket_bytes: int,
    ) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        init: Any
        if backend == "ipc":
            init = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
        else:
            init = NCCLTrainerInitInfo(
                rank=rank,
                master_address=host,
                master_port=get_open_port(),
                world_size=client.num_workers + 1,
                packed_buffer_size_bytes=bucket_bytes,
            )
        self._engine: Any = WeightTransferTrainerFactory.trainer_init(
            init, client=client, source=_vllm_source(source)
        )

    def send(self) -> None:
        self._engine.send_weights()

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


def _vllm_source(source: WeightSource) -> Any:
    """Return a source as vLLM's trainer side reads it."""
    import torch
    from vllm.distributed.weight_transfer.base import ParamMeta
    from vllm.distributed.weight_transfer.base import WeightSource as VLLMSource

    class Source(VLLMSource):
        """Weights of the learner."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(f.name, getattr(torch, f.dtype), f.shape) for f in source.forms()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return source.tensors()

    return Source()
