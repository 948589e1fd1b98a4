"""Deadlines of tests scale with the machine, and no test compares a duration with a number."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import patience

TESTS = Path(__file__).parents[2]
CLOCKS = {"getrusage", "monotonic", "perf_counter", "process_time", "thread_time"}
WAITS = {"timeout", "wait", "join"}
"""Calls whose first argument is a deadline in seconds."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that is two and a half times slower."""
    monkeypatch.setenv(patience.VARIABLE, "2.5")
    patience.slowness.cache_clear()
    yield
    patience.slowness.cache_clear()


@pytest.mark.usefixtures("slow")
def test_deadlines_are_longer_on_a_slow_machine() -> None:
    assert patience.patient(60) == 150.0
    assert patience.patient(0.5) == 1.25


def test_no_machine_shortens_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WORK", "pass")
    assert patience.measured() == 1.0


def test_a_machine_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "REFERENCE_S", 1e-6)
    assert patience.measured() == patience.MOST


def test_the_timeout_of_this_test_is_scaled(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("timeout")
    given = request.config.getoption("timeout")
    assert given is not None or marker.args[0] == patience.patient(300.0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("assert time.monotonic() - start < 1", [1]),
        ("until = time.monotonic() + 30.0", [1]),
        ("run(command, timeout=60)", [1]),
        ("thread.join(20)\nbarrier.wait(5.0)", [1, 2]),
        ("before = getrusage(RUSAGE_CHILDREN)", [1]),
        ("faults = resource.getrusage(RUSAGE_SELF).ru_minflt", []),
        ("SCRIPT = '''\nimport psutil\npsutil.wait_procs(started, timeout=30)\n'''", [3]),
        ("SAID = '''\nimport is no script: timeout=30\n'''", []),
        ("until = time.monotonic() + patient(30)", []),
        ("run(command, timeout=patient(60))\nthread.join()", []),
        ('", ".join(names)\nassert len(names) < 1', []),
    ],
)
def test_the_search_for_timed_expectations(code: str, expected: list[int]) -> None:
    assert list(timed(code)) == expected


def test_no_test_depends_on_how_fast_a_machine_is() -> None:
    files = [file for file in TESTS.rglob("*.py") if file.name != "test_patience.py"]
    places = [f"{f.relative_to(TESTS)}:{line}" for f in files for line in timed(f.read_text())]
    assert places == [], "scale the deadline by tests.patience.patient, or count what was done"


def timed(code: str) -> Iterator[int]:
    """Yield the lines of a test file with an unscaled deadline or a measured duration."""
    tree = ast.parse(code)
    # Page faults are counted, not timed.
    counts = {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "ru_minflt"
    }
    for node in ast.walk(tree):
        match node:
            case ast.Compare() | ast.BinOp(op=ast.Add()) if reads_clock(node) and any(
                map(is_number, ast.iter_child_nodes(node))
            ):
                yield node.lineno
            case ast.Call(keywords=[*_, ast.keyword(arg="timeout", value=value)]) if is_number(
                value
            ):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr=name), args=[value]) if (
                name in WAITS and is_number(value)
            ):
                # A marker's timeout is scaled by conftest.py.
                if "mark.timeout" not in ast.unparse(node):
                    yield node.lineno
            case ast.Call(func=ast.Name(id="getrusage") | ast.Attribute(attr="getrusage")) if (
                node not in counts
            ):
                yield node.lineno
            case ast.Constant(value=str(script)) if "\nimport " in script or "\nfrom " in script:
                # A program that the test runs in a process of its own.
                with suppress(SyntaxError):
                    yield from (node.lineno + line - 1 for line in timed(script))


def reads_clock(node: ast.AST) -> bool:
    names = {getattr(inner, "attr", getattr(inner, "id", None)) for inner in ast.walk(node)}
    return not CLOCKS.isdisjoint(names)


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
