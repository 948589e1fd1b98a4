"""Inside a worker of environments: it imports their code once and forks a child for every episode at once.

    owner ──commands──> worker ──fork──> child: one object, one episode after the other
      └──────────── a socket of its own ───┘

A fork costs milliseconds and no import. A child that crashes, hangs or fills its memory ends alone; the
worker runs no code of an environment after the import.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from rewards.environments.instance import EnvironmentFault, Instance
from rewards.environments.schemas import schema_of
from rewards.environments.state import attributes_of
from rewards.environments.toolset import (
    GET_REWARD,
    GET_TURN_REWARD,
    RESET,
    LoadedEnvironment,
    construct_checked,
    load_toolset,
)
from rewards.isolation.protocol import receive, send_message
from rewards.signatures.parameters import parameters
from rollouts.errors import KeelError

COMMAND_BYTES = 5
"""Bytes of a command: a letter, and the number of the child in four bytes."""
START, KILL = b"S", b"K"


def command(letter: bytes, number: int) -> bytes:
    """Return a command to a worker."""
    return letter + number.to_bytes(4, "big")


def serve_environments(channel: socket.socket, plan: Mapping[str, Any]) -> None:
    """Load the environments; start and kill children as the owner commands."""
    toolset = load_toolset(plan["options"])
    if plan["describe"]:
        described = {name: describe(environment) for name, environment in toolset.items()}
        send_message(channel, {"ready": {"environments": described}})
    else:
        send_message(channel, {"ready": {"environments": {}}})
    os.chdir(plan["scratch"])
    children: dict[int, int] = {}
    while True:
        words, descriptors, _, _ = socket.recv_fds(channel, COMMAND_BYTES, 1)
        _reap(children)
        if len(words) < COMMAND_BYTES:
            return
        number = int.from_bytes(words[1:], "big")
        if words[:1] == KILL:
            _kill(children.pop(number, 0))
            continue
        with socket.socket(fileno=descriptors[0]) as child_end:
            try:
                child = os.fork()
            except OSError as error:
                send_message(child_end, {"fault": f"no process for another environment: {error}"})
                continue
            if child == 0:
                channel.close()
                _live(child_end, toolset, plan["options"])
            children[number] = child


def _reap(children: dict[int, int]) -> None:
    """Take note of children that have ended; their numbers may then mean other processes."""
    for number, child in list(children.items()):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                continue
        del children[number]


def _kill(child: int) -> None:
    """Kill a child with its process group, and reap it."""
    if not child:
        return
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _live(
    channel: socket.socket, toolset: Mapping[str, LoadedEnvironment], options: Mapping[str, Any]
) -> NoReturn:
    """Serve episodes as the forked child, until the owner closes the socket."""
    try:
        os.setsid()
        # A process that a tool forks has no say in the episode, and keeps no socket of it open.
        os.register_at_fork(after_in_child=channel.close)
        _serve_episodes(channel, toolset, options["observation_chars"])
    except BaseException:  # EOF, or an interruption that came between two calls: the child is over
        os._exit(1)
    os._exit(0)


def _serve_episodes(
    channel: socket.socket, toolset: Mapping[str, LoadedEnvironment], most: int
) -> None:
    instances: dict[str, Instance] = {}
    while True:
        request = receive(channel)
        name = request["environment"]
        if name not in instances:
            instances[name] = Instance(toolset[name], most)
        try:
            _answer(channel, instances[name], request)
        except EnvironmentFault as fault:
            send_message(channel, {"fault": str(fault)[:2000]})
        except KeelError as error:
            send_message(channel, {"fault": str(error)[:2000]})


def _answer(channel: socket.socket, instance: Instance, request: Mapping[str, Any]) -> None:
    """Do what one request asks for."""
    limit_s = request["limit_s"]
    match request["do"]:
        case "open":
            send_message(channel, {"text": instance.open(request["row"], request["seed"], limit_s)})
        case "call":
            for index, shown, seconds in instance.call(
                request["calls"], limit_s, request["left_s"]
            ):
                answer = {"index": index, "text": shown.text, "kind": shown.kind, "s": seconds}
                send_message(channel, answer)
            send_message(channel, {"turn": instance.turn(limit_s)})
        case "close":
            send_message(channel, {"outcome": instance.close(request["messages"], limit_s)})


def describe(environment: LoadedEnvironment) -> dict[str, Any]:
    """Return what an owner has to know of an environment.

    Raises:
        UserError: it cannot be constructed, or a schema of a tool cannot be made.
    """
    instance = construct_checked(environment)
    schemas = []
    for name, tool in environment.tools_of(instance).items():
        where = environment.tool_places.get(name, environment.where)
        schemas.append(schema_of(tool, where, file_of(tool)))
    described: dict[str, Any] = {"schemas": schemas, "class": type(instance).__name__}
    if instance is None:
        return {**described, "class": "", "reset": None, "rewards": False, "turn_rewards": False}
    takes = parameters(getattr(instance, RESET))
    return {
        **described,
        "reset": {"names": takes.names, "required": takes.required, "anything": takes.anything},
        "rewards": callable(getattr(type(instance), GET_REWARD, None)),
        "turn_rewards": callable(getattr(type(instance), GET_TURN_REWARD, None)),
        "attributes": attributes_of(instance),
    }


def file_of(tool: Any) -> str:
    """Return the file that a tool is defined in; empty where there is none."""
    code = getattr(inspect.unwrap(getattr(tool, "__func__", tool)), "__code__", None)
    return "" if code is None else os.path.relpath(code.co_filename)
