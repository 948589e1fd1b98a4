"""Public attributes that the objects of an environment can have, as far as their class shows it.

They are read from the class and from an object that was made and not yet reset: annotations, class
attributes, slots, properties, and every ``self.name = ...`` in the source of its methods.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from rewards.environments.adapters.base import AdaptedEnvironment

HIDDEN_WAYS = ("setattr", "__dict__", "vars")
"""Names by which the code of a method may set attributes that cannot be read off it."""


def attributes_of(instance: Any) -> list[str] | None:
    """Return the public names that an object can show at its end; None where they cannot be known."""
    if isinstance(instance, AdaptedEnvironment):
        return None
    names = set(getattr(instance, "__dict__", {}))
    for kind in type(instance).__mro__[:-1]:
        set_by_methods = _set_in(kind)
        if set_by_methods is None:
            return None
        names |= set_by_methods | set(getattr(kind, "__annotations__", {}))
        names |= {name for name, member in vars(kind).items() if not inspect.isroutine(member)}
    return sorted(name for name in names if not name.startswith("_"))


def _set_in(kind: type[Any]) -> set[str] | None:
    """Return what a class's own methods assign to their object; None where that cannot be read."""
    if "__setattr__" in vars(kind) or "__getattr__" in vars(kind):
        return None
    names: set[str] = set()
    for member in vars(kind).values():
        function = inspect.unwrap(getattr(member, "fget", None) or member)
        if not inspect.isfunction(function):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            # A dataclass writes methods that have no source; it sets what is annotated.
            if hasattr(kind, "__dataclass_fields__"):
                continue
            return None
        assigned = _assigned(tree, next(iter(inspect.signature(function).parameters), ""))
        if assigned is None:
            return None
        names |= assigned
    return names


def _assigned(tree: ast.AST, own: str) -> set[str] | None:
    """Return the attributes that a method assigns; None where its object goes out of sight.

    Args:
        own: the method's name for its object, mostly ``self``.
    """
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {id(node.value) for node in attributes}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if any(n.id in HIDDEN_WAYS or (n.id == own and id(n) not in read) for n in names):
        return None
    if any(node.attr in HIDDEN_WAYS for node in attributes):
        return None
    return {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
