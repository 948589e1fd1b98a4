"""Texts of models and files on a terminal, where a control character would be an order to it."""

from __future__ import annotations


def printable(text: str, limit: int | None = None) -> str:
    """Escape control characters, and cut a text that is too long in the middle.

    >>> printable("a\\x1b[2Jb"), printable("0123456789", 6)
    ('a\\\\x1b[2Jb', '012 … 789')
    """
    if limit is not None and len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} … {text[-half:]}"
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
