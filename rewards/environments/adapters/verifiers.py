"""Environments of the package ``verifiers``: ``verifiers://NAME`` is one of its tasksets.

A row chooses a task by its column ``task``, a position or the id or name of one. Where the row's own
prompt is empty, the task's takes its place. The tools are those of the taskset's and the task's tool
servers, which run in the process of the episode. The reward is the task's own, of the transcript and the
state.
Not supported, and refused: tasksets whose environment is a class of their own, such as games that answer as
the user, and rewards that need a container. The package's interface is that of version 0.4.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rewards.environments.adapters.base import AdaptedEnvironment, missing
from rollouts.errors import UserError
from rollouts.types import Message


class VerifiersAdapter:
    """Way from a taskset's name to environments."""

    def maker(self, address: str, where: str | None) -> Callable[[], VerifiersEnvironment]:
        """Return what makes environments over one copy of the taskset.

        Raises:
            UserError: the package is missing, or there is no such taskset.
        """
        name = f"verifiers://{address}"
        try:
            import verifiers.v1
        except ImportError as error:
            raise missing(name, "verifiers", "verifiers", where, error) from error
        from verifiers.v1.utils import loaders

        try:
            config = loaders.taskset_config_type(address)(id=address)
            taskset = loaders.load_taskset(config)
            kind = loaders.environment_class(address)
        except Exception as error:  # the taskset's own module and constructor run here
            raise UserError(
                f"environment {name!r} cannot be loaded",
                where=where,
                cause=f"{type(error).__name__}: {error}",
                remedy="install the package of the taskset, which exports its Taskset by __all__",
            ) from error
        if kind is not verifiers.v1.SingleAgentEnv:
            raise UserError(
                f"environment {name!r} plays its own part in the conversation, as {kind.__name__}",
                where=where,
                cause="an environment answers calls of tools here, and nothing else",
                remedy="write file.py:Class with tools, or choose a taskset without a class of its own",
            )
        return lambda: VerifiersEnvironment(taskset)


class VerifiersEnvironment(AdaptedEnvironment):
    """One taskset with its tool servers."""

    def __init__(self, taskset: Any) -> None:
        self._taskset = taskset
        config = taskset.config
        self._servers = [*taskset.toolsets(config), *taskset.task_type().toolsets(config.task)]
        self._tools = {
            tool.__name__: tool for server in self._servers for tool in self._tools_of(server)
        }
        self._task: Any = None
        self._state: Any = None
        self._is_set_up = False

    # The column that a row must have is a parameter, by which rows are checked.
    async def reset(  # type: ignore[override]
        self, task: int | str, prompt: Any = "", **row: Any
    ) -> str | None:
        """Begin a task; return its prompt where the row has none of its own."""
        if not self._is_set_up:
            for server in self._servers:
                await server.setup()
            self._is_set_up = True
        self._task = self._task_of(task)
        self._state = state_of(self._task)
        for server in self._servers:
            await server.setup_task(self._task.data)
        if text_of(prompt).strip():
            return None
        data = self._task.data
        return "\n\n".join(text for text in (data.system_prompt, data.prompt_text) if text)

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """Return the tools of all servers."""
        return self._tools

    def state(self) -> Mapping[str, Any]:
        """Return the state that tools and rewards share."""
        values: dict[str, Any] = self._state.model_dump(mode="json")
        return values

    async def get_reward(self) -> float:
        """Score the transcript by the rewards of the task."""
        from verifiers.v1.trace import AgentInfo, Trace, TraceTask

        data = self._task.data
        trace: Any = Trace.model_construct(
            **{
                name: field.get_default(call_default_factory=True)
                for name, field in defaults(Trace)
            },
            task=TraceTask.model_construct(type=type(self._task).__name__, data=data),
            agent=AgentInfo.model_construct(),
        )
        trace.nodes = list(nodes_of(self.messages))
        trace.state = self._state
        await self._task.finalize(trace, None)
        await self._task.score(trace, None)
        return float(trace.reward)

    def _task_of(self, choice: int | str) -> Any:
        """Return a task by its position, id or name.

        Raises:
            LookupError: there is none.
        """
        tasks: Iterator[Any]
        if isinstance(choice, int):
            tasks = itertools.islice(iter(self._taskset), choice, choice + 1)
        else:
            tasks = (t for t in self._taskset if choice in (t.data.id, t.data.name))
        chosen = next(tasks, None)
        if chosen is None:
            raise LookupError(f"the taskset has no task {choice!r}")
        return chosen

    def _tools_of(self, server: Any) -> Iterator[Callable[..., Any]]:
        """Yield the tools of a server under the names that the package advertises."""
        from verifiers.v1.utils.decorators import discover_decorated

        for function in discover_decorated(server, "tool"):
            name = getattr(function, "tool_name", None) or function.__name__
            prefix = server.server_name
            yield self._tool(function, f"{prefix}_{name}" if prefix else name)

    def _tool(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        from pydantic import TypeAdapter
        from verifiers.v1.mcp.server import _call_state

        @functools.wraps(function)
        async def call(*args: Any, **arguments: Any) -> Any:
            token = _call_state.set(self._state)
            try:
                result = function(*args, **arguments)
                return await result if inspect.isawaitable(result) else result
            finally:
                _call_state.reset(token)

        description = inspect.getdoc(function) or name
        adapter: Any = TypeAdapter
        parameters = adapter(function).json_schema()
        facts = {"name": name, "description": description, "parameters": parameters}
        call.__name__ = name
        call.keel_schema = {"type": "function", "function": facts}  # type: ignore[attr-defined]
        return call


def defaults(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a model that need no value."""
    return ((name, field) for name, field in model.model_fields.items() if not field.is_required())


def state_of(task: Any) -> Any:
    """Return a fresh state of the kind that a task declares."""
    from verifiers.v1.state import state_cls

    return state_cls(type(task))()


def nodes_of(messages: Sequence[Message]) -> Iterator[Any]:
    """Yield the messages of an episode as the path of a trace."""
    from verifiers.v1 import AssistantMessage, SystemMessage, ToolMessage, UserMessage
    from verifiers.v1.graph import MessageNode

    kinds = {
        "assistant": AssistantMessage,
        "system": SystemMessage,
        "tool": ToolMessage,
        "user": UserMessage,
    }
    for index, message in enumerate(messages):
        role = message["role"]
        fields: dict[str, Any] = {"role": role, "content": message.get("content") or ""}
        if role == "tool":
            fields["tool_call_id"] = message.get("tool_call_id") or ""
        if role == "assistant":
            fields["tool_calls"] = calls_of(message) or None
        spoken = kinds[role].model_construct(**fields)
        parent = index - 1 if index else None
        yield MessageNode.model_construct(
            **{n: f.get_default(call_default_factory=True) for n, f in defaults(MessageNode)}
            | {"parent": parent, "message": spoken, "sampled": role == "assistant"}
        )


def calls_of(message: Message) -> list[Any]:
    """Return the calls of an assistant's message as the package has them."""
    import json

    from verifiers.v1 import ToolCall

    calls = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function", call)
        arguments = json.dumps(function.get("arguments", {}))
        calls.append(
            ToolCall.model_construct(
                id=str(call.get("id") or number), name=function["name"], arguments=arguments
            )
        )
    return calls


def text_of(prompt: Any) -> str:
    """Return the last words of a prompt in either form."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1].get("content") or "") if prompt else ""
