"""A judgement on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.judge.formats.rows import COLUMNS, passed_line, rows_of
from align.judge.judgement import Judgement
from align.report.printable import printable

STYLES = {"passed": "green", "regressed": "red", "not_improved": "red"}
"""Colours by outcome of a check; all others are yellow."""


def print_judgement(judgement: Judgement, console: Console) -> None:
    """Print the verdict, the table of its checks, and the reasons."""
    table = Table()
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number in (0, len(COLUMNS) - 1) else "right")
    for row in rows_of(judgement):
        style = STYLES.get(row.outcome, "yellow") if row.decides else "dim"
        *cells, outcome = map(printable, row.cells)
        table.add_row(*map(Text, cells), Text(outcome, style=style))
    accepted = judgement.verdict.accepted
    console.print(
        Text(printable(judgement.headline), style="bold green" if accepted else "bold red")
    )
    console.print(table)
    lines = (passed_line(judgement), *judgement.figures, judgement.level, *judgement.reasons)
    for line in lines:
        if line:
            console.print(Text(printable(line)), soft_wrap=True)
