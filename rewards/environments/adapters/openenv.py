"""Environments that an OpenEnv server holds: ``openenv://HOST:PORT`` (package ``openenv-core``).

An object of the policy's worker is a client with a session of its own. A server with tools of the Model
Context Protocol offers each of them; any other offers one tool, ``step``, with the fields of its action.
The reward of an episode is the sum of the rewards of its steps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.request import urlopen

from rewards.environments.adapters.base import AdaptedEnvironment, missing
from rollouts.errors import UserError

ANSWERS_S = 30.0
"""Seconds that a server may take to state its actions."""
OWN_FIELDS = ("metadata", "done", "reward")
"""Fields of actions and observations that are OpenEnv's own."""


class OpenEnvAdapter:
    """Way from a server's address to environments."""

    def maker(self, address: str, where: str | None) -> Callable[[], OpenEnvEnvironment]:
        """Return what connects to the server.

        Raises:
            UserError: the package is missing.
        """
        try:
            import openenv.core  # noqa: F401
        except ImportError as error:
            raise missing(
                f"openenv://{address}", "openenv-core", "openenv", where, error
            ) from error
        url = address if "://" in address else f"http://{address}"
        return lambda: OpenEnvEnvironment(url, where)


class OpenEnvEnvironment(AdaptedEnvironment):
    """A session with an OpenEnv server."""

    def __init__(self, url: str, where: str | None = None) -> None:
        """Ask the server which actions it takes.

        Raises:
            UserError: it does not answer.
        """
        from openenv.core import GenericEnvClient

        self._url = url.rstrip("/")
        self._client: Any = GenericEnvClient(base_url=self._url)
        self._reward, self._turn_reward = 0.0, 0.0
        try:
            with urlopen(f"{self._url}/schema", timeout=ANSWERS_S) as answer:
                action = json.load(answer)["action"]
            fields = set(action.get("properties", {}))
            self._tools = (
                asyncio.run(self._mcp_tools())
                if {"tool_name", "arguments"} <= fields
                else {"step": self._step_tool(action)}
            )
        except Exception as error:  # a refused connection, or something else than an OpenEnv server
            raise UserError(
                f"no OpenEnv server answers at {self._url}",
                where=where,
                cause=f"{type(error).__name__}: {error}",
                remedy="start the server, or correct the address: openenv://HOST:PORT",
            ) from error

    async def reset(self, **row: Any) -> str | None:
        """Begin an episode with the row's columns; return the server's first observation."""
        self._reward = self._turn_reward = 0.0
        columns = {name: value for name, value in row.items() if name != "prompt"}
        return self._shown(await self._client.reset(**columns))

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """Return the server's tools."""
        return self._tools

    def state(self) -> Mapping[str, Any]:
        """Return the rewards so far, and if the episode is over."""
        return {"reward": self._reward, "done": self.done}

    def get_reward(self) -> float:
        """Return the sum of the rewards of all steps."""
        return self._reward

    def get_turn_reward(self) -> float:
        """Return the rewards of the steps since the last turn."""
        reward, self._turn_reward = self._turn_reward, 0.0
        return reward

    async def _mcp_tools(self) -> dict[str, Callable[..., Any]]:
        from openenv.core import GenericEnvClient

        async with GenericEnvClient(base_url=self._url) as client:
            await client.reset()
            listed = (await client.step({"type": "list_tools"})).observation["tools"]
        return {tool["name"]: self._mcp_tool(tool) for tool in listed}

    def _mcp_tool(self, tool: Mapping[str, Any]) -> Callable[..., Any]:
        async def call(**arguments: Any) -> str:
            action = {"type": "call_tool", "tool_name": tool["name"], "arguments": arguments}
            return self._shown(await self._client.step(action))

        schema = tool.get("input_schema") or tool.get("inputSchema") or {}
        return _described(call, tool["name"], tool.get("description") or "", schema)

    def _step_tool(self, action: Mapping[str, Any]) -> Callable[..., Any]:
        async def step(**arguments: Any) -> str:
            return self._shown(await self._client.step(arguments))

        description = action.get("description") or "Take one step in the environment."
        return _described(step, "step", description, action)

    def _shown(self, result: Any) -> str:
        """Take the reward of a step; return its observation as the policy reads it.

        Raises:
            RuntimeError: the tool of a server failed; the message is the server's.
        """
        reward = float(result.reward or 0.0)
        self._reward += reward
        self._turn_reward += reward
        self.done = bool(result.done)
        observation = dict(result.observation or {})
        if observation.get("error"):
            error = observation["error"]
            raise RuntimeError(error.get("message", error) if isinstance(error, dict) else error)
        if "tool_name" in observation:
            return _result_text(observation.get("result"))
        rest = {name: value for name, value in observation.items() if name not in OWN_FIELDS}
        return json.dumps(rest, ensure_ascii=False)


def _result_text(result: Any) -> str:
    """Return the text of a tool's result in the forms that MCP gives it."""
    if isinstance(result, Mapping) and "data" in result:
        return str(result["data"])
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def _described(
    tool: Callable[..., Any], name: str, description: str, parameters: Mapping[str, Any]
) -> Callable[..., Any]:
    """Give a tool its name, and the schema that the server states."""
    fields = {
        field: {key: value for key, value in facts.items() if key != "title"}
        for field, facts in parameters.get("properties", {}).items()
        if field not in OWN_FIELDS
    }
    shape: dict[str, Any] = {"type": "object", "properties": fields}
    required = [field for field in parameters.get("required", ()) if field in fields]
    if required:
        shape["required"] = required
    if "$defs" in parameters:
        shape["$defs"] = parameters["$defs"]
    function = {"name": name, "description": description.strip() or name, "parameters": shape}
    tool.__name__ = name
    tool.keel_schema = {"type": "function", "function": function}  # type: ignore[attr-defined]
    return tool
