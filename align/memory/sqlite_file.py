"""The URL of a SQLite file, whatever its path holds: a bare ``?`` would begin a query, ``%41`` be an A."""

from __future__ import annotations

from pathlib import Path

QUERIES = ("uri", "mode", "cache", "immutable", "vfs", "timeout", "cached_statements")
"""Options that a SQLite URL may end with; anything else behind a ``?`` is the rest of a path."""


def sqlite_url(path: Path) -> str:
    """SQLAlchemy's URL of a database file."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def cut_path(url: str) -> str | None:
    """What a SQLite URL written by hand loses of its path behind an unquoted ``?``; None: nothing."""
    path, mark, rest = url.partition("?")
    options = [option.partition("=") for option in rest.split("&")]
    known = all(name in QUERIES and mark and value for name, mark, value in options)
    return None if not mark or not path.startswith("sqlite:") or known else f"?{rest}"
