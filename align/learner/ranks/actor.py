"""One rank of the learner as a Ray actor: a process of its own, on whichever node it was placed."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import get_ident
from typing import Any, Literal, NamedTuple

from align.config.campaign import PolicyConfig
from align.learner.ranks.node_folder import NodeFolder, open_root
from rollouts.engines.protocol import WeightUpdate
from rollouts.engines.stored_tensor import read_stored
from rollouts.pool.placement import on_one_machine
from rollouts.types import SnapshotId

Part = Literal["rank", "learner", "training"]
"""Object of a rank that a call goes to; the training is the one that was begun last."""
LOOPBACK = "127.0.0.1"
COLLECTIVES = "torch.distributed.distributed_c10d"
"""Module of the calls in which a rank waits for the others."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the network interface which ranks talk over."""


class Spot(NamedTuple):
    """Node that an actor was placed on."""

    node: str
    """Ray's id of it."""
    address: str
    """Address that other nodes reach it under."""
    sees_driver: bool
    """True if it reads the driver's disk."""


class RankActor:
    """One rank's learner, in a process of its own."""

    def __init__(self, deadline_s: float) -> None:
        self._rank, self._size, self._deadline = 0, 1, timedelta(seconds=deadline_s)
        self._stack = ExitStack()
        self._files = NodeFolder()
        self._folders: dict[SnapshotId, Path] = {}
        self._learner: Any = None
        self._training: Any = None
        self._store: Any = None
        self._caller = 0
        """Thread of the running call."""

    def sign(self) -> str:
        """Say what the rank does at this moment; called on a thread of its own beside a running call."""
        frame = sys._current_frames().get(self._caller)
        activity = "has nothing to do"
        while frame is not None:
            module, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
            if module == COLLECTIVES and function != "wrapper":
                activity = f"waits for the others in {function}"
            elif module.startswith("align.learner.") and activity == "has nothing to do":
                activity = f"is in {module.removeprefix('align.learner.')}.{function}"
            frame = frame.f_back
        return activity

    def spot(self, witness: Path, content: str) -> Spot:
        """Say where the rank is.

        Args:
            witness: file that the driver has just written.
            content: what only the driver's file of that name holds.
        """
        import ray

        return Spot(
            node=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),
            sees_driver=witness.is_file() and witness.read_text() == content,
        )

    def open_folder(self) -> Path:
        """Make the folder of this node's copies; it lasts as long as this rank."""
        return open_root(self._stack)

    def join(self, rank: int, size: int, files: NodeFolder) -> None:
        """Take a place among several ranks.

        Args:
            files: places of the driver's files on this node.
        """
        self._rank, self._size, self._files = rank, size, files

    def open_store(self, host: str) -> int:
        """Open the meeting point of all ranks at an address of this node; return its port.

        Nobody else can have taken it, and nothing listens at the node's other addresses.
        """
        listener = socket.create_server((host, 0))
        self._store = self._meet(host, listener.getsockname()[1], listener.detach())
        return int(self._store.port)

    def start(
        self, host: str, port: int, base: Path, config: PolicyConfig, keeper: int, **options: Any
    ) -> int:
        """Join the others and build the learner; return the id of the process it lives in.

        Args:
            host: address of the first rank's node.
            keeper: the rank that publishes what is written on this rank's disk.
        """
        import torch

        from align.learner.learner import Learner
        from align.learner.ranks.ranks import Ranks

        self._caller = get_ident()
        self._choose_interface(host)
        cuda = torch.cuda.is_available()
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=self._store or self._meet(host, port),
            rank=self._rank,
            world_size=self._size,
            timeout=self._deadline,
        )
        self._learner = Learner(
            self._files.read(base),
            config,
            folder_of=lambda snapshot: self._files.read(self._folders[snapshot]),
            ranks=Ranks(self._rank, self._size, keeper),
            place_of=lambda path: self._files.read(path.absolute()),
            **{**options, "scratch": self._files.written(options["scratch"])},
        )
        return os.getpid()

    def begin(self, *args: Any, **options: Any) -> None:
        """Begin a round; the training before is let go of first."""
        self._training = None
        self._training = self._learner.begin(*args, **options)

    def call(
        self,
        folders: Mapping[SnapshotId, Path],
        part: Part,
        method: str,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Call a method; only the first rank's result travels, weights as arrays in host memory."""
        from rollouts.engines.transfer.host import to_host

        self._caller = get_ident()
        self._folders.update(folders)
        parts = {"rank": self, "learner": self._learner, "training": self._training}
        result = getattr(parts[part], method)(*args, **options)
        if self._rank > 0:
            return None
        if isinstance(result, WeightUpdate) and result.send is not None:
            return replace(result, send=_stays)
        if isinstance(result, WeightUpdate) and result.tensors is not None:
            tensors = result.tensors if on_one_machine() else read_stored(result.tensors)
            return replace(result, tensors=to_host(tensors))
        return result

    def write(self, part: Part, method: str, folder: Path, *args: Any, **options: Any) -> None:
        """Call a method that writes into a folder of the driver's, or of its copy on this node."""
        self.call({}, part, method, self._files.written(folder), *args, **options)

    def read(self, part: Part, method: str, folder: Path, *args: Any, **options: Any) -> Any:
        """Call a method that reads a folder of the driver's, or its copy on this node."""
        return self.call({}, part, method, self._files.read(folder), *args, **options)

    def file(self, method: str, *args: Any) -> Any:
        """Call a method of the node's folder; see `NodeFolder`."""
        return getattr(self._files, method)(*args)

    def save_critic(self, folder: Path) -> None:
        """Write the critic; all ranks take part."""
        self._training.critic.save(folder)

    def leave(self) -> None:
        """Remove the node's copies before the process ends."""
        self._stack.close()

    def _choose_interface(self, host: str) -> None:
        """Let gloo and NCCL use the interface that has this node's address, unless its owner chose one."""
        import psutil
        import ray

        address = LOOPBACK if host == LOOPBACK else ray.util.get_node_ip_address()
        interfaces = [
            name
            for name, entries in psutil.net_if_addrs().items()
            if any(entry.address == address for entry in entries)
        ]
        for variable in INTERFACES if interfaces else ():
            if host == LOOPBACK:
                os.environ[variable] = interfaces[0]
            else:
                os.environ.setdefault(variable, interfaces[0])

    def _meet(self, host: str, port: int, listener: int | None = None) -> Any:
        import torch

        return torch.distributed.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            self._size,
            is_master=listener is not None,
            timeout=self._deadline,
            wait_for_workers=False,
            master_listen_fd=listener,
        )


def _stays(actors: Sequence[Any], workers_each: int) -> None:
    """Mark weights that stay with the ranks on the way to the driver, which lets the ranks send them."""
