"""Mistakes in tools, environments and rows, named by file and parameter before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.environments.describe import _described, check_rows, describe_environments
from rewards.environments.plan import EnvironmentsPlan
from rewards.environments.toolset import load_toolset
from rewards.environments.worker import describe
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.described import WORLDS

DOC = '"""Do.\n\n    Args:\n        a: It.\n    """'
ENVIRONMENT = "class E:\n    def reset(self, **row): ...\n"


def read(plan: EnvironmentsPlan) -> dict[str, object]:
    return {name: describe(each) for name, each in load_toolset(plan.worker_plan().options).items()}


def test_a_worker_reads_schemas_as_templates_get_them() -> None:
    from transformers.utils import get_json_schema

    plan = EnvironmentsPlan(
        tools=(f"{WORLDS}:add",), environments={"one": f"{WORLDS}:Counter", "two": f"{WORLDS}:Dice"}
    )
    described = describe_environments(plan)
    assert describe_environments(plan) is described

    def add(a: int, b: int = 1) -> int:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return a + b

    assert described["one"].schemas[0] == get_json_schema(add)
    names = [schema["function"]["name"] for schema in described["two"].schemas]
    assert names == ["add", "roll"]
    increment = described["one"].schemas[-1]["function"]["parameters"]
    assert increment["properties"]["how"]["enum"] == ["up", "down"]
    assert increment["required"] == ["by"]
    count, dice = described["one"], described["two"]
    assert (count.kind, count.rewards, count.turn_rewards) == ("Counter", True, True)
    assert (dice.kind, dice.rewards, dice.turn_rewards) == ("Dice", False, False)
    assert dice.reset is not None and dice.reset.required == ("sides", "prompt")


@pytest.mark.parametrize(
    ("code", "tools", "environment", "says"),
    [
        ("def f(a: int): ...", ["f"], None, "tool 'f' of .*has no docstring"),
        (f"def f(a):\n    {DOC}", ["f"], None, "tool 'f' of .*: parameter 'a' has no type"),
        ('def f(a: int):\n    """Do."""', ["f"], None, "does not describe parameter 'a'"),
        (f"def f(*a: int):\n    {DOC}", ["f"], None, r"takes \*a"),
        (f"def f(**a: int):\n    {DOC}", ["f"], None, r"takes \*\*a"),
        (f"def f(a: int, /):\n    {DOC}", ["f"], None, "by position only"),
        (f"def f(a: tuple[int]):\n    {DOC}", ["f"], None, "can be made of parameter 'a'"),
        (f"def f(a: 'Nothing'):\n    {DOC}", ["f"], None, "no schema can be made"),
        (f"def f(a: int):\n    {DOC}", ["f", "f"], None, "two tools are named 'f'"),
        ("class E: ...", ["E"], None, "is a class, not a function"),
        ("f = 3", ["f"], None, "is of type int, not a function"),
        ("", ["f"], None, "tool '.*:f': no 'f' in it"),
        ("import nothing_of_this_name", ["f"], None, "cannot import"),
        (ENVIRONMENT, [], "Wordle", "environment '.*:Wordle': no 'Wordle' in it"),
        ("class E:\n    pass", [], "E", "has no method reset"),
        ("class E:\n    def __init__(self, x): ...\n    reset = 1", [], "E", "no method reset"),
        (
            ENVIRONMENT + "    def __init__(self, x): ...",
            [],
            "E",
            "cannot be constructed",
        ),
        (ENVIRONMENT + "    def go(self): ...", [], "E", "tool 'E.go' of .*has no docstring"),
        (
            ENVIRONMENT + f"    def f(self, a: int):\n        {DOC}\ndef f(a: int):\n    {DOC}",
            ["f"],
            "E",
            "two tools are named 'f'",
        ),
        ("class E:\n    def reset(**row): ...", [], "E", "'reset' of .* does not take self"),
        (
            ENVIRONMENT + f"    def f(a: int):\n        {DOC}",
            [],
            "E",
            "'f' of .* does not take self",
        ),
        (
            ENVIRONMENT + "    def get_reward(self, a, b=1): ...",
            [],
            "E",
            "get_reward of .* takes a\n",
        ),
        (ENVIRONMENT + "    def get_turn_reward(): ...", [], "E", "does not take self"),
        ("def make():\n    return 3", [], "make", "has no method reset"),
        ("def make(a, b=1, *, c): ...", [], "make", "is a function of a, c, not a class"),
    ],
)
def test_code_that_cannot_be_acted_with(
    tmp_path: Path, code: str, tools: list[str], environment: str | None, says: str
) -> None:
    file = tmp_path / "world.py"
    file.write_text(code)
    plan = EnvironmentsPlan(
        tools=tuple(f"{file}:{tool}" for tool in tools),
        environments={} if environment is None else {"": f"{file}:{environment}"},
        where="rounds.0",
    )
    with pytest.raises(UserError, match=says) as caught:
        read(plan)
    assert str(caught.value.where).startswith(("rounds.0.tools.", "rounds.0.environment"))


@pytest.mark.parametrize("name", ["world.py", "world", "world.py:", ":f"])
def test_a_name_without_a_function_or_class(name: str) -> None:
    for plan, says in (
        (EnvironmentsPlan(tools=(name,)), "names no function"),
        (EnvironmentsPlan(environments={"": name}), "names no class"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            read(plan)
        assert "likely cause" not in str(caught.value)


def test_a_worker_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    plan = EnvironmentsPlan(tools=(f"{tmp_path}/none.py:f",), where="rounds.1")
    with pytest.raises(UserError, match="cannot import") as caught:
        describe_environments(plan)
    assert caught.value.where == "rounds.1.tools.0"
    (tmp_path / "ends.py").write_text("import os; os._exit(3)")
    with pytest.raises(UserError, match="cannot be loaded to read the tools") as caught:
        describe_environments(EnvironmentsPlan(tools=(f"{tmp_path}/ends.py:f",)))
    assert "code 3" in str(caught.value)


def test_files_that_the_code_reads_exist_before_it_is_loaded(tmp_path: Path) -> None:
    plan = EnvironmentsPlan(
        tools=("none.py:f",), files=(str(tmp_path), f"{tmp_path}/catalogue"), where="rounds.1"
    )
    with pytest.raises(UserError, match=r"there is no file or folder '.*/catalogue'") as caught:
        describe_environments(plan)
    assert caught.value.where == "rounds.1.episode.files.1"


@pytest.mark.parametrize(
    ("several", "columns", "says"),
    [
        (False, {"sides": 6}, None),
        (False, {}, "needs the column 'sides', which p.jsonl:1 does not have"),
        (False, {"sides": 6, "colour": "red"}, "does not take 'colour', which p.jsonl:1 has"),
        (True, {"environment": "dice", "sides": 6}, None),
        (True, {"environment": "count", "sides": 6}, None),
        (True, {"environment": "dise"}, "names the environment 'dise', which does not exist"),
        (True, {"sides": 6}, "has no column 'environment'"),
    ],
)
def test_rows_that_reset_cannot_be_called_with(
    several: bool, columns: dict[str, object], says: str | None
) -> None:
    names = {"dice": "Dice", "count": "Counter"} if several else {"": "Dice"}
    plan = EnvironmentsPlan(environments={n: f"{WORLDS}:{kind}" for n, kind in names.items()})
    described = {name: _described(facts) for name, facts in read(plan).items()}  # type: ignore[arg-type]
    prompts = [Prompt(id="p", text="Roll.", columns=columns, location="p.jsonl:1")]
    if says is None:
        return check_rows(plan, described, prompts)
    with pytest.raises(UserError, match=says):
        check_rows(plan, described, prompts)
