"""Public state of an environment at the end of an episode, as rewards are shown it.

The object itself lives in a worker process. Its public attributes and properties that JSON can hold travel;
a reward function with TRL's parameter ``environments`` gets an `EndedEnvironment` with them. Which ones an
object can have is read off its class: annotations, class attributes, slots, properties, and every
``self.name = ...`` in the source of its methods.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from rewards.environments.adapters.base import AdaptedEnvironment
from rewards.environments.observations import Late
from rollouts.types import Episode
from rollouts.values import Unholdable, from_json, normalised, to_json

LARGEST_STATE = 65_536
"""Characters of the JSON of an environment's state; attributes beyond are left out."""
HIDDEN_WAYS = ("setattr", "__dict__", "vars")
"""Names by which the code of a method may set attributes that cannot be read off it."""


def public_state(instance: Any) -> dict[str, Any]:
    """Return the public attributes and properties of an object in their JSON form; see
    `rollouts.values`."""
    if isinstance(instance, AdaptedEnvironment):
        values = dict(instance.state())
    else:
        values = {**_slots(instance), **getattr(instance, "__dict__", {}), **_properties(instance)}
    state: dict[str, Any] = {}
    room = LARGEST_STATE
    for name, value in values.items():
        if name.startswith("_"):
            continue
        try:
            packed = to_json(normalised(value))
            size = len(json.dumps(packed))
        except (Unholdable, ValueError, TypeError, RecursionError, AttributeError):
            continue
        if size <= room:
            state[name] = packed
            room -= size
    return state


def _slots(instance: Any) -> dict[str, Any]:
    names = [
        name
        for kind in type(instance).__mro__
        for name in _listed(vars(kind).get("__slots__", ()))
        if hasattr(instance, name)
    ]
    return {name: getattr(instance, name) for name in names if name != "__dict__"}


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _properties(instance: Any) -> dict[str, Any]:
    """Return the public properties that can be read; the code behind one is the user's."""
    values: dict[str, Any] = {}
    for kind in type(instance).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, property) and not name.startswith("_") and name not in values:
                try:
                    values[name] = getattr(instance, name)
                except Late:
                    raise
                except BaseException:
                    continue
    return values


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


def _assigned(tree: ast.AST, object_name: str) -> set[str] | None:
    """Return the attributes that a method assigns; None where its object goes out of sight.

    Args:
        object_name: the method's name for its object, mostly ``self``.
    """
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {id(node.value) for node in attributes}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if any(n.id in HIDDEN_WAYS or (n.id == object_name and id(n) not in read) for n in names):
        return None
    if any(node.attr in HIDDEN_WAYS for node in attributes):
        return None
    return {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}


class EndedEnvironment:
    """An environment as a reward function sees it: its public attributes at the end of the episode.

    ``get_reward()`` returns what the environment's own returned, None where it has none.
    """

    def __init__(
        self,
        name: str,
        state: Mapping[str, Any],
        reward: float | None,
        episode: Episode | None = None,
    ) -> None:
        """Take over the state.

        Args:
            episode: what acting in it was like, see `episode_of`.
        """
        self.__dict__.update({key: from_json(value) for key, value in state.items()})
        self._name, self._reward, self._episode = name, reward, episode

    def get_reward(self) -> float | None:
        """Return the reward that the environment gave the episode."""
        return self._reward

    def lacking(self, name: str) -> AttributeError:
        """Make the error for a public attribute that the environment did not have."""
        known = ", ".join(key for key in self.__dict__ if not key.startswith("_")) or "none"
        return AttributeError(
            f"the environment {self.__dict__.get('_name', '')!r} had no public attribute {name!r} that "
            f"JSON can hold when its episode ended; it had: {known}"
        )

    def __getattr__(self, name: str) -> Any:
        raise self.lacking(name)

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        return f"EndedEnvironment({self._name!r}, {shown!r}, reward={self._reward!r})"


def episode_of(ended: EndedEnvironment | None) -> Episode | None:
    """Return the episode that ended in an environment; None where the policy did not act."""
    return None if ended is None else ended._episode


def finite(value: float | None) -> bool:
    """Tell if a reward is None or a finite number."""
    return value is None or math.isfinite(value)
