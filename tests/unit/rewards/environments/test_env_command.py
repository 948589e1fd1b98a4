"""Words of ``keel env try``; the guide's page runs the command itself."""

from __future__ import annotations

import pytest

from launch.environments.commands import call_of, prompt_of, tool_line
from rollouts.errors import UserError


def test_calls_and_rows_are_json() -> None:
    assert call_of("roll") == ("roll", {})
    assert call_of(' guess {"value": 50} ') == ("guess", {"value": 50})
    prompt = prompt_of('{"prompt": "Hi", "sides": 6}')
    assert prompt.messages == ({"role": "user", "content": "Hi"},)
    assert prompt.columns == {"sides": 6}


@pytest.mark.parametrize(
    ("row", "says"),
    [("{", "is not JSON"), ("[1]", "is no JSON object"), ('{"prompt": 3}', "a text or a list")],
)
def test_rows_that_are_none(row: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        prompt_of(row)


def test_a_tool_is_a_line() -> None:
    fields = {"a": {"type": "integer"}, "b": {"type": ["integer", "string"]}, "c": {"anyOf": []}}
    parameters = {"properties": fields, "required": ["a"]}
    function = {"name": "f", "description": "Do it.\nMore.", "parameters": parameters}
    assert tool_line({"function": function}) == "f(a: integer, b?: integer|string, c?: any)  Do it."
