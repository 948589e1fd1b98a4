"""Tool parsers of vLLM by name, in a process of their own: vLLM and the learner never share one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Lock
from typing import Any

from rollouts.episodes.environment import Schema
from rollouts.episodes.parsers import UNKNOWN, ParsedTurn, TurnTokens, UnreadCall, read_call
from rollouts.errors import RunError
from rollouts.machine.variables import passed_on

START_S = 180.0
"""Longest wait for vLLM to be imported."""
PARSE_S = 30.0
"""Longest wait for one turn; a regular expression may run away on what a model wrote."""
REGISTRY = "_TOOL_PARSERS_TO_REGISTER"
"""Name of vLLM's table of parsers."""


@cache
def vllm_parser_names() -> tuple[str, ...]:
    """Return the names of vLLM's tool parsers, read from its source; empty without vLLM."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return ()
    file = Path(spec.submodule_search_locations[0]) / "tool_parsers" / "__init__.py"
    if not file.is_file():
        return ()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if targets == [REGISTRY]:
                return tuple(ast.literal_eval(node.value))
    return ()


class VLLMParser:
    """A `Parser` that one of vLLM's reads for, in a process that starts with the first turn.

    Args:
        name: name of the parser in vLLM.
        model: folder of the tokenizer.
    """

    def __init__(self, name: str, model: str) -> None:
        self._name, self._model = name, model
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def parse(self, turn: TurnTokens, schemas: Sequence[Schema]) -> ParsedTurn:
        """Return the calls of a turn.

        Raises:
            RunError: the parser does not start with this tokenizer.
        """
        question = json.dumps({"text": turn.text, "schemas": list(schemas)})
        with self._lock:  # Episodes of two steps may go on at once, each in a thread of its own.
            if self._process is None:
                self._process = self._start()
            answer = self._answer(question, PARSE_S)
            if answer is None:
                self.close()
        if answer is None:
            return _unread(
                turn, f"the parser {self._name} of vLLM ended or took over {PARSE_S:g} s"
            )
        if "error" in answer:
            return _unread(turn, str(answer["error"]))
        calls = tuple(read_call(call["name"], call["arguments"]) for call in answer["calls"])
        return ParsedTurn(str(answer["content"] or ""), calls)

    def close(self) -> None:
        """End the process; the next turn starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "rollouts.episodes.parsers.vllm_worker",
            self._name,
            self._model,
        ]
        # vLLM logs a traceback for each call that does not parse.
        variables = {**passed_on(os.environ), "VLLM_LOGGING_LEVEL": "CRITICAL"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
        )
        self._process = process
        ready = self._answer(None, START_S)
        if ready is None or "error" in ready:
            self.close()
            raise RunError(
                f"vLLM's tool parser {self._name!r} does not start",
                where="episode.parser",
                cause=None if ready is None else str(ready["error"]),
                remedy="set parser to hermes, or to the parser that vLLM has for this model's family",
            )
        return process

    def _answer(self, line: str | None, seconds: float) -> dict[str, Any] | None:
        """Send a line, if any, and return the next answer; None if there is none in time."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if line is not None:
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
        except OSError:
            return None
        with DefaultSelector() as selector:
            selector.register(process.stdout, EVENT_READ)
            if not selector.select(seconds):
                return None
        text = process.stdout.readline()
        return dict(json.loads(text)) if text else None


def _unread(turn: TurnTokens, reason: str) -> ParsedTurn:
    return ParsedTurn(turn.text, (UnreadCall(UNKNOWN, reason),))
