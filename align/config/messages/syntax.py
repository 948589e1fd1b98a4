"""Messages about a text that is no YAML: the line, what is wrong with it, and how to mend it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rollouts.errors import UserError

TAB = (
    "a tab begins the line or follows a key",
    "indent with spaces, and write one space after a colon",
)
CAUSES: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"'\\t'", TAB),
    (
        r"mapping values are not allowed",
        (
            "a second colon on the line, or a line that is indented too far",
            "put a text with ': ' in quotes",
        ),
    ),
    (
        r"could not find expected ':'",
        ("a key without a colon and a space after it", "write key: value"),
    ),
    (
        r"undefined alias",
        ("a text that begins with * is read as a reference", "put the text in quotes"),
    ),
    (
        r"could not determine a constructor",
        (
            "a text that begins with ! is read as a type",
            "put the text in quotes, or remove the type",
        ),
    ),
    (
        r"expected a single document",
        ("'---' begins a second file within the file", "keep one of them in a file of its own"),
    ),
    (
        r"expected ',' or '[\]}]'",
        (
            "a bracket or brace that is opened here is not closed, or a comma is missing",
            "close it, or put the text in quotes",
        ),
    ),
    (
        r"unexpected end of stream|found '<stream end>'|while scanning a quoted",
        ("a quote, bracket or brace is not closed", "close it"),
    ),
    (
        r"<block end>|sequence entries are not allowed|did not find expected",
        (
            "the line is not indented as the entries beside it",
            "indent all keys of an entry alike, and all entries of a list alike",
        ),
    ),
    (
        r"cannot start any token",
        (
            "a text that begins with %, @ or ` means something else in YAML",
            "put the text in quotes",
        ),
    ),
    (
        r"special characters are not allowed",
        ("the file is no text: it holds control characters", "name a YAML file"),
    ),
)
"""Likely cause and remedy, by what the parser says."""
OWN: tuple[tuple[str, str], ...] = (
    (r"is given twice", "remove one of them"),
    (r"a key must be a word", "write a word as the key"),
    (r"<< merges", "write the keys out; what all rounds share belongs under defaults"),
)
"""Remedies for what Keel refuses itself, by what it says."""
OPENED = r"expected ',' or '[\]}]'|could not find expected ':'|while scanning a quoted|<stream end>"
"""Complaints of the parser whose mistake lies where the unfinished value begins."""


def not_yaml(error: yaml.YAMLError, path: str | Path, text: str) -> UserError:
    """Return the error for a text that the parser refuses."""
    mark = getattr(error, "problem_mark", None)
    problem, context = getattr(error, "problem", None), getattr(error, "context", None)
    complaint = f"{context or ''} {problem or getattr(error, 'reason', None) or error}"
    complaint = re.sub(r"\s+", " ", complaint).strip()
    for pattern, remedy in OWN:
        if re.search(pattern, complaint):
            return UserError(
                f"not readable as YAML: {complaint}", where=_place(path, mark), remedy=remedy
            )
    cause, advice = next(
        (words for pattern, words in CAUSES if re.search(pattern, complaint)), (None, None)
    )
    opened = getattr(error, "context_mark", None)
    if opened is not None and re.search(OPENED, complaint):
        mark = opened
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark is not None and mark.line < len(lines) else ""
    what = f"not readable as YAML at {line!r}" if line else "not readable as YAML"
    return UserError(
        what if cause is not None else f"{what}: {complaint}",
        where=_place(path, mark),
        cause=cause,
        remedy=advice,
    )


def _place(path: str | Path, mark: yaml.Mark | None) -> str:
    return str(path) if mark is None else f"{path}:{mark.line + 1}"
