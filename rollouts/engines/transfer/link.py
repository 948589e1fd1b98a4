"""Group of one sender and many receivers that bytes are broadcast in, over gloo.

It stands beside the default group of torch.distributed, which learner ranks and vLLM's workers each have
among themselves.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SENDER = 0
"""Rank of the sender."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkAddress:
    """Meeting point of a link's members, and what they agree on."""

    host: str
    port: int
    size: int
    """Number of members, the sender among them."""
    timeout_s: float
    """Seconds that any one broadcast may take."""

    def to_dict(self) -> dict[str, Any]:
        """Return the address as plain values."""
        return asdict(self)


class Link:
    """One member's end of a link.

    Args:
        store: the meeting point where this process has opened it; None: it is looked for at the address.
    """

    def __init__(self, address: LinkAddress, rank: int, store: Any = None) -> None:
        import torch

        distributed: Any = torch.distributed
        gloo = distributed.ProcessGroupGloo
        store = store or open_store(address)
        options = gloo._Options()
        options._timeout = timedelta(seconds=address.timeout_s)
        options._devices = [gloo.create_device(hostname=_own_host(address))]
        self._store = store
        self._group: Any = gloo(distributed.PrefixStore("link", store), rank, address.size, options)

    def broadcast(self, buffer: Tensor) -> Any:
        """Begin to send a buffer, or to fill it with what comes; ``wait()`` of the result ends it."""
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank, options.rootTensor = SENDER, 0
        return self._group.broadcast([buffer], options)

    def close(self) -> None:
        """Leave the link: whoever waits for this member gets an error at once."""
        group, self._group, self._store = self._group, None, None
        with suppress(RuntimeError, AttributeError):
            group.shutdown()


def open_store(address: LinkAddress, *, is_master: bool = False) -> Any:
    """Open or join the meeting point; port 0 lets the system choose one."""
    import torch

    distributed: Any = torch.distributed
    return distributed.TCPStore(
        address.host,
        address.port,
        None,
        is_master=is_master,
        timeout=timedelta(seconds=address.timeout_s),
        wait_for_workers=False,
    )


def _own_host(address: LinkAddress) -> str:
    """Return the address of this machine that the meeting point's is reached from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address.host, address.port or 9))
        return str(probe.getsockname()[0])
