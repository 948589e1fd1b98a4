"""Facts about a reward that are known without a call: options, columns, documentation, origin."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import Parameter
from typing import Any

from rewards.base import RewardFunction
from rewards.call import is_async
from rewards.isolation.protocol import holds
from rewards.signatures.adapters import BATCHED
from rewards.signatures.parameters import RESERVED, parameters

SHIPPED = "keel"
"""Origin of the rewards in this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionInfo:
    """One option of a reward."""

    name: str
    type: str
    """The annotation as written; ``Any`` without one."""
    default: Any
    """Default value; meaningless where ``required``."""
    required: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardInfo:
    """A reward as ``keel reward list`` and ``keel reward show`` print it."""

    name: str
    origin: str
    """``keel``, a distribution with its version, or a module or file."""
    summary: str = ""
    """First paragraph of the documentation, on one line."""
    doc: str = ""
    """Documentation in full."""
    options: tuple[OptionInfo, ...] = ()
    """A function's arguments with a default (a column of that name is passed too); a class's settings."""
    columns: tuple[str, ...] = ()
    """Dataset columns that the reward requires."""
    anything: bool = False
    """True if the reward takes any further column or option."""
    asynchronous: bool = False
    range: tuple[float, float] | None = None
    """Smallest and largest value; None where they are not known."""
    asks_a_model: bool = False
    """True if the value is known to be a model's opinion."""
    problem: str | None = None
    """Reason why the reward cannot be used; nothing else but name and origin is known then."""


def read_info(name: str, origin: str, target: Any) -> RewardInfo:
    """Describe a function, or a class with set-up.

    Raises:
        ValueError, TypeError: it has no readable signature.
    """
    called = target.__call__ if isinstance(target, type) else target
    hidden = {*RESERVED, *BATCHED, "self"}
    inputs = {k: p for k, p in _named(called).items() if k not in hidden}
    settings = _named(target) if isinstance(target, type) else inputs
    options = []
    for option, parameter in settings.items():
        required = parameter.default is Parameter.empty
        if required and not isinstance(target, type):
            continue
        kind = "Any" if parameter.annotation is Parameter.empty else parameter.annotation
        default = None if required else parameter.default
        if type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            default = {}  # A dataclass makes it anew for each instance.
        type_name = kind.__name__ if isinstance(kind, type) else str(kind)
        options.append(OptionInfo(name=option, type=type_name, default=default, required=required))
    doc = inspect.getdoc(target) or ""
    return RewardInfo(
        name=name,
        origin=origin,
        summary=" ".join(doc.split("\n\n")[0].split()),
        doc=doc,
        options=tuple(options),
        columns=tuple(k for k, p in inputs.items() if p.default is Parameter.empty),
        anything=parameters(called).anything,
        asynchronous=is_async(called),
    )


def packed(info: RewardInfo) -> dict[str, Any]:
    """Return a description as JSON values; a default that is none becomes its text."""
    content = asdict(info)
    for option in content["options"]:
        if not holds(option["default"]):
            option["default"] = repr(option["default"])
    return content


def unpacked(content: Mapping[str, Any]) -> RewardInfo:
    """Return the description that `packed` took apart."""
    limits = content["range"]
    return RewardInfo(
        **{
            **content,
            "options": tuple(OptionInfo(**option) for option in content["options"]),
            "columns": tuple(content["columns"]),
            "range": None if limits is None else tuple(limits),
        }
    )


def _named(function: RewardFunction) -> Mapping[str, Parameter]:
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind in kinds}
