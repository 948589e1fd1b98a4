"""Tools and environment classes behind their names, loaded where they run, and checked.

The contract is that of TRL 1.16's GRPOTrainer. A tool is a function, sync or async. An environment is a
class, or a function that makes an object: ``reset(**row)`` begins an episode, the other public methods are
tools, ``get_reward()`` is optional. Beyond TRL, ``get_turn_reward()`` is the reward of the turn that has
just ended, and an attribute ``done`` that is True ends the episode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

from rewards.environments.adapters import ADAPTERS
from rewards.environments.adapters.base import AdaptedEnvironment
from rewards.imports import import_target
from rollouts.errors import UserError

Tool = Callable[..., Any]

RESET, GET_REWARD, GET_TURN_REWARD = "reset", "get_reward", "get_turn_reward"
NO_TOOLS = (RESET, GET_REWARD, GET_TURN_REWARD)
"""Public methods that are no tools."""


class EnvironmentObject(Protocol):
    """Object that one episode after the other acts in."""

    def reset(self, **row: Any) -> Any:
        """Begin an episode; return a text for the policy or None."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedEnvironment:
    """Maker of the objects of one environment, and the tools beside their methods."""

    name: str
    tools: Sequence[Tool]
    """Functions that belong to no object."""
    make: Callable[[], Any] | None = None
    """Maker of an object; None: there are only functions."""
    target: str = ""
    """Name of the class in the campaign file."""
    where: str | None = None
    tool_places: Mapping[str, str] = field(default_factory=dict)
    """Place in the campaign file of every function, by its name."""

    def construct(self) -> Any:
        """Make an object for episodes; None where there are only functions."""
        return None if self.make is None else self.make()

    def tools_of(self, instance: Any) -> dict[str, Tool]:
        """Return all tools by name.

        Raises:
            UserError: two have the same name.
        """
        methods = {} if instance is None else methods_of(instance)
        tools = {tool.__name__: tool for tool in self.tools}
        if twice := next((name for name in methods if name in tools), None):
            raise UserError(
                f"two tools are named {twice!r}: a function, and a method of {self.target}",
                where=self.where,
                cause="a policy calls tools by their names",
                remedy="rename one of them",
            )
        return {**tools, **methods}


def load_toolset(options: Mapping[str, Any]) -> dict[str, LoadedEnvironment]:
    """Load what `EnvironmentsPlan.worker_plan` names; return it by the names of environments.

    Raises:
        UserError: something cannot be imported, or is no tool or environment.
    """
    tools: dict[str, Tool] = {}
    places: dict[str, str] = {}
    for name, where in options["tools"]:
        tool = load_tool(name, where)
        if tool.__name__ in tools:
            raise UserError(
                f"two tools are named {tool.__name__!r}",
                where=where,
                cause="a policy calls tools by their names",
                remedy="rename one of the functions, or list it once",
            )
        tools[tool.__name__], places[tool.__name__] = tool, where
    functions = list(tools.values())
    loaded = {
        name: LoadedEnvironment(
            name=name,
            tools=functions,
            make=load_maker(target, where),
            target=target,
            where=where,
            tool_places=places,
        )
        for name, target, where in options["environments"]
    }
    return loaded or {"": LoadedEnvironment(name="", tools=functions, tool_places=places)}


def load_tool(name: str, where: str | None) -> Tool:
    """Return the function behind a name.

    Raises:
        UserError: there is none, or it cannot be a tool.
    """
    target = import_target(name, where, "tool", "function")
    if isinstance(target, type) or not hasattr(target, "__name__"):
        kind = "class" if isinstance(target, type) else type(target).__name__
        raise UserError(
            f"tool {name!r} is a {kind}, not a function",
            where=where,
            remedy="name a function; a class with reset and methods is an environment: "
            "environment: file.py:Class",
        )
    function: Tool = target
    return function


