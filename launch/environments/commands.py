"""``keel env``: the tools of an environment as a policy reads them, and what its calls bring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launch.arguments import AsJson, print_json
from rollouts.errors import UserError

if TYPE_CHECKING:
    from rewards.environments.environments import WorkerEnvironments
    from rollouts.episodes.environment import Observation, Outcome, ToolCall
    from rollouts.types import Prompt

env_app = typer.Typer(help="Try environments and tools.", no_args_is_help=True)


@env_app.callback()
def env() -> None:
    """Try environments and tools."""


@env_app.command("try")
def env_try(
    environment: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]",
            help="file.py:Class, pkg.mod:Class, verifiers://NAME, openenv://HOST:PORT.",
        ),
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="file.py:function, a tool beside it. Repeatable.")
    ] = None,
    row: Annotated[str, typer.Option(help="Columns of a row as JSON, which reset gets.")] = "{}",
    call: Annotated[
        list[str] | None,
        typer.Option(help="""Call of a tool, 'name {"argument": 1}'. Repeatable: one turn each."""),
    ] = None,
    isolation: Annotated[
        Literal["process", "sandbox"], typer.Option(help="What it runs under.")
    ] = "process",
    call_s: Annotated[float, typer.Option(min=0.001, help="Seconds for a call.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Load an environment as a round would, show its tools, act out one episode, and show its end."""
    from rewards.environments.describe import check_rows
    from rewards.environments.environments import WorkerEnvironments
    from rewards.environments.plan import SINGLE, EnvironmentLimits, EnvironmentsPlan

    if environment is None and not tool:
        raise UserError(
            "there is nothing to try", remedy="name file.py:Class, or --tool file.py:function"
        )
    calls = [call_of(text) for text in call or ()]
    prompt = prompt_of(row)
    plan = EnvironmentsPlan(
        tools=tuple(tool or ()),
        environments={} if environment is None else {SINGLE: environment},
        limits=EnvironmentLimits(isolation=isolation, call_s=call_s),
    )
    environments = WorkerEnvironments(plan)
    check_rows(plan, environments.described, [prompt])
    with environments:
        reset_text, observations, outcome = act(environments, prompt, calls)
    schemas = environments.schemas(prompt)
    if as_json:
        shown = [observation._asdict() for observation in observations]
        print_json(
            {"tools": schemas, "reset": reset_text, "observations": shown, "outcome": outcome}
        )
        return
    lines = ["tools:", *(f"  {tool_line(schema)}" for schema in schemas)]
    lines += [] if reset_text is None else [f"reset: {reset_text}"]
    typer.echo("\n".join([*lines, *episode_lines(calls, observations, outcome)]))


def episode_lines(
    calls: Sequence[ToolCall], observations: Sequence[Observation], outcome: Outcome
) -> list[str]:
    """Say what each call brought, and how the episode ended."""
    lines = []
    for request, observation in zip(calls, observations, strict=True):
        ends = "  (the episode is over)" if observation.done else ""
        lines.append(f"{request.name} {json.dumps(request.arguments)}: {observation.text}{ends}")
    lines += [] if outcome.reward is None else [f"reward: {outcome.reward:g}"]
    return lines + ([f"state: {json.dumps(outcome.state)}"] if outcome.state else [])


def act(
    environments: WorkerEnvironments, prompt: Prompt, calls: Sequence[ToolCall]
) -> tuple[str | None, list[Observation], Outcome]:
    """Run one episode, a turn for each call; return reset's text, what calls brought, and the end.

    Raises:
        RunError: the environment died.
    """
    key = "try"
    reset_text = environments.open(key, prompt).result()
    observations = [
        observation
        for request in calls
        for observation in environments.call(key, [request]).result()
    ]
    return reset_text, observations, environments.close(key).result()


def tool_line(schema: Mapping[str, Any]) -> str:
    """Describe a tool in one line, with the parameters that it must be given first."""
    function = schema["function"]
    fields = function["parameters"].get("properties", {})
    required = function["parameters"].get("required", ())
    words = [f"{n}{'' if n in required else '?'}: {kind_of(f)}" for n, f in fields.items()]
    return f"{function['name']}({', '.join(words)})  {function['description'].splitlines()[0]}"


def kind_of(field: Mapping[str, Any]) -> str:
    """Return the type of a parameter in a word."""
    kind = field.get("type", "any")
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def call_of(text: str) -> ToolCall:
    """Read ``name {"argument": 1}``.

    Raises:
        UserError: the arguments are no JSON object.
    """
    from rollouts.episodes.environment import ToolCall

    name, _, arguments = text.strip().partition(" ")
    return ToolCall(name, json_object(arguments.strip() or "{}", "--call"))


def prompt_of(row: str) -> Prompt:
    """Return the prompt of a row; one without a prompt is empty.

    Raises:
        UserError: the row is no JSON object, or its prompt neither a text nor messages.
    """
    from rollouts.types import Prompt

    columns = json_object(row, "--row")
    shown = columns.pop("prompt", "")
    if isinstance(shown, str):
        messages: Any = ({"role": "user", "content": shown},)
    elif isinstance(shown, list) and shown and all(isinstance(m, dict) for m in shown):
        messages = tuple(shown)
    else:
        raise UserError("the prompt of a row is a text or a list of messages", where="--row")
    return Prompt(id="row", messages=messages, columns=columns, location="the row")


def json_object(text: str, where: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{text!r} is not JSON", where=where, cause=str(error), remedy='write {"column": 1}'
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{text!r} is no JSON object", where=where, remedy='write {"column": 1}')
    return value
