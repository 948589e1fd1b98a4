"""Code of a model against tests: what passes, what fails, and what tries to look as if it passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.library.code import guest
from rewards.library.code.candidate import Candidate, CandidateError, CandidateLimits
from rewards.library.code.reward import code_of, code_tests
from rewards.registry import load_reward
from rollouts.errors import UserError

TESTS = ["assert f(1) == 2", "assert abs(f(2) - 3) < 1e-6"]


def score(code: str, tests: Any = TESTS, **options: Any) -> float | None:
    return code_tests([code], [tests], cpu_s=1, **options)[0]


def test_right_code_passes_and_wrong_code_does_not() -> None:
    assert score("def f(x): return x + 1") == 1.0
    assert score("Like this:\n```python\ndef f(x):\n    return x + 1\n```\nDone.") == 1.0
    assert score("def f(x): return 2") == 0.0
    assert score("def f(x): return 2", partial=True) == 0.5
    assert score("def g(x): return x + 1") == 0.0
    assert score("def f(: bad") == 0.0
    assert score("raise SystemExit(0)") == 0.0
    assert score("", tests=None) is None
    assert score("", tests=[]) is None


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "class Yes:\n    __eq__ = lambda *a: True\n    __sub__ = __abs__ = lambda *a: 0\n"
        "def f(x): return Yes()",
        "class Two(int):\n    __eq__ = lambda *a: True\ndef f(x): return Two(7)",
        "abs = lambda x: 0\nAssertionError = None\ndef f(x): return 2 if x == 1 else 99",
        "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 2 if x == 1 else 99",
        "def f(x):\n    while True: pass",
        "def f(x): return [0] * 10**9",
        "def f(x): return 'x' * 10**7",
        "def f(x): raise AssertionError",
        # Answers that nobody asked for, on every open descriptor.
        "import os\ndef f(x):\n    for n in range(3, 20):\n        try: os.write(n, "
        'b\'{"id": "ready", "value": 2}\\n\' * 3)\n        except OSError: pass\n    return 0',
        # The harness's own frames and tests are in another process.
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals['f'] = lambda x: x + 1\n        frame = frame.f_back\n    return 0",
    ],
)
def test_tricks_earn_nothing(code: str) -> None:
    assert score(code) == 0.0


def test_noise_does_not_disturb() -> None:
    assert score("print('hello' * 10**6)\ndef f(x):\n    print(x)\n    return x + 1") == 1.0


def test_the_environment_and_the_folder_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    code = "import os\ndef f(): return 'SECRET_TOKEN' in os.environ, os.listdir(), os.getppid() > 0"
    assert score(code, ["assert f() == (False, [], True)"]) == 1.0


def test_values_keep_their_types() -> None:
    code = "def f(*a, **k): return a, k"
    values = "[1, 2.5, None, True, 'x', (1, 2), {3}, {'a': (4,)}, [[]], float('inf')]"
    assert score(code, [f"assert f({values}, k=1) == (({values},), {{'k': 1}})"]) == 1.0
    assert score("def f(): return (1, 2)", ["assert f() == [1, 2]"]) == 0.0


def test_functions_by_entry_point_objects_and_exceptions() -> None:
    check = "def check(candidate):\n    assert candidate(2) == 4"
    assert code_tests(["def g(x): return 2 * x"] * 2, [check] * 2, ["g", "h"]) == [1.0, 0.0]
    methods = "class Stack:\n    def __init__(self): self.a = []\n"
    methods += "    def push(self, x): self.a.append(x)\n    def pop(self): return self.a.pop()"
    assert score(methods, "s = Stack()\ns.push(3)\ns.push(4)\nassert s.pop() == 4") == 1.0
    raises = (
        "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert 0"
    )
    assert score("def f(): raise ValueError('no')", raises) == 1.0
    assert score("def f(): raise KeyError('no')", raises) == 0.0


def test_programs_are_judged_by_what_they_print() -> None:
    tests = [{"input": "4\n", "output": "8 \n"}, {"input": "5", "output": "10"}]
    assert score("print(2 * int(input()))", tests) == 1.0
    assert score("print(8)", tests, partial=True) == 0.5
    assert score("print(2 * int(input()))\nraise SystemExit(1)", tests) == 0.0
    assert score("while True: print('x' * 1000)", tests[:1]) == 0.0
    assert score("import time\ntime.sleep(60)", tests[:1], wall_s=0.5) == 0.0


def test_waiting_ends_by_the_clock_and_leaves_nothing_behind() -> None:
    code = "import time\ndef f(x): time.sleep(60)"
    limits = CandidateLimits(wall_s=0.5)
    with (
        Candidate(code, limits) as candidate,
        pytest.raises(CandidateError, match="gave no answer"),
    ):
        candidate.functions["f"](1)
    assert candidate._process.returncode is not None
    assert not Path(candidate._folder.name).exists()


def test_code_is_the_last_block() -> None:
    assert code_of("```\na\n```\nor\n```py\nb\n```") == "b\n"
    assert code_of("```python\ncut off") == "cut off"
    assert code_of("x = 1") == "x = 1"


def test_what_is_no_data_cannot_be_encoded() -> None:
    def refuse(value: object) -> int:
        raise TypeError

    with pytest.raises(TypeError):
        guest.encode([object()], refuse)
    assert guest.decode({"handle": 3}, lambda number: number * 2) == 6


def test_wrong_options_and_data_are_named() -> None:
    with pytest.raises(UserError, match="cpu_s must be a whole number"):
        load_reward("code_tests", {"cpu_s": 0.5})
    with pytest.raises(UserError, match="memory_mb must be a whole number of at least 64"):
        load_reward("code_tests", {"memory_mb": 8})
    with pytest.raises(UserError, match="not both"):
        score("", ["assert 1", {"input": "", "output": ""}])
    with pytest.raises(UserError, match="has input and output"):
        score("", [{"input": ""}])
