"""What commands that look at a campaign share: its path, its overrides, and JSON to print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from align.campaign_file import CampaignFile

CampaignPath = Annotated[Path, typer.Argument(help="A campaign file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as rounds.0.steps=10. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def load(campaign: Path, overrides: list[str] | None) -> CampaignFile:
    """The campaign that a command was given."""
    from align.campaign_file import load_campaign

    return load_campaign(campaign, overrides or ())


def print_json(value: Any) -> None:
    """A dataclass, a mapping or a list of them; what is not finite becomes null."""
    from pydantic_core import to_json

    typer.echo(to_json(value, indent=2, inf_nan_mode="null").decode())
