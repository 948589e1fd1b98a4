"""Names become functions, and every wrong name or signature becomes one clear message."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rewards import imports
from rewards.patience import importing
from rewards.registry import REWARDS, load_reward
from rewards.signatures.signature import check_signature
from rollouts.errors import UserError
from tests.patience import patient


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(name: str, options: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_reward(name, options, "rounds.0.rewards.1")
    assert caught.value.where == "rounds.0.rewards.1"
    return str(caught.value)


REQUIRED: dict[str, dict[str, Any]] = {
    "reward_model": {"model": "round:x"},
    "regex_match": {"pattern": "a"},
    "ends_within": {"tokens": 3},
    "json_schema": {"schema": {"type": "object"}},
    "language": {"code": "en"},
    "soft_overlong": {"max_tokens": 8},
    "preference_model": {"model": "round:taste"},
    "llm_judge": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "criteria": "Kind."},
    "pairwise_judge": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "criteria": "Kind."},
    "agreement": {"of": ["exact_match", "contains"]},
    "naive_bayes": {
        "data": str(Path(__file__).parents[1] / "data" / "labelled.jsonl"),
        "positive": "Good",
    },
}


@pytest.mark.parametrize("name", REWARDS)
def test_every_registered_reward_loads(name: str) -> None:
    loaded, shipped = load_reward(name, REQUIRED.get(name)), REWARDS[name].function
    assert type(loaded) is shipped if isinstance(shipped, type) else loaded is shipped
    assert shipped.__doc__


def test_an_unknown_name_gets_the_nearest() -> None:
    message = refused("exact_mach")
    assert "did you mean 'exact_match'?" in message
    assert "file.py:function" in message


def test_a_file_is_loaded_relative_to_the_current_folder(folder: Path) -> None:
    Path("mine.py").write_text(
        "def short(completions, limit=3):\n"
        "    return [float(len(c) < limit) for c in completions]\n"
        "def long(completions):\n    return [0.0 for c in completions]\n"
    )
    function = load_reward("mine.py:short", {"limit": 2})
    assert function(completions=["a", "abc"], limit=2) == [1.0, 0.0]
    other = load_reward("mine.py:long")
    assert sys.modules[function.__module__] is sys.modules[other.__module__]


def test_an_edited_file_is_loaded_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    Path("mine.py").write_text("def f(completions): return [1.0]")
    assert load_reward("mine.py:f")(completions=["a"]) == [1.0]
    Path("mine.py").write_text("def f(completions): return [2.0]")
    assert load_reward("mine.py:f")(completions=["a"]) == [2.0]


def test_a_module_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("keel_test_pkg").mkdir()
    Path("keel_test_pkg/scores.py").write_text("def f(completions, **kwargs): return [1.0]")
    monkeypatch.syspath_prepend(str(folder))
    assert load_reward("keel_test_pkg.scores:f", {"anything": 1})(completions=["a"]) == [1.0]


def test_an_import_failure_says_why(folder: Path) -> None:
    assert "No module named 'keel_nowhere'" in refused("keel_nowhere:f")
    assert "No such file" in refused("nowhere.py:f")
    Path("broken.py").write_text("import keel_nowhere\n")
    assert "No module named 'keel_nowhere'" in refused("broken.py:f")
    Path("typo.py").write_text("def f(:\n")
    assert "SyntaxError" in refused("typo.py:f") and "line 1" in refused("typo.py:f")
    Path("leaves.py").write_text("raise SystemExit(3)\n")
    assert "SystemExit: 3" in refused("leaves.py:f")


def test_a_missing_attribute_gets_the_nearest(folder: Path) -> None:
    Path("mine.py").write_text("def politeness(completions): return []\nvalue = 3\nclass C: pass\n")
    assert "did you mean 'politeness'?" in refused("mine.py:politness")
    assert "of type int, not a function" in refused("mine.py:value")
    assert "is a class, not a function" in refused("mine.py:C")


def test_a_missing_argument_is_named(folder: Path) -> None:
    Path("mine.py").write_text(
        "def f(prompts, answer): return []\ndef g(completions, /): return []\n"
        "def h(completion_ids): return []\n"
    )
    message = refused("mine.py:f")
    assert "missing the argument 'completions'" in message
    assert "its arguments are (prompts, answer)" in message
    assert "takes 'completions' by position only" in refused("mine.py:g")
    assert load_reward("mine.py:h")(completion_ids=[]) == []


def test_an_option_the_function_does_not_take_gets_the_nearest() -> None:
    assert "did you mean 'cap'?" in refused("dialogue", {"cpa": 3})
    assert "takes no options" in refused("sentiment", {"scale": 3})
    assert "filled in by the rubric" in refused("length", {"completions": 3})


def test_wrong_option_values_are_found_at_load() -> None:
    assert "needs a pattern" in refused("regex_match")
    assert "unterminated character set" in refused("regex_match", {"pattern": "["})
    assert "n must be a whole number of at least 1, got 0" in refused("distinct_ngrams", {"n": 0})
    assert "cap must be at most 1, got 1.5" in refused("distinct_ngrams", {"cap": 1.5})
    assert "unit 'tokens' is not known" in refused("length", {"unit": "tokens"})
    assert "got True" in refused("dialogue", {"cap": True})
    assert "cannot use the options" in refused("exact_match", {"answer": "yes"})


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.library import text

    text._vader.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    assert "keel-align[stories]" in refused("sentiment")


def test_partials_and_callable_objects_are_functions() -> None:
    class Judge:
        def __call__(self, completions: list[str], scale: float = 1.0) -> list[float]:
            return [scale for _ in completions]

    check_signature("judge", Judge(), {"scale": 2.0}, None)
    check_signature("judge", functools.partial(Judge(), scale=2.0), {}, None)
    with pytest.raises(UserError, match="does not take the option 'scal'"):
        check_signature("judge", Judge(), {"scal": 2.0}, None)


def test_an_import_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is given back, and a file that is quick is imported under it."""
    monkeypatch.setattr(imports, "importing", functools.partial(importing, limit_s=patient(0.2)))
    quick, slow = tmp_path / "quick.py", tmp_path / "slow.py"
    quick.write_text("def f(completions):\n    return [1.0 for _ in completions]\n")
    slow.write_text(f"import time\ntime.sleep({patient(60)})\n{quick.read_text()}")
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match="cannot import") as error:
        load_reward(f"{slow}:f", {}, None)
    assert "did not end within" in (error.value.cause or "")
    load_reward(f"{quick}:f", {}, None)
    assert signal.getsignal(signal.SIGALRM) is handler
