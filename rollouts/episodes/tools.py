"""Tools of an episode: calls are checked against their JSON schemas before anything is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rollouts.episodes.environment import Schema, ToolCall
from rollouts.episodes.parsers import UnreadCall
from rollouts.errors import UserError

MOST_FAULTS = 3
"""Most faults of one call that the model is told of."""


class Tools:
    """Tools by name, with a validator each.

    Raises:
        UserError: a schema is none, or two tools have one name.
    """

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self.schemas: tuple[Schema, ...] = tuple(schemas)
        self._validators: dict[str, Any] = {}
        for schema in schemas:
            function = schema.get("function", schema)
            name = str(function.get("name"))
            if name in self._validators:
                raise UserError(
                    f"two tools are called {name!r}",
                    where="tools",
                    remedy="rename one of them: a call names its tool",
                )
            self._validators[name] = _validator(name, function.get("parameters") or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools."""
        return tuple(self._validators)

    def fault(self, call: ToolCall | UnreadCall) -> str | None:
        """Return the reason for which a call is not made; None if it can be."""
        if isinstance(call, UnreadCall):
            return call.reason
        if call.name not in self._validators:
            return f"Tool {call.name[:80]} not found. Tools: {', '.join(self.names) or 'none'}."
        try:
            errors = [
                _said(each) for each in self._validators[call.name].iter_errors(call.arguments)
            ]
        except (
            Exception
        ) as error:  # A reference that leads nowhere; the tool itself has the last word.
            return (
                None
                if "ref" in type(error).__name__.lower()
                else f"wrong arguments: {error!r:.200}"
            )
        return f"wrong arguments: {'; '.join(errors[:MOST_FAULTS])}" if errors else None


def tools_of_schemas(schemas: Sequence[Schema]) -> Tools:
    """Return the tools of some schemas; those that were asked for before are the same object."""
    return _tools(json.dumps(list(schemas)))


@lru_cache(maxsize=64)
def _tools(schemas: str) -> Tools:
    return Tools(json.loads(schemas))


def _validator(name: str, parameters: Mapping[str, Any]) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    kind = validator_for(parameters, default=Draft202012Validator)
    try:
        kind.check_schema(parameters)
    except SchemaError as error:
        raise UserError(
            f"the parameters of the tool {name!r} are no JSON schema: {error.message}",
            where="tools",
            remedy="write them as JSON schema, or give a typed function with a Google docstring",
        ) from error
    # An empty registry: nothing is looked up on the network.
    return kind(parameters, registry=Registry())


def _said(error: Any) -> str:
    path = ".".join(map(str, error.absolute_path))
    return f"{path}: {error.message:.200}" if path else f"{error.message:.200}"
