"""``keel feedback``: put pairs and ratings into the inbox, look at it, and take requests for it."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json, print_line
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.schedule.inbox.inbox import Inbox
    from align.store.ledger.ledger import Ledger

Stream = Annotated[
    str | None, typer.Option(help="Name of a stream; not needed where there is only one.")
]
UserColumn = Annotated[str, typer.Option(help="Column with the key of who sent a row.")]
SHOWN = 20

feedback_app = typer.Typer(help="Preferences that arrive from outside.", no_args_is_help=True)


@feedback_app.command("add")
def feedback_add(
    campaign: CampaignPath,
    file: Annotated[Path, typer.Argument(help="Rows: .jsonl, .json, .csv or .parquet.")],
    stream: Stream = None,
    user_column: UserColumn = "user",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Store a file's rows, all or none; what no round could use is quarantined with its reason."""
    config = load(campaign, overrides).config
    from align.schedule.inbox.drop import add_file
    from align.schedule.inbox.rows import form_of, stream_forms

    form = form_of(stream_forms(config), stream)
    intake = add_file(_inbox(config), form, file, user_column=user_column)
    if as_json:
        print_json(intake)
        return
    print_line(
        f"{intake.file}: {intake.stored} stored in inbox://{intake.stream}, "
        f"{intake.duplicates} known already, {intake.quarantined} quarantined, "
        f"{intake.conflicts} with a key of another row"
    )
    for row_label, reason in intake.reasons.items():
        print_line(f"  {row_label}: {reason}")


