"""``keel gc``, ``verify``, ``backup`` and ``restore``: a store that is kept for years."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.config.store import KeepConfig
    from align.upkeep.collect import Collection

Accepted = Annotated[
    str | None,
    typer.Option(
        "--accepted",
        metavar="N|all",
        help="Accepted snapshots of each template to keep besides those that are needed.",
    ),
]
Rejected = Annotated[
    str | None,
    typer.Option(
        "--rejected", metavar="N|all", help="Newest rounds whose other candidates are kept."
    ),
]
Apply = Annotated[bool, typer.Option("--apply", "--yes", help="Remove it; without this, show it.")]


def add_commands(app: typer.Typer) -> None:
    """Make these commands part of ``keel``."""
    app.command()(gc)
    app.command()(verify)
    app.command()(backup)
    app.command()(restore)


def gc(
    campaign: CampaignPath,
    overrides: Overrides = None,
    accepted: Accepted = None,
    rejected: Rejected = None,
    apply: Apply = False,
    as_json: AsJson = False,
) -> None:
    """Show what nothing in a store needs any more, and with --apply remove it; every verdict stays.

    Without keep in the campaign file that is what was rejected, repaired or left by a crash.
    """
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.store.backups.ledger_backups import back_up
    from align.upkeep.collect import BY_HAND, collect, pack_kept, plan_collection

    keep = _keep(config.keep if "keep" in config.model_fields_set else BY_HAND, accepted, rejected)
    evidence = stored_evidence(config)
    if apply:
        with evidence.ledger.lease("keel gc"):
            collection = collect(evidence, keep, alone=True, stated=config.rounds)
            if keep.snapshots == "delta":
                pack_kept(evidence)
            # An older backup would name snapshots that are gone.
            failure = back_up(config)
        if failure:
            typer.echo(failure, err=True)
    else:
        collection = plan_collection(evidence, keep, alone=False, stated=config.rounds)
    if as_json:
        print_json({"removed": apply, "bytes": collection.bytes, **_plain(collection)})
        return
    _show(collection)
    typer.echo(f"{'removed' if apply else 'would go'}: {collection.sentence}")
    if collection.garbage and not apply:
        typer.echo("nothing was removed; --apply removes it")


def verify(campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Compute every hash of a store again; exit 1 if a byte is not as it was written."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.upkeep.verify import verify as verify_store

    evidence = stored_evidence(config)
    with _progress(quiet=as_json) as tell:
        result = verify_store(evidence, tell)
    if as_json:
        print_json({"whole": result.whole, "result": result})
    else:
        for entry in result.unnamed:
            typer.echo(f"{entry.name}: {entry.reason}; nothing names it, and keel gc removes it")
        for fault in result.faults:
            typer.echo(fault.sentence)
        for name in result.not_recomputable:
            typer.echo(f"the verdict on {name} stands, and cannot be drawn again from stored items")
        if result.collected:
            typer.echo(f"{result.collected} snapshots were collected and are not looked for")
        if result.unhashed:
            typer.echo(f"{result.unhashed} files have no hash on record; keel run records them")
        typer.echo(result.sentence)
    if not result.whole:
        raise typer.Exit(1)


def backup(
    campaign: CampaignPath,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="FILE.db for the ledger alone, or a folder for the ledger and all that it names.",
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Copy a store as it is at one moment, also beside a run; exit 1 if something of it is missing."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.store.backups.ledger_backups import file_to_back_up
    from align.store.backups.whole import write_backup

    file = file_to_back_up(config)
    written = write_backup(stored_evidence(config).store, file, target)
    if as_json:
        print_json(written)
    else:
        for line in written.lines():
            typer.echo(line)
    if written.missing:
        raise typer.Exit(1)


def restore(
    campaign: CampaignPath,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE_OR_FOLDER",
            help="A backup; without it, the newest one that lies beside a lost ledger.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Bring back the ledger from a backup, keep what was there aside, and say what came after it."""
    config = load(campaign, overrides).config
    from align.store.backups.restore import restore_ledger

    restored = restore_ledger(config, source)
    if as_json:
        print_json(restored)
        return
    for line in restored.lines():
        typer.echo(line)


def _keep(stated: KeepConfig, accepted: str | None, rejected: str | None) -> KeepConfig:
    """Return what is kept, as the options say or else as the campaign does."""
    from align.config.store import KeepConfig

    values = stated.model_dump()
    for name, text in (("accepted", accepted), ("rejected", rejected)):
        if text is None:
            continue
        least = 1 if name == "accepted" else 0
        if text != "all" and not (text.isdecimal() and int(text) >= least):
            raise UserError(
                f"expected all or a whole number of at least {least}, got {text!r}",
                where=f"--{name}",
            )
        values[name] = text if text == "all" else int(text)
    return KeepConfig.model_validate(values)


def _plain(collection: Collection) -> dict[str, object]:
    return {"garbage": collection.garbage, "needed": collection.needed}


def _show(collection: Collection) -> None:
    """Print what goes, line by line of a table."""
    from rich.table import Table
    from rich.text import Text

    from align.report.tables import report_console

    if not collection.garbage:
        return
    table = Table(title="Nothing needs", title_justify="left")
    for column in ("what", "of round", "why", "MB"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for entry in collection.garbage:
        name = entry.name[:16] if entry.kind == "snapshot" else entry.name
        cells = (name, entry.round or "", entry.reason, f"{entry.bytes / 1e6:.2f}")
        table.add_row(*map(Text, cells))
    report_console().print(table)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Show on a terminal how far a command is; elsewhere say nothing."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("verifying"), MofNCompleteColumn(), TextColumn("{task.description}"))
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)

        def tell(name: str, total: int) -> None:
            progress.update(task, advance=1, total=total, description=name[:60])

        yield tell
