"""``keel report``, ``keel compare`` and ``keel export``: campaigns to read, a snapshot to hand on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, ShownRounds, load, print_json

if TYPE_CHECKING:
    from align.report.compare import SeedSpread
    from align.report.summary_numbers import Form

Campaigns = Annotated[
    list[Path], typer.Argument(help="Campaign files (YAML).", metavar="CAMPAIGN...")
]


def add_commands(app: typer.Typer) -> None:
    """Make these commands part of ``keel``."""
    app.command()(report)
    app.command()(compare)
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
    rounds: ShownRounds = None,
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
    from align.report.records.window import SHOWN_ON_PAGE, window_of
    from align.store.durable import write_atomic

    evidence = stored_evidence(config)
    window = window_of(evidence, rounds, SHOWN_ON_PAGE)
    page = render(evidence, window=window).encode("utf-8", "replace")
    write_atomic(out, page)
    typer.echo(f"{out}: {len(page) / 1e6:.2f} MB")
    if window.sentence:
        typer.echo(window.sentence)


def compare(campaigns: Campaigns, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show campaigns side by side: production on every suite; mean and spread over seeds."""
    from align.gate.evidence import stored_evidence
    from align.report.compare import compare as compared

    comparison = compared([(str(p), stored_evidence(load(p, overrides).config)) for p in campaigns])
    if as_json:
        print_json(comparison)
        return
    for name, answer in comparison.answers.items():
        for sentence in answer.sentences:
            typer.echo(f"{name}: {sentence}")
    from rich.table import Table
    from rich.text import Text

    from align.report.summary_numbers import SUMMARY
    from align.report.tables import report_console

    table = Table(title="Production of every campaign", title_justify="left")
    summary = [
        name
        for name in comparison.groups[0].summary
        if any(group.summary[name] is not None for group in comparison.groups)
    ]
    for number, column in enumerate(
        ("campaign", "seeds", "accepted", *comparison.suites, *summary)
    ):
        table.add_column(column, justify="left" if number == 0 else "right")
    table.add_row(
        *map(Text, ["base", "", "", *(_cell(comparison.base[s]) for s in comparison.suites)])
    )
    for group in comparison.groups:
        rounds = f"{group.accepted.mean:g} of {group.accepted.mean + group.rejected.mean:g}"
        cells = [", ".join(group.campaigns), ", ".join(map(str, group.seeds)), rounds]
        cells += [_cell(group.scores[suite]) for suite in comparison.suites]
        cells += [_cell(group.summary[name], SUMMARY[name].form) for name in summary]
        table.add_row(*map(Text, cells))
    report_console().print(table)


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


def _cell(value: SeedSpread | None, form: Form | None = None) -> str:
    """Write a mean as its form asks, with its spread to as many digits; scores of suites have no sign."""
    from align.report.summary_numbers import FORMS

    if value is None:
        return ""
    mean = "{:.3f}" if form is None else FORMS[form]
    spread = "" if value.spread is None else f" ± {mean.replace('+', '').format(value.spread)}"
    return f"{mean.format(value.mean)}{spread}"
