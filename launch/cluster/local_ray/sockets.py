"""Sockets that a process and all below it listen on, and which of them other machines can reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class ListeningSocket:
    """Socket that takes connections."""

    host: str
    port: int
    owner: str
    """Name of the program that listens."""

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        address = ip_address(self.host)
        # A socket for both families shows 127.0.0.1 as ::ffff:127.0.0.1.
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"{self.owner} on {self.host}:{self.port}"


def listening_sockets(pid: int | None = None) -> list[ListeningSocket]:
    """List the sockets that a process and its descendants listen on; None: this one."""
    sockets: set[ListeningSocket] = set()
    for process in _family(pid):
        with suppress(psutil.Error):
            sockets |= {
                ListeningSocket(host=c.laddr.ip, port=c.laddr.port, owner=process.name())
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            }
    return sorted(sockets, key=lambda each: (each.owner, each.port, each.host))


def _family(pid: int | None) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)
