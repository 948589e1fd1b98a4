"""URLs of SQLite files for any path: unquoted, ``?`` would begin a query and ``%41`` would be read as A."""

from __future__ import annotations

from pathlib import Path

QUERIES = ("uri", "mode", "cache", "immutable", "vfs", "timeout", "cached_statements")
"""Options that a SQLite URL may end with; anything else behind a ``?`` belongs to the path."""


def sqlite_url(path: Path) -> str:
    """Return SQLAlchemy's URL of a database file."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def cut_path(url: str) -> str | None:
    """Return what a SQLite URL loses of its path behind an unquoted ``?``; None if nothing."""
    path, mark, rest = url.partition("?")
    options = [option.partition("=") for option in rest.split("&")]
    known = all(name in QUERIES and mark and value for name, mark, value in options)
    return None if not mark or not path.startswith("sqlite:") or known else f"?{rest}"
