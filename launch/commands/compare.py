"""``keel compare``: results of several campaigns, suite by suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, Overrides, load, print_json

if TYPE_CHECKING:
    from align.report.compare import SeedSpread
    from align.report.summary_numbers import Form

Campaigns = Annotated[
    list[Path], typer.Argument(help="Campaign files (YAML).", metavar="CAMPAIGN...")
]


def add_commands(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command("compare")(compare)


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


def _cell(value: SeedSpread | None, form: Form | None = None) -> str:
    """Write a mean as its form asks, with its spread to as many digits; scores of suites have no sign."""
    from align.report.summary_numbers import FORMS

    if value is None:
        return ""
    mean = "{:.3f}" if form is None else FORMS[form]
    spread = "" if value.spread is None else f" ± {mean.replace('+', '').format(value.spread)}"
    return f"{mean.format(value.mean)}{spread}"
