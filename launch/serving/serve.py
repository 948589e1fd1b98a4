"""Process of ``keel serve``: its socket, its key, its proxy, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from align.config.campaign import CampaignConfig
from align.gate.evidence import stored_evidence
from align.report.export.answering import default_line, served_sampling
from align.store.paths import StorePaths
from launch.cluster.cluster import is_loopback
from launch.connections import ConnectionLimits, server_config
from launch.feedback.token import read_token
from launch.listening import listen
from launch.serving.command import check_extra, vllm_device
from launch.serving.route import Backend, Route
from launch.serving.served_alias import SHOWN, ServedAlias
from launch.serving.swapper import Swapper, SwapPolicy
from rollouts.errors import UserError
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    pass

LIMITS = ConnectionLimits(total=1024, per_client=512)
IDLE_CONNECTIONS, IDLE_S = 256, 60.0
"""Number of idle connections that are kept to a backend, and seconds for which they are."""
OVERLAP_SHARE, WHOLE_SHARE = 0.45, 0.9
"""Shares of a GPU's memory, for one of two servers during a swap, and for one alone."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of ``keel serve``."""

    alias: str = "production"
    host: str = "127.0.0.1"
    port: int = 8000
    """Port to listen on; 0 is any free one."""
    name: str | None = None
    """Name of the model; None is the campaign's."""
    key_file: Path | None = None
    """File of the key, made when it is not there; None: ``serving/key`` in the store."""
    pace: SwapPolicy = field(default_factory=SwapPolicy)
    start_deadline_s: float = 600.0
    """Seconds that a server may take to be healthy."""
    gpu_memory_utilization: float | None = None
    """Share of a GPU for one server; None: 0.45 where two run during a swap, else 0.9."""
    extra: Sequence[str] = ()
    """Arguments for vLLM besides Keel's own."""


def serve(config: CampaignConfig, options: Options, *, say: Say) -> None:
    """Serve an alias until SIGTERM or SIGINT; requests under way are finished first.

    Raises:
        UserError: no such alias, a reward model, an address that cannot be used, or a package is missing.
        SnapshotError: the snapshot is missing or damaged; nothing was started.
        RunError: vLLM did not come up, or does not stay up.
    """
    check_extra(options.extra)
    device = vllm_device()
    try:
        from launch.serving.vllm_server import VLLMStarter
    except ImportError as error:
        raise UserError(
            f"the server needs {error.name}", remedy="pip install 'keel-align[serve]'"
        ) from error
    shelf = ServedAlias(stored_evidence(config), options.alias, options.name)
    snapshot = shelf.wanted()
    key_file = options.key_file or StorePaths(config.folder).serving_key
    key = read_token(key_file, option="--api-key-file")
    overlaps = options.pace.follow and options.pace.swap == "overlap"
    start = VLLMStarter(
        shelf=shelf,
        device=device,
        gpu_memory_utilization=options.gpu_memory_utilization
        or (OVERLAP_SHARE if overlaps else WHOLE_SHARE),
        extra=options.extra,
        deadline_s=options.start_deadline_s,
    )
    sampling = served_sampling(shelf.evidence.config)
    with listen(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        say(default_line(shelf.evidence.config))
        say(f"model {shelf.name}, now {snapshot[:SHOWN]}; the key is in {key_file}")
        if not is_loopback(host):
            say("warning: not only this machine can reach it, and the key travels unencrypted;")
            say("         put a proxy with TLS in front")
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        asyncio.run(
            run(
                listening,
                wanted=shelf.wanted,
                start=start,
                key=key,
                pace=options.pace,
                say=say,
                stops=sampling.stop if sampling else (),
            )
        )
    say("stopped")


async def run(
    listening: socket.socket,
    *,
    wanted: Callable[[], SnapshotId],
    start: Callable[[SnapshotId], Awaitable[Backend]],
    key: str,
    pace: SwapPolicy,
    say: Say,
    stops: Sequence[str] = (),
) -> None:
    """Answer on a socket with whatever a follower serves, until a signal or the follower's end.

    Raises:
        KeelError: the follower's.
    """
    import httpx
    import uvicorn

    from launch.serving.proxy import Proxy

    route = Route()
    follower = Swapper(route, wanted=wanted, start=start, say=say, pace=pace)
    limits = httpx.Limits(max_keepalive_connections=IDLE_CONNECTIONS, keepalive_expiry=IDLE_S)
    async with httpx.AsyncHTTPTransport(limits=limits, trust_env=False) as transport:
        server = uvicorn.Server(
            server_config(
                Proxy(route, transport, key=key, say=say, stops=stops),
                LIMITS,
                lifespan="off",
                timeout_graceful_shutdown=int(pace.drain_s),
            )
        )
        # uvicorn raises the signal that ended it once more, for handlers that were set before its own.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        answering = asyncio.create_task(server.serve(sockets=[listening]))
        following = asyncio.create_task(follower.run())
        try:
            await asyncio.wait({answering, following}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await answering
            if following.done():
                following.result()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await follower.close()
