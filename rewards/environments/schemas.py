"""JSON schemas of tools, read from signatures and Google docstrings as TRL's templates get them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rollouts.errors import UserError

FORM = '"""Line.\\n\\nArgs:\\n    name: what it is.\\n"""'


def schema_of(tool: Callable[..., Any], where: str | None, file: str) -> dict[str, Any]:
    """Return the schema of a tool, ``{"type": "function", "function": {...}}``.

    Args:
        file: of the tool, for messages.

    Raises:
        UserError: a type or a description is missing; names file, function and parameter.
    """
    stated = getattr(tool, "keel_schema", None)
    if stated is not None:
        return dict(stated)
    name = getattr(tool, "__qualname__", getattr(tool, "__name__", "tool"))
    label = f"tool {name!r} of {file}" if file else f"tool {name!r}"
    check_signature(tool, label, where)
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except (
        Exception
    ) as error:  # its exceptions have no common base, and annotations may raise others
        parameter = parameter_in(tool, str(error))
        raise UserError(
            f"{label}: no schema can be made"
            + (f" of parameter {parameter!r}" if parameter else ""),
            where=where,
            cause=f"{type(error).__name__}: {error}",
            remedy="use str, int, float, bool, list, dict, Literal and | None as types, and describe every "
            "parameter below Args: in the docstring",
        ) from error
    if not schema["function"].get("description"):
        raise UserError(
            f"{label}: its docstring says nothing before Args:",
            where=where,
            remedy="begin it with a sentence on what the tool does, which the policy reads",
        )
    return schema


def check_signature(tool: Callable[..., Any], label: str, where: str | None) -> None:
    """Refuse a tool whose signature or docstring a schema cannot be made of."""
    doc = inspect.getdoc(tool)
    if not doc or not doc.strip():
        raise UserError(
            f"{label} has no docstring",
            where=where,
            cause="the policy is told what a tool does by its docstring",
            remedy=f"write one in Google's style: {FORM}",
        )
    described = described_parameters(doc)
    for parameter in inspect.signature(tool).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise UserError(
                f"{label} takes {stars}{parameter.name}",
                where=where,
                cause="a policy calls a tool with named arguments that its schema lists",
                remedy="name every parameter",
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(
                f"{label} takes {parameter.name!r} by position only",
                where=where,
                cause="tools are called by keyword",
                remedy="remove the '/' from its signature",
            )
        if parameter.annotation is parameter.empty:
            raise UserError(
                f"{label}: parameter {parameter.name!r} has no type",
                where=where,
                remedy=f"write {parameter.name}: str, or another type, in the signature",
            )
        if parameter.name not in described:
            raise UserError(
                f"{label}: the docstring does not describe parameter {parameter.name!r}",
                where=where,
                remedy=f"add below Args: a line '{parameter.name}: what it is.'",
            )


def described_parameters(doc: str) -> frozenset[str]:
    """Return the parameters that a Google docstring describes."""
    from transformers.utils.chat_template_utils import parse_google_format_docstring

    _, described, _ = parse_google_format_docstring(doc.strip())
    return frozenset(described or ())


def parameter_in(tool: Callable[..., Any], message: str) -> str | None:
    """Return the parameter whose type has no schema, found by trying one after the other."""
    from transformers.utils import chat_template_utils as utils

    try:
        from typing import get_type_hints

        hints = get_type_hints(tool)
    except Exception:  # an annotation that names nothing: the message says which
        return next((n for n in inspect.signature(tool).parameters if f"'{n}'" in message), None)
    for name, hint in hints.items():
        try:
            utils._parse_type_hint(hint)
        except Exception:
            return name
    return None
