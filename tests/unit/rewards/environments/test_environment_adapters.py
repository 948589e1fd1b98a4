"""Environments of other packages, real ones on loopback; skipped where a package is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rewards.environments.adapters import ADAPTERS
from rewards.environments.environments import DeadEnvironment, WorkerEnvironments
from rewards.environments.plan import EnvironmentLimits, EnvironmentsPlan
from rewards.environments.toolset import load_maker
from rollouts.episodes.environment import ToolCall
from rollouts.errors import UserError
from rollouts.types import Prompt

HERE = Path(__file__).parent


def is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def without(package: str) -> pytest.MarkDecorator:
    reason = f"{package} is not installed: pip install 'keel-align[{package}]'"
    return pytest.mark.skipif(is_missing(package), reason=reason)


def opened(name: str) -> WorkerEnvironments:
    limits = EnvironmentLimits(memory_gib=None)
    return WorkerEnvironments(EnvironmentsPlan(environments={"": name}, limits=limits))


def asks(prompt: str = "", **columns: object) -> Prompt:
    return Prompt(id="p", messages=({"role": "user", "content": prompt},), columns=columns)


@pytest.mark.parametrize(
    ("name", "package"), [("openenv://127.0.0.1:1", "openenv"), ("verifiers://x", "verifiers")]
)
def test_a_missing_package_is_named_with_its_extra(name: str, package: str) -> None:
    if not is_missing(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=f"needs the package {package}") as caught:
        load_maker(name, "rounds.0.environment")
    assert f"keel-align[{package}]" in str(caught.value)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="unknown scheme gym://") as caught:
        load_maker("gym://CartPole", "rounds.0.environment")
    assert all(f"{scheme}://" in str(caught.value) for scheme in ADAPTERS)


@contextmanager
def served(kind: str) -> Iterator[str]:
    """Run a server for the block; yield its name as an environment."""
    command = [sys.executable, str(HERE / "openenv_server.py"), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"openenv://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@without("openenv")
def test_a_game_of_an_openenv_server() -> None:
    with served("steps") as name, opened(name) as environments:
        prompt = asks(target=7)
        (schema,) = environments.schemas(prompt)
        assert schema["function"]["name"] == "step"
        assert schema["function"]["parameters"]["properties"] == {"number": {"type": "integer"}}
        for key in "ab":
            assert environments.open(key, prompt).result() == '{"hint": "Guess."}'
        (lower,) = environments.call("a", [ToolCall("step", {"number": 9})]).result()
        assert (lower.text, lower.reward, lower.done) == ('{"hint": "lower"}', -0.25, False)
        (wrong,) = environments.call("b", [ToolCall("step", {"number": "x"})]).result()
        assert wrong.failed
        (right,) = environments.call("a", [ToolCall("step", {"number": 7})]).result()
        assert (right.reward, right.done) == (1.0, True)
        assert environments.close("a").result().reward == 0.75
        assert environments.close("b").result().reward == 0.0


@without("openenv")
def test_the_tools_of_an_openenv_server_and_one_that_is_gone() -> None:
    with served("tools") as name, opened(name) as environments:
        (schema,) = environments.schemas(asks())
        assert schema["function"]["name"] == "add"
        assert schema["function"]["description"] == "Add two numbers."
        environments.open("a", asks()).result()
        (five,) = environments.call("a", [ToolCall("add", {"a": 2, "b": 3})]).result()
        assert (five.text, five.failed) == ("5", False)
        environments.close("a").result()
    with pytest.raises(UserError, match="no OpenEnv server answers"):
        opened("openenv://127.0.0.1:1")


@without("verifiers")
def test_a_taskset_of_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    with opened("verifiers://keel_words") as environments:
        (schema,) = environments.schemas(asks(task=2))
        assert schema["function"]["name"] == "dictionary_look_up"
        assert schema["function"]["parameters"]["required"] == ["word"]
        assert environments.open("a", asks(task=2)).result() == "What is 2?"
        assert environments.open("b", asks("My own.", task="w1")).result() is None
        call = ToolCall("dictionary_look_up", {"word": "x"})
        assert environments.call("a", [call]).result()[0].text == "x is 42"
        tool_call = {
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        messages = [
            {"role": "user", "content": "What is 2?"},
            {"role": "assistant", "content": "", "tool_calls": [tool_call]},
            {"role": "tool", "name": call.name, "content": "x is 42"},
            {"role": "assistant", "content": "42!"},
        ]
        outcome = environments.close("a", messages).result()
        assert outcome.reward == 1.5 and outcome.state["looked"] == 1
        assert environments.close("b", messages[:1]).result().reward == 0.5
        with pytest.raises(DeadEnvironment, match="no task 9"):
            environments.open("c", asks(task=9)).result()
    with pytest.raises(UserError, match="cannot be loaded"):
        opened("verifiers://keel_nothing_of_this_name")
