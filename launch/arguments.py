"""Arguments that commands on a campaign share: its path and its overrides; and JSON output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollouts.machine.collector import without_collector

if TYPE_CHECKING:
    from align.config.file import CampaignFile


def announce(context: typer.Context, campaign: Path) -> Path:
    """Say at once which file is read; reading what it names may take a while. JSON comes without it."""
    if not (context.resilient_parsing or context.params.get("as_json")):
        typer.echo(f"reading {campaign}", err=True)
    return campaign


CampaignPath = Annotated[Path, typer.Argument(help="A campaign file (YAML).", callback=announce)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as rounds.0.steps=10. Repeatable.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: host:port, or auto; without it, one of your own here."),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-cluster", help="Join a cluster on another host although it asks for no token."
    ),
]
ShownRounds = Annotated[
    str | None,
    typer.Option(
        "--rounds",
        help="Rounds to show: FROM..TO by name or number, a number for the newest, or all.",
        show_default="the newest",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", is_eager=True)]


def load(campaign: Path, overrides: list[str] | None) -> CampaignFile:
    """Read and validate the campaign that a command was given, before anything heavy is imported."""
    with without_collector():
        from align.config.file import load_campaign

        file = load_campaign(campaign, overrides or ())
    for note in file.notes:
        typer.echo(f"note: {note}", err=True)
    return file


ORDERS = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal may obey and that JSON does not have to escape."""


def print_json(value: Any) -> None:
    """Print a dataclass, a mapping or a list of them as JSON; numbers that are not finite become null."""
    from pydantic_core import to_json

    text = to_json(value, indent=2, inf_nan_mode="null").decode()
    typer.echo(ORDERS.sub(lambda order: f"\\u{ord(order[0]):04x}", text))


def print_line(text: str) -> None:
    """Print a line with words of others, such as a file's name: a terminal obeys none of them."""
    from align.report.printable import printable

    typer.echo(printable(text))
