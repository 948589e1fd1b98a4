"""``keel backup`` and ``keel restore``: a consistent copy of a store, and its ledger back from one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json


def add_commands(app: typer.Typer) -> None:
    """Make these commands part of ``keel``."""
    app.command()(backup)
    app.command()(restore)


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
