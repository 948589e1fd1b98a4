"""Texts of models and files as people see them: on a terminal, where a control character would be an order
to it, and on a page, which has room for so much of each."""

from __future__ import annotations

from html import escape
from itertools import accumulate


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


def cut(text: object, most: int) -> str | None:
    """Cut a text visibly to ``most`` bytes of HTML.

    >>> cut("<abc>", 6), cut(None, 6)
    ('<ab […]', None)
    """
    if text is None:
        return None
    whole = str(text)
    sizes = accumulate(len(escape(c).encode("utf-8", "replace")) for c in whole[: most + 1])
    fitting = sum(size <= most for size in sizes)
    return whole if fitting == len(whole) else f"{whole[:fitting]} […]"
