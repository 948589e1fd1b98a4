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
    backend: Annotated[
        str | None,
        typer.Option(help="What samples: vllm, or transformers for a model that vLLM refuses."),
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

    default = ("exact_match",) if prompts.startswith("demo://") else ()
    rewards = tuple(reward or default)
    wishes = Wishes(
        model=model,
        source=prompts,
        rewards=rewards,
        algorithm=algorithm or ("grpo" if rewards else "dpo"),
        heldout=heldout,
        store=store,
        backend=backend,
    )
    for line in write_campaign(file, wishes):
        typer.echo(line)
    typer.echo("{0}: written; next: keel plan {0}, then keel run {0}".format(os.path.relpath(file)))
