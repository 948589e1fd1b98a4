"""Messages about a command line that names no command, option or value of Keel."""

from __future__ import annotations

import re
from typing import Annotated, Any

from typer.exceptions import TyperException

from rollouts.errors import UserError, nearest

LIMITS = (("min", "ge"), ("max", "le"))
"""Limits of an option's number, and what the type of a setting calls them."""


def usage_error(error: TyperException) -> UserError:
    """Return the error that says what is wrong with a command line, where, and what to write."""
    context: Any = getattr(error, "ctx", None)
    where = "keel" if context is None else str(context.command_path)
    help_page = f"see {where} --help"
    text = error.format_message().rstrip(".")
    command = getattr(context, "command", None)
    if match := re.match(r"No such command '(.*?)'", text):
        known = list(getattr(command, "commands", {}))
        return UserError(
            f"there is no command {match[1]!r}", where=where, remedy=nearest(match[1], known)
        )
    if "No such option" in text and (name := getattr(error, "option_name", None)):
        words = [word for each in getattr(command, "params", []) for word in each.opts]
        options = [word for word in [*words, "--help"] if word.startswith("-")]
        return UserError(f"there is no option {name}", where=where, remedy=nearest(name, options))
    if text.startswith("Missing"):
        return UserError(f"{text[:1].lower()}{text[1:]}", where=where, remedy=help_page)
    cause: Any = error.__cause__
    param: Any = getattr(error, "param", None)
    if param is not None and hasattr(cause, "errors"):
        value = cause.errors(include_url=False)[0]["input"]
        hint = " / ".join(param.opts) if param.opts[0].startswith("-") else param.name.upper()
        return UserError(
            f"invalid value for {hint}: {_expected(param, value)}", where=where, remedy=help_page
        )
    return UserError(text, where=where, remedy=help_page)


def _expected(param: Any, value: Any) -> str:
    """Say which values an option takes, and which it was given."""
    from pydantic import Field

    from align.config.messages.expected import advice, expectation, shown

    runtime = param.get_runtime_param()
    info = runtime.parameter_info
    limits = {
        name: limit
        for attribute, name in LIMITS
        if (limit := getattr(info, attribute, None)) is not None
    }
    annotation = Annotated[runtime.annotation, Field(**limits)] if limits else runtime.annotation
    remedy = advice(value, annotation, param.opts[0])
    text = f"expected {expectation(annotation)}, got {shown(value)}"
    return f"{text}; {remedy}" if remedy else text
