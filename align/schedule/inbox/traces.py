"""Files of the inbox that hold a person's key: what was put away goes as a whole, what still lies in
``drop/`` is named.

A file's other rows are in the inbox if it lies in ``done/``. One in ``failed/`` was never stored, and its
sender has it: a part of it cannot be told from the rest where it cannot be read.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path

from align.schedule.inbox.drop import waiting_files
from align.store.paths import InboxPaths
from rollouts.rows import read_rows

REPORT = ".report.json"
BEFORE, BEHIND = rb"(?:^|[\"',:;\[\t\r\n])\s*", rb"\s*(?:[\"',:;\]}\t\r\n]|$)"
"""Characters around a value in JSON and CSV."""


def remove_files(folder: Path, user: str) -> tuple[list[str], list[str]]:
    """Delete put-away files with the key, and their reports.

    Args:
        folder: of the inbox.

    Returns:
        What was deleted, and what is left with the reason, by paths in the folder.
    """
    removed, left = [], []
    paths = InboxPaths(folder)
    for file in sorted((*paths.done.rglob("*"), *paths.failed.rglob("*"))):
        if file.name.endswith(REPORT) or not file.is_file():
            continue
        if _holds(file, user):
            for target in (file, file.with_name(file.name + REPORT)):
                target.unlink(missing_ok=True)
                removed.append(_named(target, folder))
        elif file.suffix.lower() == ".parquet" and not _is_readable(file):
            left.append(f"{_named(file, folder)}, which is damaged and cannot be searched")
    for file in waiting_files(folder):
        if _holds(file, user):
            left.append(
                f"{_named(file, folder)}, which no sweep has taken: purge again when one has"
            )
    return removed, left


def _holds(file: Path, user: str) -> bool:
    """Tell if the key is a value of a row, or stands as one in what cannot be read."""
    try:
        rows = read_rows(str(file), "train")
        return any(user in map(str, row.values.values()) for row in rows)
    except Exception:  # Why it cannot be read does not matter: its bytes can.
        return _stands_in(file, user)


def _stands_in(file: Path, user: str) -> bool:
    if not file.stat().st_size:
        return False
    written = {user.encode(), json.dumps(user)[1:-1].encode()}
    key = rb"(?:" + rb"|".join(map(re.escape, sorted(written))) + rb")"
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return re.search(BEFORE + key + BEHIND, text) is not None


def _is_readable(file: Path) -> bool:
    try:
        return all(True for _ in read_rows(str(file), "train"))
    except Exception:  # As above.
        return False


def _named(file: Path, folder: Path) -> str:
    """Return a path that can be printed and written as JSON."""
    return str(file.relative_to(folder)).encode("utf-8", "replace").decode()
