"""Code against unit tests. The tests decide, here; the candidate only computes, over there.

A test that runs beside the candidate can be fooled: by ``os._exit(0)``, by an ``__eq__`` that is always
true, by rewriting the test. So tests run in this process, with stand-ins for the candidate's functions:
each call goes to the candidate's process as data, and its value comes back as data. Expected values never
go over. What is compared here is plain Python data: numbers, strings, lists, dicts, sets and None.
Arguments travel as copies, so a function that changes its argument in place does not change the test's.

Tests are code of the data set, and run with the rights of the reward: in its worker process, and under
``isolation: sandbox`` in the sandbox too, together with the candidate.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.library.code.candidate import (
    Candidate,
    CandidateError,
    CandidateLimits,
    StandIn,
    run_program,
)
from rewards.signatures.options import positive, whole_number
from rollouts.errors import UserError

_FENCE = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)

Test = str | Mapping[str, Any]
"""Python with asserts, or ``{"input": ..., "output": ...}`` of a whole program."""


def code_tests(
    completions: Sequence[ShownCompletion],
    tests: Sequence[Test | Sequence[Test] | None],
    entry_point: Sequence[str | None] | None = None,
    partial: bool = False,
    cpu_s: int = 5,
    wall_s: float = 20.0,
    memory_mb: int = 512,
    workers: int = 2,
) -> list[float | None]:
    """Score 1.0 where the code passes all tests of its row, else 0.0; ``partial``: the share it passes.

    The code is the completion's last fenced block, or all of it; it has the standard library. A test
    is Python with asserts (MBPP), Python that defines ``check(candidate)`` for the function in the
    column ``entry_point`` (HumanEval), or ``{"input": ..., "output": ...}`` for a program, whose
    output is compared word by word. All Python tests of a completion share ``cpu_s`` seconds of
    processor time and ``wall_s`` by the clock; a program has them for each run. ``workers``
    candidates run at once. None without tests.
    """
    whole_number("cpu_s", cpu_s)
    positive("wall_s", wall_s)
    whole_number("memory_mb", memory_mb, 64)
    whole_number("workers", workers)
    limits = CandidateLimits(cpu_s=cpu_s, wall_s=wall_s, memory_mb=memory_mb)
    names = [None] * len(completions) if entry_point is None else entry_point

    def score(row: tuple[ShownCompletion, Any, str | None]) -> float | None:
        completion, raw, name = row
        listed = [raw] if isinstance(raw, str | Mapping) else list(raw or [])
        if not listed:
            return None
        code = code_of(completion_text(completion))
        passed = run_tests(code, listed, name, limits)
        return sum(passed) / len(passed) if partial else float(all(passed))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(score, zip(completions, tests, names, strict=True)))


def code_of(text: str) -> str:
    """Return the last fenced block, also one that was cut; without one, the whole text."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text


def run_tests(
    code: str, tests: Sequence[Test], entry_point: str | None, limits: CandidateLimits
) -> list[bool]:
    """Run the tests and tell for each one if it passes."""
    programs = [test for test in tests if not isinstance(test, str)]
    if programs:
        if len(programs) < len(tests):
            raise UserError("a row has either Python tests or input and output, not both")
        passed = []
        for test in programs:
            if not {"input", "output"} <= set(test):
                raise UserError(f"a test of a program has input and output, got {sorted(test)}")
            printed = run_program(code, str(test["input"]), limits)
            passed.append(printed is not None and printed.split() == str(test["output"]).split())
        return passed
    try:
        candidate = Candidate(code, limits)
    except CandidateError:
        return [False] * len(tests)
    with candidate:
        return [_passes(test, candidate.functions, entry_point) for test in map(str, tests)]


def _passes(test: str, functions: Mapping[str, StandIn], entry_point: str | None) -> bool:
    """Run one test among the stand-ins. No name of a built-in is taken from the candidate."""
    shown = {name: function for name, function in functions.items() if not hasattr(builtins, name)}
    namespace: dict[str, Any] = {**shown, "__name__": "__test__"}
    try:
        exec(compile(test, "test.py", "exec"), namespace)
        if entry_point and not isinstance(check := namespace.get("check"), StandIn | None):
            check(functions[entry_point])
    except (Exception, SystemExit):  # a failed assert, or whatever a wrong value led to
        return False
    return True
