"""``keel rollouts``: samples of a round's policy, with the rewards they got."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from align.round.rollout_table import Record

SHOWN = 240
"""Characters of a text in the table."""

rollouts_app = typer.Typer(help="Look at what a round sampled.", no_args_is_help=True)


@rollouts_app.callback()
def rollouts() -> None:
    """Look at what a round sampled."""


@rollouts_app.command("show")
def rollouts_show(
    campaign: CampaignPath,
    round_name: Annotated[str, typer.Argument(metavar="ROUND", help="Name of a round.")],
    step: Annotated[
        int | None, typer.Option(min=0, help="Learner step; without it, the last.")
    ] = None,
    repair: Annotated[
        str, typer.Option(metavar="LABEL", help="A repair of the round instead, such as distil.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 5,
    by: Annotated[
        str, typer.Option(help="reward, length, advantage, or a part of the rubric.")
    ] = "reward",
    worst: Annotated[bool, typer.Option(help="Show the smallest.")] = False,
    full: Annotated[bool, typer.Option(help="Do not cut texts.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show the samples of a step with the largest or smallest reward, length or part."""
    config = load(campaign, overrides).config
    from align.report.tables import report_console
    from align.round.rollout_table import find_table, load_records, ordered, repairs_with_tables

    number, path = find_table(config, round_name, step, repair)
    others = repairs_with_tables(config, round_name)
    records = load_records(path)
    samples = ordered(records, by, worst=worst)[:top]
    if as_json:
        for sample in samples:
            if sample.get("episode"):
                sample["episode"] = json.loads(sample["episode"])
        heading = {"round": round_name, "repair": repair or None, "repairs": others}
        print_json({**heading, "step": number, "samples": samples})
        return
    states = ", ".join(f"{n} {state}" for state, n in Counter(r["status"] for r in records).items())
    which = f"{round_name}, {repair}" if repair else round_name
    typer.echo(f"{which}, step {number}: {len(records)} samples, {states}")
    if others and not repair:
        typer.echo(f"its repairs sampled too: --repair {' or '.join(others)}")
    limit = None if full else SHOWN
    report_console().print(_table(samples, limit))
    for sample in samples:
        if sample.get("episode"):
            typer.echo("\n" + "\n".join(_episode(sample, limit)))


def _episode(record: Record, limit: int | None) -> list[str]:
    """Format an episode: one line on it, then its turns."""
    from align.gate.summary import counted
    from align.report.episodes import episode_lines

    calls = counted(record["calls"], "call")
    if record["failed_calls"]:
        calls += f", {record['failed_calls']} failed"
    value = record["status"] if record["value"] is None else f"reward {_number(record['value'])}"
    name = f"group {record['group']}, sample {record['sample']}"
    heading = f"{name}: {value}, {counted(record['turns'], 'turn')}, {calls}"
    return [heading, *(f"  {line}" for line in episode_lines(record["episode"], limit))]


def _table(records: list[Record], limit: int | None) -> Table:
    """Format records as rows; what model and rewards wrote is text, never markup or a control sequence."""
    from rich.table import Table
    from rich.text import Text

    from align.report.before_after import prompt_words
    from align.report.printable import printable

    table = Table(show_lines=True)
    parts = [name for name in records[0] if name.startswith("reward/")]
    numbers = ("reward", *(name.partition("/")[2] for name in parts), "advantage", "tokens")
    for name in numbers:
        table.add_column(Text(name), justify="right")
    for name in ("from", "prompt", "completion"):
        table.add_column(name, overflow="fold")
    for record in records:
        answer = printable(record["completion"], limit)
        if record.get("episode"):
            answer = f"(turn {record['turns']}) {answer}"
        if record["detail"]:
            answer += f"\n[{printable(record['detail'], SHOWN)}]"
        source, of_round = record["source"], record["round"]
        cells = [
            record["status"] if record["value"] is None else _number(record["value"]),
            *(_number(record[name]) for name in parts),
            _number(record["advantage"]),
            f"{record['tokens']}" + (" (cut)" if record["finish"] == "length" else ""),
            source if of_round is None else f"{source} {of_round}",
            printable(prompt_words(record["prompt"]), limit),
            answer,
        ]
        table.add_row(*map(Text, cells))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
