"""``keel judge``: the gate's verdict on any model against any other, without a campaign."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import Address, AsJson, Insecure, Overrides, announce, print_json

if TYPE_CHECKING:
    from align.judge.judge import JudgeCase
    from align.judge.judgement import Judgement
    from align.round.session import Observer, StartEngine

NOT_MEASURED = 4
"""Exit code where a model could not be measured, so that there is no verdict."""

Candidate = Annotated[
    str,
    typer.Argument(
        help="Folder of a model or adapter, hub id (ID@COMMIT), STORE#ROUND, or http://HOST/v1#MODEL.",
    ),
]
Against = Annotated[str, typer.Option(help="The model to hold it against, named likewise.")]
SuitesPath = Annotated[
    Path,
    typer.Option(
        "--suites",
        help="A file with suites: and gate:, or a campaign file (YAML).",
        callback=announce,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="Suite on which the candidate has to be better, not just as good."),
]
Base = Annotated[
    str | None, typer.Option(help="Base of an adapter, in place of the one that it names.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Folder with the tokenizer of an endpoint's model, for suites that score texts."
    ),
]
KeyVariable = Annotated[
    str | None,
    typer.Option(help="Environment variable with the API key of the candidate's endpoint."),
]
OtherKeyVariable = Annotated[
    str | None, typer.Option(help="The same of the endpoint of --against; keys are never shared.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of measurements to reuse; without it, keel/judge in the user's cache."
    ),
]
Markdown = Annotated[Path | None, typer.Option(help="Also write the judgement as Markdown.")]
JUnit = Annotated[Path | None, typer.Option(help="Also write it as JUnit's XML.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, say what the suites can tell, and stop."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command("judge")(judge)


def judge(
    candidate: Candidate,
    against: Against,
    suites: SuitesPath,
    target: Target = None,
    base: Base = None,
    tokenizer: Tokenizer = None,
    api_key_env: KeyVariable = None,
    against_api_key_env: OtherKeyVariable = None,
    overrides: Overrides = None,
    cache: Cache = None,
    markdown: Markdown = None,
    junit: JUnit = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    address: Address = None,
    insecure_cluster: Insecure = False,
) -> None:
    """Judge a model against another: exit 0 accepted, 1 rejected, 3 too few items, 2 wrong input."""
    _check_writable("--markdown", markdown)
    _check_writable("--junit", junit)
    from rich.console import Console

    from align.judge.cache import default_root
    from align.judge.judge import opened_case
    from align.judge.models import Named, open_model
    from align.judge.suites_file import load_suites_file
    from align.report.forecast.machine import runs_here
    from align.report.progress import LiveProgress
    from launch.cluster.engines import engine_starter

    file, remarks = load_suites_file(suites, overrides or ())
    names = (
        (candidate, "CANDIDATE", api_key_env),
        (against, "--against", against_api_key_env),
    )
    judged, incumbent = (
        open_model(
            Named(
                name=name, where=where, file=file, base=base, tokenizer=tokenizer, api_key_env=key
            )
        )
        for name, where, key in names
    )
    if runs_here(address):
        judged.check_machine()
        incumbent.check_machine()
    root = cache or default_root()
    with opened_case(file, judged, incumbent, root=root, target=target) as case:
        _say(case, remarks, dry_run=dry_run)
        if dry_run:
            return
        with (
            LiveProgress(Console(stderr=True)) as progress,
            engine_starter(address, progress, insecure=insecure_cluster) as start_engine,
        ):
            judgement = _judged(case, start_engine, progress)
    _show(judgement, markdown, junit, as_json=as_json)
    raise typer.Exit(judgement.exit_code)


def _say(case: JudgeCase, remarks: Sequence[str], *, dry_run: bool) -> None:
    """Print remarks, and what the suites can tell: to standard output where that is all."""
    from align.judge.judge import power_warnings

    for line in (*remarks, *case.notes):
        typer.echo(f"note: {line}", err=True)
    for line in (*case.power_lines(), *power_warnings(case)):
        typer.echo(line, err=not dry_run)


def _judged(case: JudgeCase, start_engine: StartEngine, observer: Observer) -> Judgement:
    """Judge; a failure on the way has an exit code of its own, since 1 is a verdict."""
    from align.judge.judge import judge as judged
    from rollouts.errors import RunError

    try:
        return judged(case, start_engine=start_engine, observer=observer)
    except RunError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(NOT_MEASURED) from error


def _show(
    judgement: Judgement, markdown: Path | None, junit: Path | None, *, as_json: bool
) -> None:
    """Write the files that were asked for, then print the judgement."""
    from align.judge.formats.junit import junit_of
    from align.judge.formats.markdown import markdown_of
    from align.store.durable import write_atomic

    for path, text in ((markdown, markdown_of), (junit, junit_of)):
        if path is not None:
            write_atomic(path, text(judgement).encode())
    if as_json:
        print_json(judgement.to_dict())
        return
    from align.judge.formats.screen import print_judgement
    from align.report.tables import report_console

    print_judgement(judgement, report_console())


def _check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written in the end."""
    if path is None:
        return
    from rollouts.errors import UserError

    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder", where=option, remedy="name a file in it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UserError(
            f"{str(path)!r} cannot be written: {str(path.parent)!r} is no folder that can be written to",
            where=option,
            remedy="make the folder first, or name another file",
        )
