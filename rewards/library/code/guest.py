"""Runs in the candidate's process: defines its code, then calls what the harness asks for.

Started as a script by `rewards.library.code.candidate`, so it imports the standard library only. Nothing
that
is known here is worth stealing: neither the tests nor the expected values ever enter this process, and
its exit code means nothing. It can only answer calls, one JSON line each, on the socket whose number is
its argument; with ``program`` instead of a number it runs ``program.py`` on its standard input.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

WRAPPED = {"tuple": tuple, "set": set, "frozenset": frozenset}
READY = "ready"
"""First line of the guest: the process has started, and what comes later is the candidate's own time."""
LONGEST_LINE = 1 << 20
"""Bytes of one question or answer."""


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Encode a value as JSON that keeps Python's types; ``keep`` gives a number to what has no such
    form."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item, keep) for item in value]}
    if kind is dict:
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    return {"handle": keep(value)}


def decode(value: Any, handle: Callable[[int], Any]) -> Any:
    """Decode a value; ``handle(number)`` returns what stands for an object that stayed."""
    if isinstance(value, list):
        return [decode(item, handle) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "handle":
        return handle(content)
    if kind == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in content}
    return WRAPPED[kind](decode(item, handle) for item in content)


def serve(channel: int) -> None:
    """Read the code, answer with what it defines, then answer calls until the harness hangs up."""
    lines = os.fdopen(os.dup(channel), "r", encoding="utf-8", newline="\n")
    answer(channel, READY, lambda: None)
    names: dict[str, Any] = {"__name__": "__candidate__"}
    handles: list[Any] = []
    definition = json.loads(lines.readline())

    def define() -> list[str]:
        exec(compile(definition["code"], "candidate.py", "exec"), names)
        return [name for name, value in names.items() if callable(value)]

    answer(channel, definition["id"], define)
    for line in lines:
        question = json.loads(line)
        answer(channel, question["id"], partial(_call, question, names, handles))


def limit(memory_mb: int, cpu_s: int) -> None:
    """Bound memory, time, files and processes before foreign code runs. Root may still fork."""
    memory = memory_mb << 20
    for resource_kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(resource_kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource_kind, (most, most))


def answer(channel: int, identifier: str, ask: Callable[[], Any]) -> None:
    """Send one line with the value, or with the exception that came instead."""
    try:
        reply = {"id": identifier, "value": ask()}
        line = json.dumps(reply)
    except BaseException as error:
        line = json.dumps(
            {"id": identifier, "error": type(error).__name__, "message": str(error)[:500]}
        )
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def _call(request: dict[str, Any], names: dict[str, Any], handles: list[Any]) -> Any:
    target = names[request["name"]] if "name" in request else handles[request["handle"]]
    for attribute in request["path"]:
        target = getattr(target, attribute)
    arguments = decode(request["args"], handles.__getitem__)
    keywords = decode(request["kwargs"], handles.__getitem__)

    def keep(value: Any) -> int:
        handles.append(value)
        return len(handles) - 1

    return encode(target(*arguments, **keywords), keep)


if __name__ == "__main__":
    limit(int(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[1] == "program":
        runpy.run_path("program.py", run_name="__main__")
    else:
        serve(int(sys.argv[1]))
