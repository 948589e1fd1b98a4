"""Functions and classes given as objects: what is written for another process, and what is refused."""

from __future__ import annotations

import functools
import json
import linecache
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.library.verifiable import exact_match
from rewards.registry import load_reward
from rewards.signatures.given import GivenCode, _spelt, reference_to
from rollouts.errors import UserError

WEIGHTS = {"please": 2, "thanks": 1}
PATTERN = re.compile(r"\bsorry\b", re.IGNORECASE)
LIVE = object()


def helper(text: str) -> float:
    """Score one text; it needs an import, a constant and a pattern."""
    known = sum(weight for word, weight in WEIGHTS.items() if word in text)
    return math.sqrt(known) - len(PATTERN.findall(text))


def notebook(*cells: str) -> dict[str, Any]:
    """Run cells as a notebook does, each a file of its own that only Python's line cache knows."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        file = f"<cell {number} of {hash(cells)}>"
        linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
        exec(compile(cell, file, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the program that runs the tests: the main module of a notebook has no file."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)


def loaded(target: Any, folder: Path) -> Callable[..., Any]:
    """Write a module for an object and load the reward from it, as a worker would."""
    code = reference_to(target)
    assert isinstance(code, GivenCode)
    return load_reward(f"{code.save(folder)}:{code.name}")


def test_an_object_of_an_importable_module_is_named() -> None:
    assert reference_to(exact_match) == "rewards.library.verifiable:exact_match"


def test_a_function_of_a_file_is_named_by_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_file_of_rewards.py").write_text("def polite(completions):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_file_of_rewards  # type: ignore[import-not-found]

    assert reference_to(my_file_of_rewards.polite) == f"{tmp_path}/my_file_of_rewards.py:polite"


def test_a_function_brings_what_it_uses(tmp_path: Path) -> None:
    def polite(completions: Sequence[str], **columns: Any) -> list[float]:
        return [helper(text) for text in completions]

    texts = ["please, thanks, please", "Sorry, please", "no"]
    assert loaded(polite, tmp_path)(completions=texts) == [helper(text) for text in texts]
    assert loaded(polite, tmp_path)(completions=["please thanks"]) == [math.sqrt(3)]


def test_a_closure_over_plain_data_is_written_with_the_data(tmp_path: Path) -> None:
    def made(word: str, bonus: float) -> Callable[..., list[float]]:
        def has_word(completions: Sequence[str]) -> list[float]:
            return [bonus * (word in text) for text in completions]

        return has_word

    assert loaded(made("yes", 0.5), tmp_path)(completions=["oh yes", "no"]) == [0.5, 0.0]
    assert loaded(made("no", 2.0), tmp_path)(completions=["oh yes", "no"]) == [0.0, 2.0]


def test_cells_of_a_notebook_are_found(tmp_path: Path) -> None:
    names = notebook(
        "import re\nfrom statistics import mean as average\nLIMIT = 2\n",
        "class Words:\n    def __init__(self, least=1):\n        self.least = least\n"
        "    def __call__(self, completions, **columns):\n"
        "        return [float(count(c) >= self.least) for c in completions]\n",
        "def count(text):\n    return average([len(re.findall('a', text)), LIMIT])\n",
        "async def later(completions, **columns):\n    return [await one(c) for c in completions]\n",
        "async def one(text):\n    return count(text)\n",
    )
    assert loaded(names["Words"], tmp_path)(completions=["aa", ""]) == [1.0, 1.0]
    code = reference_to(names["later"])
    assert isinstance(code, GivenCode)
    assert code.text.index("def one") < code.text.index("def later")
    run = "import asyncio, json, later; print(json.dumps(asyncio.run(later.later(['aaaa']))))"
    done = subprocess.run(
        [sys.executable, "-c", run],
        cwd=code.save(tmp_path).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [3]


def test_functions_that_call_each_other_are_written_once() -> None:
    names = notebook(
        "def even(n):\n    return n == 0 or odd(n - 1)\n",
        "def odd(n):\n    return n != 0 and even(n - 1)\n",
        "def reward(completions):\n    return [float(even(len(c))) for c in completions]\n",
    )
    code = reference_to(names["reward"])
    assert isinstance(code, GivenCode)
    assert [code.text.count(f"def {name}(") for name in ("even", "odd", "reward")] == [1, 1, 1]


def test_the_digest_follows_the_source_and_what_it_uses() -> None:
    def digest(constant: str, body: str) -> str:
        names = notebook(f"LIMIT = {constant}\n", f"def reward(completions):\n    return {body}\n")
        code = reference_to(names["reward"])
        assert isinstance(code, GivenCode)
        return code.digest

    body = "[float(len(c) > LIMIT) for c in completions]"
    assert digest("3", body) == digest("3", body)
    assert len({digest("3", body), digest("4", body), digest("3", body.replace(">", "<"))}) == 3


def test_an_annotation_that_cannot_be_written_stands_in_no_way(tmp_path: Path) -> None:
    names = notebook(
        "class Model: pass\nmodel = Model()\nKind = list[str]\n",
        "def reward(completions: Kind, other: model = None) -> Kind:\n    return [1.0]\n",
    )
    assert loaded(names["reward"], tmp_path)(completions=["x"]) == [1.0]


class Scorer:
    """An object that can be called, with a method."""

    def __call__(self, completions: Sequence[str]) -> list[float]:
        return [0.0]

    def score(self, completions: Sequence[str]) -> list[float]:
        return [0.0]


def over_live() -> Callable[..., Any]:
    model = Scorer()

    def judged(completions: Sequence[str]) -> list[float]:
        return model(completions)

    return judged


def uses_live(completions: Sequence[str]) -> list[float]:
    return [float(LIVE is not None)]


def in_notebook(*cells: str) -> Any:
    return notebook(*cells)["reward"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda completions: [0.0], ("a lambda", "def my_reward")),
        (functools.partial(exact_match, strip=True), ("functools.partial", "options")),
        (Scorer().score, ("a method of an object of type Scorer", "__call__")),
        (Scorer(), ("an object of type Scorer", "the class itself")),
        (len, ("built-in function 'len'", "calls it")),
        (over_live(), ("'judged' uses 'model'", "Scorer that lives only in this process")),
        (
            in_notebook("model = iter([])\n", "def reward(completions):\n    return list(model)\n"),
            ("'reward' uses 'model'", "list_iterator that lives only in this process", "options"),
        ),
        (
            in_notebook("f = lambda c: 0.0\n", "def reward(completions):\n    return [f('')]\n"),
            ("uses 'f', which is a lambda",),
        ),
        (
            in_notebook("def reward(completions):\n    return [later(c) for c in completions]\n"),
            ("uses 'later', which is not defined",),
        ),
        (
            in_notebook("exec('def reward(completions): return [0.0]')"),
            ("source of 'reward' cannot be read", "a cell of a notebook or in a file"),
        ),
    ],
)
def test_what_lives_only_here_is_refused_by_name(target: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        reference_to(target)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.remedy


def test_constants_are_spelt_so_that_they_come_back() -> None:
    value = {"a": (1,), "b": [None, True, b"x"], "c": {3, 1}, "d": frozenset(), "e": (), "f": set()}
    assert eval(_spelt(value)) == value
    assert eval(_spelt([math.inf, -math.inf])) == [math.inf, -math.inf]
    assert math.isnan(eval(_spelt(math.nan)))
    assert _spelt({"b", "a"}) == _spelt({"a", "b"}) == "{'a', 'b'}"


def test_code_is_saved_once_for_each_content(tmp_path: Path) -> None:
    code, other = GivenCode(name="f", text="x = 1\n"), GivenCode(name="f", text="x = 2\n")
    path = code.save(tmp_path)
    assert path.read_text() == "x = 1\n"
    assert code.save(tmp_path) == path != other.save(tmp_path)
    assert path.name == other.save(tmp_path).name == "f.py"
    path.write_text("x =")
    assert code.save(tmp_path).read_text() == "x = 1\n"
