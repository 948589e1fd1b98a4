"""Text of a tool's result, as a policy reads it.

A string is shown as it is, other values as ``str`` gives them, as in TRL. A result that is no text is an
error that the policy is told of; one that is too long is cut, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

ObservationKind = Literal[
    "answered", "cut", "raised", "late", "unreadable", "arguments", "unknown", "crashed"
]
"""``answered``; ``cut``: too long, shown in part; ``raised``: an exception; ``late``: no result in time;
``unreadable``: no text; ``arguments``: the call does not fit the signature; ``unknown``: there is no such
tool; ``crashed``: the tool ended its process."""
OBSERVATION_KINDS: tuple[ObservationKind, ...] = get_args(ObservationKind)

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Characters that belong to no text: control characters but tab and line ends, and lone surrogates."""


ADDRESS = re.compile(r"<[^\n]* at 0x[0-9a-f]+>")
"""Text of an object that is known by its place in memory, such as a generator: each run has another."""


class Late(BaseException):
    """Interruption of the user's code that took too long; only who set the limit catches it."""


class ToolText(NamedTuple):
    """Text that a policy is shown for a call, and the kind of result behind it."""

    text: str
    kind: ObservationKind

    @property
    def failed(self) -> bool:
        """True if the call brought no result."""
        return self.kind not in ("answered", "cut")


def error_text(message: str, kind: ObservationKind, most: int) -> ToolText:
    """Return an error in TRL's form, ``{'error': ...}``."""
    return ToolText(str({"error": shortened(readable(message), most)}), kind)


def text_of(value: Any, most: int) -> ToolText:
    """Return the text of a result.

    Args:
        most: characters that are shown.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        size = memoryview(value).nbytes
        return error_text(f"the tool returned {size} bytes that are no text", "unreadable", most)
    if isinstance(value, list) and value and all(map(_is_text_block, value)):
        value = "\n".join(block["text"] for block in value)
    if not isinstance(value, str):
        try:
            shown = str(value)
        except Late:
            raise
        except BaseException as error:  # the __str__ of a user's class
            return error_text(_sentence(error), "raised", most)
        if ADDRESS.fullmatch(shown):
            kind = type(value).__name__
            return error_text(f"the tool returned a {kind}, which is no text", "unreadable", most)
        value = shown
    text = readable(str(value[: 2 * most + 1]))
    if len(value) <= most:
        return ToolText(text, "answered")
    return ToolText(shortened(text, most, len(value)), "cut")


def shortened(text: str, most: int, total: int | None = None) -> str:
    """Cut a text and say so; short ones stay as they are.

    Args:
        total: characters of the whole that ``text`` is the beginning of; None: it is the whole.
    """
    total = len(text) if total is None else total
    if total <= most:
        return text
    return f"{text[:most]}\n[cut: the first {most:,} of {total:,} characters]"


def readable(text: str) -> str:
    """Return the text with characters that belong to no text replaced."""
    return CONTROL.sub("\ufffd", text)


def raised_text(error: BaseException, most: int) -> ToolText:
    """Return the error of a tool that raised: TRL shows the exception's message alone."""
    return error_text(_sentence(error), "raised", most)


def _sentence(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Late:
        raise
    except BaseException:  # the __str__ of a user's exception
        return type(error).__name__


def _is_text_block(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and item.get("type") == "text"
        and isinstance(item.get("text"), str)
    )
