"""``keel report`` and ``keel export``: a campaign to read, a snapshot to hand on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from launch.arguments import CampaignPath, Overrides, load


def add_commands(app: typer.Typer) -> None:
    """Make these commands part of ``keel``."""
    app.command()(report)
    app.command()(export)


def report(
    campaign: CampaignPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve it on this machine instead, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="With --watch: where to listen; 0 takes any.", min=0, max=65535)
    ] = 8377,
    every: Annotated[
        int, typer.Option(help="With --watch: seconds until a browser loads it again.", min=1)
    ] = 15,
) -> None:
    """Write everything about a campaign as one HTML page that opens anywhere, also offline."""
    config = load(campaign, overrides).config
    if watch:
        from align.report.html.serve import LivePage, server

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with server(LivePage(config, every), port, every) as running:
            try:
                typer.echo(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C ends it)")
                running.serve_forever()
            except KeyboardInterrupt:
                typer.echo("stopped")
        return
    from align.gate.evidence import stored_evidence
    from align.report.html import render
    from align.store.durable import write_atomic

    page = render(stored_evidence(config)).encode("utf-8", "replace")
    write_atomic(out, page)
    typer.echo(f"{out}: {len(page) / 1e6:.2f} MB")


def export(
    campaign: CampaignPath,
    snapshot: Annotated[
        str, typer.Argument(help="production, base, a round, or the beginning of a snapshot's id.")
    ],
    to: Annotated[Path, typer.Option(help="A new folder.")],
    overrides: Overrides = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base: a whole model.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what the gate did not accept; the card says so.")
    ] = False,
) -> None:
    """Write a snapshot as an ordinary Hugging Face folder, with a model card made from the ledger."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.report.export.export import export as write

    written = write(stored_evidence(config), snapshot, to, merge=merge, force=force)
    typer.echo(f"{to}: snapshot {written.id[:16]}, its card is README.md")
    if written.kind == "adapter" and not merge:
        base = config.policy.model
        typer.echo(
            f"  an adapter: load it over its base, {base}, or export a whole model with --merge"
        )
    if written.kind == "bank":
        typer.echo(
            f"  a bank: each folder of adapters/ is a peft adapter over {config.policy.model}"
        )
