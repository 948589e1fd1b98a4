"""What a Ray of one's own gets of this machine: an object store for two versions of the weights, a folder.

Engines receive weights through the object store, which lies in shared memory: the version they hold and the
next one are in it together. Where shared memory is too small for that, as the 64 MiB of a container are,
Ray keeps objects in files, which works and is many times slower.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rollouts.errors import RunError

MIB, GIB = 1 << 20, 1 << 30
LEAST = 80 * MIB
"""Ray starts with no less than 75 MiB."""
USUAL, USUAL_SHARE = GIB, 0.10
"""Size where weights need no more, and the share of the machine's memory that it stays below."""
VERSIONS = 2
"""Of the weights: what engines hold is dropped when they have the next."""
BESIDE = 128 * MIB
"""For samples, scores and what else travels."""

SOCKET_LIMIT = 107
"""Bytes of a path that Linux takes for a socket."""
SESSION = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path of a socket below Ray's folder, but for the figures in it."""
SHORT_FOLDER = Path("/tmp/ray")


def store_bytes(weights: int, *, memory: int, shared: int | None) -> int:
    """Size of the object store.

    Args:
        weights: bytes of one version as engines receive it; 0 where they get adapters by their folder.
        memory: bytes that this machine has.
        shared: bytes that are free in shared memory; None where there is none.

    >>> store_bytes(538 * MIB, memory=4 * GIB, shared=2 * GIB) // MIB
    1204
    >>> store_bytes(2 * MIB, memory=16 * GIB, shared=512 * MIB) // MIB
    512
    """
    needed = needed_bytes(weights)
    usual = max(needed, min(USUAL, int(memory * USUAL_SHARE)))
    fits = shared is not None and needed <= shared < usual
    return shared if fits and shared is not None else usual


def needed_bytes(weights: int) -> int:
    """The smallest object store that a campaign with such weights works with."""
    return max(LEAST, weights * VERSIONS + BESIDE if weights else LEAST)


def ray_folder(environ: Mapping[str, str]) -> Path | None:
    """Where Ray is told to keep its sessions; None: its own choice is short enough for its sockets.

    Raises:
        RunError: the choice was made for Ray alone, and is too long.
    """
    chosen = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(Path(chosen) / "ray" / SESSION)) <= SOCKET_LIMIT:
        return None
    if "RAY_TMPDIR" in environ:
        raise RunError(
            f"Ray cannot keep its sockets in {chosen!r}",
            where="RAY_TMPDIR",
            cause=f"a socket's path has at most {SOCKET_LIMIT} bytes, and Ray's would be longer",
            remedy="name a folder with a shorter path",
        )
    return SHORT_FOLDER


def sessions_folder(environ: Mapping[str, str]) -> Path:
    """The folder of Ray's sessions and their logs."""
    own = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    return ray_folder(environ) or Path(own) / "ray"
