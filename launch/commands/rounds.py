"""``keel rounds``: every round of a campaign, one of them, or two side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, ShownRounds, load, print_json

if TYPE_CHECKING:
    from align.gate.evidence import Evidence
    from align.report.records.history import Metric, RoundDetail

RoundName = Annotated[str, typer.Argument(metavar="ROUND", help="Name of a round.")]

rounds_app = typer.Typer(help="Look at the rounds of a campaign.", no_args_is_help=True)


@rounds_app.command("list")
def rounds_list(
    campaign: CampaignPath,
    overrides: Overrides = None,
    rounds: ShownRounds = None,
    as_json: AsJson = False,
) -> None:
    """Show rounds: state, verdict, parent, candidate, times."""
    evidence = _evidence(campaign, overrides)
    from align.report.records.history import entries
    from align.report.records.window import window_of

    window = window_of(evidence, rounds)
    rows = entries(evidence, window)
    if as_json:
        print_json(rows)
        return
    columns = ["round", "state", "verdict", "attempt", "parent", "candidate", "started", "seconds"]
    cells = [
        [
            entry.name,
            entry.state,
            (entry.verdict or "").replace("_", " "),
            str(entry.attempt or ""),
            (entry.parent or "")[:12],
            (entry.candidate or "")[:12],
            (entry.started or "")[:19],
            "" if entry.seconds is None else f"{entry.seconds:.0f}",
        ]
        for entry in rows
    ]
    _print("Rounds", columns, cells)
    for entry in rows:
        if entry.skipped:
            typer.echo(entry.skipped)
    if window.sentence:
        typer.echo(window.sentence)


@rounds_app.command("show")
def rounds_show(
    campaign: CampaignPath,
    round_name: RoundName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show one round: what its steps measured, reward by parts, drift, tokens, and the verdict."""
    evidence = _evidence(campaign, overrides)
    from align.report.records.history import detail
    from align.report.records.wall_time import wall_time_of
    from align.report.status import scores_of

    record, time = detail(evidence, round_name), wall_time_of(evidence, round_name)
    if as_json:
        from dataclasses import asdict

        scores = {
            "scores": scores_of(evidence, record.entry.candidate),
            "parent_scores": scores_of(evidence, record.entry.parent),
        }
        print_json({**asdict(record), **scores, "wall_time": asdict(time)})
        return
    for line in _detail_lines(record):
        typer.echo(line)
    if time.sentence:
        typer.echo(f"  wall time {time.sentence}")
    if record.changed:
        columns = ["suite", "items", "lost (1->0)", "won (0->1)"]
        whole = {
            c.suite: max(o.n for o in record.changed if o.suite == c.suite) for c in record.changed
        }
        rows = [
            [
                c.suite if c.n == whole[c.suite] else f"{c.suite}, what no round overrides",
                str(c.n),
                f"{c.lost} ({c.lost_share:.1%})",
                f"{c.won} ({c.won_share:.1%})",
            ]
            for c in record.changed
        ]
        _print("Items against the parent", columns, rows)
    families = {"Reward and its parts": "reward/", "Drift, nats per token": "drift/"}
    for title, prefix in families.items():
        _metrics(title, record.named(prefix))
    shown = {metric.name for prefix in families.values() for metric in record.named(prefix)}
    _metrics("Metrics", tuple(m for m in record.metrics if m.name not in shown))


@rounds_app.command("documents")
def rounds_documents(
    campaign: CampaignPath,
    round_name: Annotated[
        str, typer.Argument(metavar="ROUND", help="A round, production, or a snapshot's id.")
    ] = "production",
    query: Annotated[
        str | None, typer.Option("--query", help="Show what this question is read behind.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most documents to show.")] = 20,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show the documents that a round's policy reads, or those that it finds for a question."""
    evidence = _evidence(campaign, overrides)
    from align.report.documents import documents_of

    shown = documents_of(evidence, round_name, query=query, limit=limit)
    if as_json:
        print_json(shown)
        return
    typer.echo(f"index {shown.index[:12]} of {shown.total} documents, of {shown.snapshot[:16]}")
    rows = [[document.key, document.round, document.text] for document in shown.documents]
    if rows:
        _print("Documents", ["key", "round", "text"], rows)
    elif query is not None:
        typer.echo("no document fits the question")


@rounds_app.command("diff")
def rounds_diff(
    campaign: CampaignPath,
    round_name: RoundName,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Name of another round.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show in which settings and scores two rounds differ."""
    evidence = _evidence(campaign, overrides)
    from align.report.records.history import diff

    difference = diff(evidence, round_name, other)
    if as_json:
        print_json(difference)
        return
    settings = [[c.key, _word(c.first), _word(c.second)] for c in difference.config]
    _print("Settings that differ", ["setting", round_name, other], settings)
    scores = [
        [s.suite, _number(s.first), _number(s.second), _number(s.difference)]
        for s in difference.scores
    ]
    _print("Scores of the candidates", ["suite", round_name, other, "difference"], scores)


@rounds_app.command("drop")
def rounds_drop(
    campaign: CampaignPath,
    round_name: RoundName,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Give up a round that has no verdict: failed, interrupted or planned. Its attempts stay on record."""
    from align.store.changes.amend import drop

    done = drop(load(campaign, overrides).config, round_name, reason=reason)
    if as_json:
        print_json(done)
        return
    typer.echo(done.sentence)
    typer.echo("it is not run again; give it another name in the campaign file to run it after all")


def _evidence(campaign: CampaignPath, overrides: list[str] | None) -> Evidence:
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence

    return stored_evidence(config)


def _detail_lines(record: RoundDetail) -> list[str]:
    entry = record.entry
    lines = [f"{entry.name}: {entry.state}, attempt {entry.attempt}, {record.steps} steps"]
    if entry.seconds is not None:
        lines.append(f"  {entry.started} to {entry.ended}, {entry.seconds:.0f} s")
    if record.tokens:
        parts = ", ".join(f"{count:,} {source}" for source, count in record.tokens.items())
        lines.append(f"  tokens learnt from: {parts}")
    if (spent := record.spent) is not None:
        splits = {
            "rollouts": spent.rollouts,
            "tokens": spent.tokens,
            "seconds of updates": spent.seconds,
        }
        lines += [
            f"  {name}: {split.new:,.0f} for what is new, {split.retention:,.0f} for retention "
            f"({100 * split.share:.0f}%)"
            for name, split in splits.items()
            if split.share is not None
        ]
    if record.merge is not None:
        lines.append(f"  {record.merge.sentence}")
    if record.documents is not None:
        lines += [f"  {sentence}" for sentence in record.documents.lines]
    lines += [
        f"  {repair.sentence}" + ("" if repair.seconds is None else f", {repair.seconds:.0f} s")
        for repair in record.repairs
    ]
    lines += [f"  {reason}" for reason in record.reasons]
    return lines + [f"  noticed, {line}" for line in record.watch.remarks()]


def _metrics(title: str, metrics: tuple[Metric, ...]) -> None:
    rows = [
        [m.name, str(m.steps), _number(m.first), _number(m.last), _number(m.mean)] for m in metrics
    ]
    if rows:
        _print(title, ["metric", "steps", "first", "last", "mean"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _word(value: Any) -> str:
    return "" if value is None else str(value)


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from align.report.tables import report_console

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        # Names and values are a person's own: nothing in them is markup.
        table.add_row(*map(Text, row))
    report_console().print(table)