def load_maker(name: str, where: str | None) -> Callable[[], Any]:
    """Return what makes the objects of an environment.

    Raises:
        UserError: there is no such class or function, or it has no ``reset``.
    """
    scheme, separator, address = name.partition("://")
    if separator:
        if scheme not in ADAPTERS:
            raise UserError(
                f"environment {name!r}: unknown scheme {scheme}://",
                where=where,
                remedy=f"known: {', '.join(f'{known}://' for known in ADAPTERS)}; or write "
                "file.py:Class or pkg.mod:Class",
            )
        return ADAPTERS[scheme]().maker(address, where)
    target = import_target(name, where, "environment", "class")
    if isinstance(target, type):
        check_reset(target, name, where)
    elif isinstance(target, FunctionType) and (needed := required_parameters(target)):
        raise UserError(
            f"environment {name!r} is a function of {', '.join(needed)}, not a class",
            where=where,
            cause="an environment is made without arguments",
            remedy=f"if it is a tool, write tools: [{name}] (with `keel env try`: --tool {name})",
        )
    maker: Callable[[], Any] = target
    return maker


def required_parameters(function: Callable[..., Any]) -> list[str]:
    """List the parameters that a call has to give.

    >>> required_parameters(lambda a, b=1, *c, d: None)
    ['a', 'd']
    """
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def check_reset(kind: type[Any], name: str, where: str | None) -> None:
    """Refuse a class whose objects have no method ``reset``."""
    if callable(getattr(kind, RESET, None)):
        return
    raise UserError(
        f"environment {name!r} has no method reset",
        where=where,
        cause="an episode begins with reset(**row), the columns of the prompt's row",
        remedy="add def reset(self, **row) -> str | None",
    )


def construct_checked(environment: LoadedEnvironment) -> Any:
    """Make an object for a check.

    Raises:
        UserError: the constructor raises, needs arguments, or makes no environment.
    """
    try:
        instance = environment.construct()
    except UserError:
        raise
    except Exception as error:  # the user's constructor runs here
        raise UserError(
            f"environment {environment.target!r} cannot be constructed",
            where=environment.where,
            cause=f"{type(error).__name__}: {error}",
            remedy="its constructor is called without arguments; what differs between episodes is "
            "handed to reset",
        ) from error
    if instance is not None:
        check_reset(type(instance), environment.target, environment.where)
        check_own_methods(instance, environment.target, environment.where)
    return instance


def check_own_methods(instance: Any, name: str, where: str | None) -> None:
    """Refuse methods that no episode could call: those without ``self``, and rewards with parameters.

    Raises:
        UserError: names the method.
    """
    if isinstance(instance, AdaptedEnvironment):
        return
    for method, function in inspect.getmembers(type(instance), predicate=inspect.isfunction):
        is_static = isinstance(inspect.getattr_static(type(instance), method), staticmethod)
        if method.startswith("_") or is_static:
            continue
        first = next(iter(inspect.signature(function).parameters.values()), None)
        # A typed first parameter of another name is an argument, into which the object would fall.
        if (
            first is None
            or first.kind in (first.VAR_KEYWORD, first.KEYWORD_ONLY)
            or (
                first.kind is first.POSITIONAL_OR_KEYWORD
                and first.name != "self"
                and first.annotation is not first.empty
            )
        ):
            raise UserError(
                f"method {method!r} of environment {name!r} does not take self",
                where=where,
                cause="it is called on the object of an episode, which comes first",
                remedy=f"write def {method}(self, ...)",
            )
    for method in (GET_REWARD, GET_TURN_REWARD):
        bound = getattr(type(instance), method, None) and getattr(instance, method)
        if inspect.isroutine(bound) and (needed := required_parameters(bound)):
            raise UserError(
                f"{method} of environment {name!r} takes {', '.join(needed)}",
                where=where,
                cause=f"it is called without arguments: {method}()",
                remedy=f"write def {method}(self) -> float, and keep in self what it needs",
            )


def methods_of(instance: Any) -> dict[str, Tool]:
    """Return the public methods of an object that are tools, by name.

    Methods are listed on the class, as in TRL: properties are not evaluated.
    """
    if isinstance(instance, AdaptedEnvironment):
        return dict(instance.tools())
    members = inspect.getmembers(type(instance), predicate=inspect.isfunction)
    return {
        name: getattr(instance, name)
        for name, _ in members
        if name not in NO_TOOLS and not name.startswith("_")
    }
