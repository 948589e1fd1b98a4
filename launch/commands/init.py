"""``keel init``: a first campaign file for a model, prompts and a reward, checked before it is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rollouts.errors import UserError


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("init")(init)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write the campaign.")] = Path(
        "campaign.yaml"
    ),
    model: Annotated[
        str, typer.Option(help="Folder in Hugging Face format, hub id, or demo://digits.")
    ] = "demo://digits",
    prompts: Annotated[
        str, typer.Option(help="File or data set that the round learns from, or demo://rev.")
    ] = "demo://rev",
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Shipped reward, or file.py:function. Repeatable. See keel reward list."),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help="How to learn; without it grpo with a reward, and dpo without one."),
    ] = None,
    heldout: Annotated[
        float,
        typer.Option(min=0.01, max=0.9, help="Share of a file that the round is measured on."),
    ] = 0.1,
    store: Annotated[
        str | None, typer.Option(help="Folder of the store; without it runs/NAME beside the file.")
    ] = None,
) -> None:
    """Write a campaign of one round, commented and checked; the file must not exist."""
    if file.exists():
        raise UserError(
            f"there is a {'folder' if file.is_dir() else 'file'} already, and it is left as it is",
            where=str(file),
            remedy="name another file, or remove this one"
            if file.is_file()
            else "name a file in it",
        )
    if not file.absolute().parent.is_dir():
        raise UserError(
            "there is no such folder", where=str(file.parent), remedy=f"mkdir -p {file.parent}"
        )
    typer.echo(f"reading {model} and {prompts}", err=True)
    from launch.starter import Wishes, write_campaign

    rewards = tuple(reward or ())
    if not rewards and prompts.startswith("demo://"):
        rewards = ("exact_match",)
    wishes = Wishes(
        model=model,
        source=prompts,
        rewards=rewards,
        algorithm=algorithm or ("grpo" if rewards else "dpo"),
        heldout=heldout,
        store=store,
    )
    for line in write_campaign(file, wishes):
        typer.echo(line)
    shown = os.path.relpath(file)
    typer.echo(f"{shown}: written; next: keel plan {shown}, then keel run {shown}")
