"""Backends that vLLM's workers take weights by, under vLLM's own weight-transfer verbs.

``host``: tensors arrive as arguments, whole or in parts, from the memory of the engine's process. ``gloo``:
the learner broadcasts them in buckets straight to every worker, in the memory of CPUs. ``nccl`` and ``ipc``
are vLLM's own for GPUs: a broadcast, and memory of a GPU that learner and engine share. All of them also
take tensors as arguments: the update of a low-rank adapter is small, and its base lies in files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rollouts.engines.protocol import WeightTransfer
from rollouts.engines.transfer.buckets import TensorForm, in_buckets, unpack
from rollouts.engines.transfer.host import from_host
from rollouts.engines.transfer.link import Link, LinkAddress
from rollouts.engines.transfer.reload import Reload

PREFIX = "keel_"
"""Beginning of the backends' names in vLLM, which has ``nccl`` and ``ipc`` of its own."""


def register_backends() -> None:
    """Make Keel's backends known to vLLM in this process.

    Their classes are made here because their bases live in vllm.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory

    if PREFIX + "host" in Factory._registry:
        return
    taker = _argument_taker()
    Factory.register_engine(PREFIX + "host", _plain_engine(taker))
    Factory.register_engine(PREFIX + "gloo", _gloo_engine(taker))
    for name in ("nccl", "ipc"):
        load_class: Any = Factory._registry[name]
        # Looked up when an engine asks for it: vLLM's module imports what is there on GPUs only.
        Factory._registry[PREFIX + name] = _Guarded(taker, load_class)
    assert {PREFIX + name for name in get_args(WeightTransfer)} <= set(Factory._registry)


@dataclass(frozen=True, slots=True)
class _Guarded:
    """Loader of one of vLLM's backends, to which the guards are added."""

    taker: Any
    load_class: Any

    def __call__(self) -> Any:
        """Return the class."""
        return type("Engine", (self.taker, self.load_class()), {})


def _argument_taker() -> Any:
    """Return the base of all backends: a guarded reload, and updates that come as arguments."""

    class ArgumentTaker:
        """Loads tensors that are already in this process; others are the backend's own business."""

        reload: Reload

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.reload = Reload(self)

        def start_weight_update(self) -> None:
            self.reload.start()

        def finish_weight_update(self) -> None:
            self.reload.finish()
            # Memory that ``ipc`` shares with the learner, which may have it again.
            if (shared := getattr(self, "_packed_importer", None)) is not None:
                shared.close()

        def update_weights(self, update_info: dict[str, Any]) -> None:
            try:
                if "tensors" in update_info:
                    self._load(**update_info)
                else:
                    super().update_weights(update_info)  # type: ignore[misc]
            except Exception:
                # Ends the reload that vLLM has under way, so that a next update can start.
                self.reload.finish()
                raise

        def _load(
            self,
            tensors: Mapping[str, Any] | None,
            is_part: bool = False,
            is_last: bool = True,
        ) -> None:
            """Load an update, or the model's own files where it is None.

            Args:
                is_part: True if the model's other tensors come in other calls.
                is_last: True if no other part follows.
            """
            if not is_part or tensors is None:
                self.reload.load(tensors)
                return
            self.reload.take(from_host(tensors))
            if is_last:
                self.reload.check_whole()

    return ArgumentTaker


def _plain_engine(taker: Any) -> Any:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class Nothing(WeightTransferInitInfo, WeightTransferUpdateInfo):
        """Nothing to set up: tensors arrive as arguments."""

    class HostEngine(taker, WeightTransferEngine):
        """Loads tensors that are already in this process."""

        init_info_cls = update_info_cls = Nothing

        def init_transfer_engine(self, init_info: Any) -> None:
            """Do nothing."""

        def receive_weights(self, update_info: Any) -> None:
            """Do nothing: tensors come as arguments."""

        def shutdown(self) -> None:
            """Do nothing: an engine holds nothing between updates."""

    return HostEngine


def _gloo_engine(taker: Any) -> Any:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class GlooInit(WeightTransferInitInfo):
        """Link to the learner."""

        address: Mapping[str, Any]
        rank_offset: int
        """Rank of this engine's first worker in the link."""

    @dataclass
    class GlooUpdate(WeightTransferUpdateInfo):
        """Forms of the tensors to come, in their order, and the size of the buckets they come in."""

        forms: Sequence[tuple[str, str, Sequence[int]]]
        bucket_bytes: int

    class GlooEngine(taker, WeightTransferEngine):
        """Loads buckets of tensors that the learner broadcasts; the next one comes meanwhile."""

        init_info_cls, update_info_cls = GlooInit, GlooUpdate
        _link: Link | None = None

        def init_transfer_engine(self, init_info: GlooInit) -> None:
            self.shutdown()
            rank = init_info.rank_offset + self.parallel_config.rank
            self._link = Link(LinkAddress(**init_info.address), rank)

        def receive_weights(self, update_info: GlooUpdate) -> None:
            assert self._link is not None, "the link is opened before weights are sent"
            forms = [TensorForm(n, d, tuple(shape)) for n, d, shape in update_info.forms]
            receive_buckets(self._link, forms, update_info.bucket_bytes, self.reload)

        def shutdown(self) -> None:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    return GlooEngine


def receive_buckets(
    link: Link, forms: Sequence[TensorForm], bucket_bytes: int, reload: Reload
) -> None:
    """Load buckets as they are broadcast, each while the next one comes.

    Raises:
        ValueError: tensors are missing.
        RuntimeError: the link broke.
    """
    import torch

    def begin(index: int) -> tuple[Any, Any]:
        # A buffer of its own: layers keep what they were given until all of it is there.
        buffer = torch.empty(sum(form.nbytes for form in buckets[index]), dtype=torch.uint8)
        return buffer, link.broadcast(buffer)

    buckets = in_buckets(forms, bucket_bytes)
    coming = begin(0)
    for index, bucket in enumerate(buckets):
        buffer, work = coming
        work.wait()
        if index + 1 < len(buckets):
            coming = begin(index + 1)
        reload.take(unpack(bucket, buffer))
    reload.check_whole()