@feedback_app.command("sweep")
def feedback_sweep(
    campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Take what lies in the drop folder, as a round and the server do on their own."""
    config = load(campaign, overrides).config
    from align.schedule.inbox.drop import SETTLED_S, make_drop, sweep, waiting_files
    from align.schedule.inbox.rows import stream_forms
    from align.store.paths import StorePaths

    forms = stream_forms(config)
    inbox_folder = StorePaths(config.folder).inbox.folder
    drop = make_drop(inbox_folder, forms)
    intakes = sweep(inbox_folder, _inbox(config), forms)
    left = waiting_files(inbox_folder)
    if as_json:
        print_json(intakes)
        return
    for intake in intakes:
        print_line(
            f"{intake.file}: {intake.error or f'{intake.stored} stored, {intake.quarantined} aside'}"
        )
    print_line(f"{len(intakes)} files taken from {drop}")
    if left:
        print_line(
            f"{len(left)} left there: changed in the last {SETTLED_S:g} s, or not under a final name"
        )


@feedback_app.command("list")
def feedback_list(
    campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show every stream, what waits in it, and what each round took."""
    config = load(campaign, overrides).config
    from align.schedule.inbox.purge import purges

    ledger = _known_ledger(config)
    inbox = None if ledger is None else _of(ledger)
    counts = inbox.counts() if inbox else []
    reservations = inbox.reservations() if inbox else []
    removed = purges(ledger) if ledger else []
    if as_json:
        print_json({"streams": counts, "takes": reservations, "purges": removed})
        return
    for each in counts:
        print_line(
            f"inbox://{each.stream}: {each.waiting} waiting"
            f"{f' since {each.oldest_waiting[:19]}' if each.oldest_waiting else ''}, "
            f"{each.ready} usable, {each.quarantined} quarantined, last row {each.newest}"
        )
    for reserved in reservations:
        print_line(
            f"  round {reserved.round} {reserved.state} {reserved.num_rows} rows of {reserved.stream}, "
            f"{reserved.above + 1} to {reserved.newest}"
        )
    for act in removed:
        print_line(f"  purged {act.time[:19]}: {act.num_rows} rows of user {act.user_sha256[:12]}")
    if not counts:
        print_line("nothing has arrived yet")


@feedback_app.command("show")
def feedback_show(
    campaign: CampaignPath,
    number: Annotated[int | None, typer.Argument(help="Of a row; without it, the last.")] = None,
    stream: Stream = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the last rows.")] = SHOWN,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show rows with where they came from."""
    config = load(campaign, overrides).config
    name, inbox = _stream(config, stream), _known_inbox(config)
    rows = inbox.rows(name, newest=last) if number is None else [inbox.row(name, number)]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        state = row.state if row.reason is None else f"{row.state}: {row.reason}"
        print_line(f"{row.number} {row.kind or '?'} {row.received[:19]} {row.source} ({state})")
        text = dumps(row.payload, ensure_ascii=True)
        print_line(f"    {text if len(text) <= 160 else f'{text[:157]}...'}")


@feedback_app.command("quarantine")
def feedback_quarantine(
    campaign: CampaignPath,
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Rows to set aside; without, what is aside.")
    ] = None,
    stream: Stream = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the rows.")] = "set aside by hand",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Set rows aside for good, or show those that are and why."""
    config = load(campaign, overrides).config
    name, inbox = _stream(config, stream), _known_inbox(config)
    if numbers:
        changed = inbox.quarantine(name, numbers, reason)
        if as_json:
            print_json({"quarantined": changed})
        else:
            print_line(f"{changed} of {len(numbers)} rows set aside")
        return
    rows = inbox.rows(name, state="quarantined")
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_line(f"{row.number} {row.source}: {row.reason}")
    print_line(f"{len(rows)} rows are quarantined in inbox://{name}")


@feedback_app.command("purge")
def feedback_purge(
    campaign: CampaignPath,
    user: Annotated[str, typer.Option(help="Key of the person, as it came with the rows.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove all that a person sent, from files and replay buffers too, and write that down."""
    config = load(campaign, overrides).config
    from align.schedule.inbox.purge import purge
    from align.schedule.inbox.rows import stream_forms
    from align.store.store import open_store

    done = purge(open_store(config), stream_forms(config), user)
    if as_json:
        print_json(done)
        return
    print_line(
        f"{done.num_rows} rows, {done.num_replayed} replayed prompts and {done.num_rollouts} answers "
        "to them removed"
    )
    notes = {
        "rounds that have learnt from them, and keep it in their weights": done.rounds,
        "unfinished rounds that will start over": done.restarted,
        "files removed": done.files,
        "came from, and may still lie in": done.sources,
        "what may still hold something of them": done.remains,
    }
    for text, names in notes.items():
        if names:
            print_line(f"  {text}: {', '.join(names)}")


@feedback_app.command("serve")
def feedback_serve(
    campaign: CampaignPath,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8710,
    token_file: Annotated[
        Path | None, typer.Option(help="Made when it is not there; STORE/inbox/token.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Take feedback over HTTP until stopped; an answer means that the rows are on the disk."""
    config = load(campaign, overrides).config
    from launch.feedback.server import serve

    serve(
        config, host=host, port=port, token_file=token_file, say=lambda t: typer.echo(t, err=True)
    )


def _known_ledger(config: CampaignConfig) -> Ledger | None:
    """Open the ledger to look at; make none."""
    from align.store.store import known_ledger

    return known_ledger(config)


def _inbox(config: CampaignConfig) -> Inbox:
    """Open the inbox; make it if there is none."""
    from align.store.store import open_ledger

    return _of(open_ledger(config))


def _known_inbox(config: CampaignConfig) -> Inbox:
    """Open the inbox to look at; make none.

    Raises:
        UserError: there is none.
    """
    ledger = _known_ledger(config)
    if ledger is None:
        raise UserError(
            "nothing has arrived yet",
            where=str(config.folder),
            remedy="send pairs with keel feedback add, keel feedback serve or the drop folder",
        )
    return _of(ledger)


def _of(ledger: Ledger) -> Inbox:
    from align.schedule.inbox import Inbox

    return Inbox(ledger.database)


def _stream(config: CampaignConfig, stream: str | None) -> str:
    """Resolve a stream by name: one that rounds read, or one that has received something."""
    from align.schedule.inbox.rows import form_of, stream_forms

    try:
        return form_of(stream_forms(config), stream).stream
    except UserError:
        ledger = _known_ledger(config)
        arrived = _of(ledger).counts() if ledger else []
        if stream is not None and any(counts.stream == stream for counts in arrived):
            return stream
        raise
