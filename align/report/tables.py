"""The end of a run on one screen: matrix, metrics, verdicts with reasons, and where everything lies."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from align.data.retrieval.record import index_of_report
from align.gate.evidence import Evidence
from align.gate.forgetting import (
    ON_FEWER,
    ON_FEWER_WORDS,
    PathMetrics,
    PathScores,
    ScoreMatrix,
)
from align.gate.measurement.scores import ScoreRows, score_rows
from align.gate.sealed import openings
from align.gate.verdict import Verdict
from align.report.before_after import answer_lines
from align.report.explanation.answer import answer_of
from align.report.families import by_family, families_of, passed_lines, path_by_family
from align.report.learning_cost import Learning, learning_of
from align.report.records.window import Window, window_of
from align.report.summary_numbers import SHARES, legend, shown, summary_numbers
from align.store.ledger.amendments import Amendment, amendments_of
from align.store.ledger.baseline import baseline_moves
from align.store.ledger.lineage import by_hand
from align.store.paths import StorePaths
from align.store.store import ledger_place

SQUARE = 16
"""Rounds whose suites are columns; of more, each is measured on its own suite and on few others."""
WIDTH = 140
"""Columns where there is no terminal to ask."""
STYLES = {
    "accepted": "green",
    "rejected": "red",
    "too_few_items": "yellow",
    "void": "yellow",
    "failed": "red",
}


def campaign_report(evidence: Evidence, folder: Path, window: Window | None = None) -> Group:
    """Compose what a newcomer wants to know after a run.

    Args:
        window: rounds to show; None: the newest.
    """
    window = window or window_of(evidence, None)
    families = families_of(evidence.config)
    shown, path = score_rows(evidence, window), evidence.path_scores()
    is_long = len(shown.suites) - shown.shared > SQUARE
    parts = dict(by_family(shown.matrix(shown.shared if is_long else None), families))
    sums = path_by_family(path, families)
    learning = learning_of(evidence, window)
    tables: list[RenderableType] = []
    for family, scores in sums.items():
        label = family if len(sums) > 1 else ""
        if is_long:
            rounds = {
                n for n in shown.suites[shown.shared :] if families.get(n, "general") == family
            }
            tables.append(rounds_table(shown, parts.get(family), rounds, path, label))
        elif family in parts:
            tables.append(matrix_table(parts[family], label))
        tables.append(metrics_lines(scores, learning))
    tables += [
        Text(f"references: there is no campaign to be read in {store}\n")
        for store in learning.missing
    ]
    return Group(
        *answer_first(evidence, window), *window_lines(window), *tables,
        *verdict_lines(evidence, window), *sealed_lines(evidence),
        *baseline_lines(evidence), *answer_lines(evidence), places(evidence, folder),
    )  # fmt: skip


def window_lines(window: Window) -> Iterator[Text]:
    """Say which rounds are shown, if not all are."""
    if not window.whole:
        yield Text(
            f"{window.sentence}; sums are over all rounds, N80 and its kin over those shown\n"
        )


def answer_first(evidence: Evidence, window: Window) -> Iterator[Text]:
    """Yield what is production, and what was refused and why, a line each."""
    first, *others = answer_of(evidence, window).sentences
    yield Text(first, style="bold")
    yield from map(Text, others)
    yield Text("")


def matrix_table(matrix: ScoreMatrix, family: str = "") -> Table:
    """Make a table of snapshots, in order, and suites. An empty cell was never measured."""
    which = f"{family} suite" if family else "suite"
    table = Table(title=f"Score of every snapshot on every {which}", title_justify="left")
    _add_scores(table, matrix, {})
    return table


def rounds_table(
    shown: ScoreRows,
    shared: ScoreMatrix | None,
    rounds: Container[str],
    path: PathScores,
    family: str,
) -> Table:
    """Make a table of many rounds: each on the suites that all share, and on its own then and now.

    Args:
        shared: scores on the suites of the family that belong to no round; None: there are none.
        rounds: those whose own suites are of the family.
        path: scores on the whole path, whose last row is production's.
    """
    which = f"{family} suites" if family else "suites"
    title = f"Score of every snapshot on shared {which} and on its round's own, then and now"
    table = Table(title=title, title_justify="left")
    then = {
        r.name: r.scores[r.name][3] for r in shown.rows if r.name in rounds and r.name in r.scores
    }
    final = path.final
    now = {name: final[name] for name in then if name in final}
    columns = {"its own suite": then, "production on it": now}
    _add_scores(table, shared or shown.matrix(0), columns)
    return table


def _add_scores(
    table: Table, matrix: ScoreMatrix, further: Mapping[str, Mapping[str, float]]
) -> None:
    """Add the rows of a matrix, and further columns by their titles."""
    table.add_column("after round")
    for column in (*matrix.suites, *further):
        table.add_column(column, justify="right")
    for row in matrix.rows:
        label = row.name if row.accepted else f"{row.name} (rejected)"
        cells = [
            "" if score is None else f"{score:.3f}{ON_FEWER if fewer else ''}"
            for score, fewer in zip(row.scores, matrix.on_fewer(row), strict=True)
        ]
        values = [column.get(row.name) for column in further.values()]
        cells += ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(label, *cells, style=None if row.accepted else "dim")
    if any(any(matrix.on_fewer(row)) for row in matrix.rows):
        table.caption, table.caption_justify = f"{ON_FEWER} {ON_FEWER_WORDS}", "left"


def metrics_lines(matrix: PathMetrics, learning: Learning) -> Text:
    """Write the summary numbers of continual learning over the accepted rounds, and what they mean."""
    numbers = summary_numbers(matrix, learning).items()
    values = {name: value for name, value in numbers if value is not None}
    if not values:
        return Text("")
    mark = ON_FEWER if matrix.uneven else ""
    marks = {name: "" if name in SHARES else mark for name in values}
    text = Text("   ".join(f"{name} {shown(name, values[name])}{marks[name]}" for name in values))
    return text.append(f"\n{legend(values)}\n", style="dim")


def verdict_lines(evidence: Evidence, window: Window) -> Iterator[RenderableType]:
    """Yield one block per committed round: the outcome, the target, and what held or was lost.

    Amendments of the campaign stand before the first verdict that came after them.
    """
    entries = amendments_of(evidence.ledger)
    decided = evidence.committed()
    for number, record in enumerate(decided):
        if record.index not in window:
            continue
        yield from (_amended(entry) for entry in entries if entry.decisions == number)
        verdict = Verdict.to_show(record.report or {})
        head = Text(f"{record.name}: ")
        head.append(outcome_of(verdict), style=STYLES[verdict.outcome])
        yield head
        documents = index_of_report(record.report)
        for line in (*summary(verdict), *(documents.lines if documents else ())):
            yield Text(f"  {line}")

    if window.ends:
        yield from (_amended(entry) for entry in entries if entry.decisions >= len(decided))


def _amended(entry: Amendment) -> Text:
    return Text(entry.sentence, style="yellow")


def sealed_lines(evidence: Evidence) -> Iterator[Text]:
    """Yield the openings of sealed suites, and the moves of production that people made."""
    for opening in openings(evidence):
        yield Text(opening.sentence, style="red" if opening.outcome == "lost" else "")
    names = {record.candidate: record.name for record in evidence.committed()}
    for move in by_hand(evidence.ledger):
        yield Text(f"production moved by hand to {names.get(move.target)!r}: {move.reason}")


def baseline_lines(evidence: Evidence) -> Iterator[Text]:
    """Yield the moves of the baseline that people made."""
    for move in baseline_moves(evidence.ledger):
        yield Text(
            f"budgets count from {move.snapshot[:16]} since {move.time[:10]}: {move.reason}",
            style="yellow",
        )


def outcome_of(verdict: Verdict) -> str:
    """Spell the outcome; an observing gate accepts what it would have refused, and says so."""
    words = verdict.outcome.replace("_", " ")
    observed = verdict.accepted and verdict.outcome != "accepted"
    return f"accepted by an observing gate (would be: {words})" if observed else words


def summary(verdict: Verdict) -> Iterator[str]:
    """Yield the target's sentence, the first failed check of every other suite, and how many passed."""
    yield from (check.sentence for check in verdict.checks if check.role == "target")
    others = [check for check in verdict.checks if check.role == "retention"]
    failed = {check.suite: check for check in reversed(others) if check.outcome != "passed"}
    yield from (check.sentence for check in reversed(failed.values()))
    yield from passed_lines(others)


def places(evidence: Evidence, folder: Path) -> Text:
    """Show where the snapshot in production and the records lie."""
    paths = StorePaths(folder)
    production = evidence.ledger.alias("production") or evidence.base
    far = f"store       {evidence.config.store}\n" if evidence.config.is_remote else ""
    return Text(
        f"\n{far}production  {paths.snapshot(production)}\n"
        f"ledger      {ledger_place(evidence.config)}\n"
        f"metrics     {paths.rounds}/<round>/attempt-<n>/metrics.jsonl\n"
        f"items       {paths.evaluation('<snapshot>', '<suite>.parquet')}",
        no_wrap=True,
    )


def report_console() -> Console:
    """Open standard output; a pipe or a log file gets lines wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_report(
    evidence: Evidence, folder: Path, console: Console, window: Window | None = None
) -> None:
    """Print `campaign_report`."""
    console.print(campaign_report(evidence, folder, window))
