"""Two servers of OpenEnv on loopback: a game of steps, and tools of the Model Context Protocol.

Run as ``python openenv_server.py KIND``; it prints its port.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    """Guess the number."""

    number: int


class Hint(Observation):
    hint: str


class Guessing(Environment):  # type: ignore[type-arg]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(episode_id="e", step_count=0)
        self.target = 5

    def reset(self, target: int = 5, **row: Any) -> Hint:
        self.target = target
        return Hint(hint="Guess.", done=False, reward=0.0)

    def step(self, action: Guess, **settings: Any) -> Hint:
        right = action.number == self.target
        hint = "right" if right else "higher" if action.number < self.target else "lower"
        return Hint(hint=hint, done=right, reward=1.0 if right else -0.25)

    @property
    def state(self) -> State:
        return self._state


def tools_app() -> Any:
    """Make the application of a server with tools."""
    from fastmcp import FastMCP
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

    class Calculator(MCPEnvironment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            server = FastMCP("calculator")

            @server.tool
            def add(a: int, b: int) -> int:
                """Add two numbers."""
                return a + b

            super().__init__(server)

        def reset(self, **row: Any) -> Observation:
            return Observation(done=False, reward=0.0)

        def _step_impl(self, action: Any, **settings: Any) -> Observation:
            return Observation(done=False, reward=0.0)

        @property
        def state(self) -> State:
            return State(episode_id="e", step_count=0)

    return create_app(
        Calculator, CallToolAction, CallToolObservation, env_name="calc", max_concurrent_envs=8
    )


if __name__ == "__main__":
    steps = create_app(Guessing, Guess, Hint, env_name="guess", max_concurrent_envs=8)
    app = steps if sys.argv[1] == "steps" else tools_app()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
