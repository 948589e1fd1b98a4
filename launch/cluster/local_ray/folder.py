"""Folder of Ray's sessions, with a path short enough for the sockets in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rollouts.errors import RunError

SOCKET_LIMIT = 107
"""Most bytes of a socket's path on Linux."""
SESSION = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Example of the longest path of a socket below Ray's folder; only its digits vary."""
SHORT_FOLDER = Path("/tmp/ray")


def ray_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder for Ray's sessions; None if Ray's own choice is short enough for its sockets.

    Raises:
        RunError: the choice was made for Ray alone, and is too long.
    """
    folder = sessions_folder(environ)
    if not _fits(folder):
        raise RunError(
            f"Ray cannot keep its sockets in {environ['RAY_TMPDIR']!r}",
            where="RAY_TMPDIR",
            cause=f"a socket's path has at most {SOCKET_LIMIT} bytes, and Ray's would be longer",
            remedy="name a folder with a shorter path",
        )
    return None if folder == _own(environ) else folder


def sessions_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of Ray's sessions and their logs."""
    ray_choice = _own(environ)
    return ray_choice if _fits(ray_choice) or environ.get("RAY_TMPDIR") else SHORT_FOLDER


def latest_logs() -> Path:
    """Return the folder of logs of the latest session."""
    return sessions_folder(os.environ) / "session_latest" / "logs"


def _own(environ: Mapping[str, str]) -> Path:
    """Return the folder that Ray itself would choose."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp") / "ray"


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / SESSION)) <= SOCKET_LIMIT
