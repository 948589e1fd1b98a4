"""Shared memory that weights travel through: the size that Ray takes, and whether it is there.

Two versions are in it together: what engines hold, and what they are about to load. Where shared memory is
too small for that, as the 64 MiB of a container are, Ray keeps objects in files, which works and is slow.
"""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30
LEAST = 80 * MIB
"""Smallest object store that is asked for; Ray starts with no less than 75 MiB."""
USUAL, USUAL_SHARE = GIB, 0.10
"""Size if weights need no more, and the share of the machine's memory that it stays below."""
VERSIONS = 2
BESIDE = 128 * MIB
"""Bytes for samples, scores and everything else that travels."""


def store_bytes(weights: int, *, memory: int, shared: int | None) -> int:
    """Return the size of the object store in bytes.

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
    if shared is not None and needed <= shared < usual:
        return shared
    return usual


def needed_bytes(weights: int) -> int:
    """Return the bytes of the smallest object store that works with such weights.

    >>> needed_bytes(0) // MIB, needed_bytes(100 * MIB) // MIB
    (80, 328)
    """
    return max(LEAST, weights * VERSIONS + BESIDE if weights else LEAST)


def shortage(weights: int, shared: int | None) -> str | None:
    """Say what shared memory lacks for such weights, and what to do; None if it is large enough."""
    needed = needed_bytes(weights)
    if shared is not None and shared >= needed:
        return None
    there = "there is no /dev/shm" if shared is None else f"/dev/shm has {shared // MIB} MiB free"
    size = -(-needed // GIB)
    return (
        f"shared memory: {there}, and two versions of the weights on their way to engines take "
        f"{needed // MIB} MiB: Ray keeps them in files, many times slower (start the container with "
        f"--shm-size={size}g; in Kubernetes mount an emptyDir of medium Memory at /dev/shm; else free some)"
    )
