"""``keel plan`` and ``keel run --dry-run``: what a run would do and take. Nothing is started or written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from launch.commands.schedule import endless_lines
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.report.forecast.forecast import Forecast, RoundForecast
    from align.report.forecast.prediction import Prediction, RoundPrediction

SHOWN_OVER = 20
"""Newest rounds that are over, and are shown."""


def add_commands(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command("plan")(plan)


GpuOption = Annotated[
    str | None,
    typer.Option(help="Predict memory and time on GPUs of this kind instead, such as h100."),
]
DevicesOption = Annotated[
    Path | None, typer.Option(help="Predict them on devices that this YAML file describes.")
]


def plan(
    campaign: CampaignPath,
    overrides: Overrides = None,
    gpu: GpuOption = None,
    devices: DevicesOption = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Mean length of prompts in a prediction.")
    ] = 256,
    completion_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Mean length of completions in it.", show_default="sampling.max_tokens"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run now: rounds, sizes, memory, disk, processes; changes nothing.

    With --gpu or --devices: predict memory and time of every round on a cluster that need not be here. Of
    the model its config.json is enough.
    """
    config = load(campaign, overrides).config
    if gpu is None and devices is None:
        show_plan(config, as_json=as_json)
        return
    from align.report.forecast.devices import device_from, device_named
    from align.report.forecast.prediction import Texts, predict

    if gpu is not None and devices is not None:
        raise UserError(
            "both name the devices", where="--gpu, --devices", remedy="give one of them"
        )
    device = device_from(devices) if devices is not None else device_named(gpu or "")
    texts = Texts(prompt=prompt_tokens, completion=completion_tokens)
    show_prediction(predict(config, device, texts), as_json=as_json)


def show_prediction(prediction: Prediction, *, as_json: bool = False) -> None:
    """Print what a campaign would take on a cluster."""
    if as_json:
        from dataclasses import asdict

        rounds = [
            asdict(entry) | {"rank": asdict(entry.rank) | {"total": entry.rank.total}}
            for entry in prediction.rounds
        ]
        print_json(asdict(prediction) | {"rounds": rounds})
        return
    from rich.table import Table

    from align.report.tables import report_console

    table = Table(title=f"Predicted on {prediction.device}", title_justify="left")
    columns = ("round", "a rank", "an engine's device", "KV tokens", "sampling", "learning", "sync",
               "a step", "tokens/s/device", "steps", "all steps")  # fmt: skip
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for entry in prediction.rounds:
        table.add_row(*_predicted_cells(entry))
    report_console().print(table)
    typer.echo(
        f"model: {prediction.parameters / 1e9:.2f} billion parameters, {prediction.active / 1e9:.2f} "
        f"active; learner on {prediction.learner_devices} devices, engines on "
        f"{prediction.engine_devices}"
    )
    for entry in prediction.rounds:
        parts = ((name, getattr(entry.rank, name)) for name in entry.rank.__slots__)
        listing = ", ".join(f"{name} {size_text(size)}" for name, size in parts if size)
        typer.echo(f"{entry.name}: a rank has {listing}")
        for sentence in entry.misfits:
            typer.echo(f"{entry.name}: does not fit: {sentence}")
    typer.echo(
        "Libraries (about 1 GiB a device) and suites come on top; how near this is: "
        "docs/results/predictions.md"
    )


def _predicted_cells(entry: RoundPrediction) -> list[str]:
    seconds = (entry.sampling_s, entry.learning_s, entry.sync_s, entry.step_s)
    return [
        entry.name,
        size_text(entry.rank.total),
        size_text(entry.engine.weights),
        f"{entry.engine.cache_tokens:,}",
        *(f"{value:.3g} s" for value in seconds),
        f"{entry.tokens_per_s:,.0f}",
        f"{entry.steps:,}",
        f"{entry.round_s / 3600:.3g} h",
    ]


def show_plan(config: CampaignConfig, *, as_json: bool = False) -> None:
    """Print the forecast of a campaign."""
    from align.gate.power.underpowered import check_power
    from align.report.forecast.forecast import forecast
    from launch.cluster.preflight import demands_of

    plan_of_campaign = forecast(config)
    processes = [str(demand) for demand in demands_of(config, gpus=False)]
    if as_json:
        from dataclasses import asdict

        needed = {"needed": plan_of_campaign.disk.needed}
        print_json(
            asdict(plan_of_campaign)
            | {"disk": asdict(plan_of_campaign.disk) | needed, "processes": processes}
        )
    else:
        _print_rounds(plan_of_campaign)
        for line in _lines(config, plan_of_campaign, processes):
            typer.echo(line)
    if plan_of_campaign.to_run:
        for line in check_power(plan_of_campaign.gate, config.gate):
            typer.echo(line, err=as_json)


def _print_rounds(campaign_forecast: Forecast) -> None:
    from rich.table import Table
    from rich.text import Text

    from align.report.tables import report_console

    table = Table(title=f"What would run: {campaign_forecast.campaign}", title_justify="left")
    columns = ("round", "", "algorithm", "steps", "new", "past", "general", "completions", "tokens <=",
               "measured", "learner")  # fmt: skip
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 3 else "right")
    over = [forecast for forecast in campaign_forecast.rounds if forecast.memory is None]
    older = {forecast.name for forecast in over[:-SHOWN_OVER]}
    for forecast in campaign_forecast.rounds:
        if forecast.name not in older:
            table.add_row(*map(Text, _cells(forecast)))
    if older:
        table.caption = f"and {len(older):,} older rounds that are over; --json has them"
    report_console().print(table)


def _cells(forecast: RoundForecast) -> list[str]:
    """Format one round; one that is done has no steps, samples or memory to come."""
    if forecast.memory is None:
        return [forecast.name, forecast.state, forecast.algorithm, *[""] * 8]
    prompts = (forecast.new, forecast.past, forecast.general)
    sums = (forecast.completions, forecast.tokens, forecast.measured)
    return [
        forecast.name,
        f"resumes at {forecast.from_step}" if forecast.from_step else forecast.state,
        forecast.algorithm,
        str(forecast.steps),
        *(f"{round(count, 1):g}" for count in prompts),
        *(f"{count:,}" for count in sums),
        size_text(forecast.memory.total),
    ]


def _lines(config: CampaignConfig, planned: Forecast, processes: list[str]) -> Iterator[str]:
    from align.gate.power.underpowered import power_lines
    from align.report.forecast.check import notes_of

    left = planned.to_run
    if not left:
        none = "nothing is due now" if planned.waits else "all rounds have their verdict"
        yield f"nothing to run: {none}"
    for sentence in planned.amendments:
        yield f"would be written down as amended: {sentence}"
    for due in planned.claims:
        yield f"would be claimed by keel schedule tick: {due}"
    for waits in planned.waits:
        yield f"not due: {waits}"
    yield from endless_lines(config)
    yield from notes_of(config)
    yield from planned.machine
    yield from planned.merges
    yield from planned.replay
    for name, report in planned.reports.items():
        yield f"{name}: {report}"
    if not left:
        return
    memories = [forecast.memory for forecast in left if forecast.memory is not None]
    learner = max(memory.total for memory in memories)
    retention = max(memory.retention for memory in memories)
    engines = planned.engine * config.rollouts.engines
    policy = config.policy
    nodes = f" on {policy.nodes} nodes" if policy.nodes > 1 else ""
    where = f"{policy.ranks} ranks{nodes} with" if policy.ranks > 1 else "in the driver,"
    yield f"processes: {'; '.join(processes)}"
    yield (
        f"memory: learner {where} {size_text(learner)}"
        f"{f' ({size_text(retention)} of it for retention)' if retention else ''}, engines "
        f"{config.rollouts.engines} x {size_text(planned.engine)} on CPUs; activations and libraries are "
        f"not counted; {size_text(planned.available)} available here"
    )
    if learner * policy.ranks_together + engines > planned.available:
        yield "  more than is available here: lower rollouts.engines, use policy.lora, or a cluster"
    disk = planned.disk
    yield (
        f"disk: up to {size_text(disk.needed)} more in {planned.store} (base {size_text(disk.base)}, "
        f"snapshots {size_text(disk.snapshots)}, checkpoint {size_text(disk.checkpoint)}"
        f"{f', retention {size_text(disk.artifacts)}' if disk.artifacts else ''}); "
        f"{size_text(disk.free)} free"
    )
    if disk.needed > disk.free:
        yield "  more than is free: set store to another disk"
    yield from power_lines(planned.gate)


def size_text(size: int) -> str:
    """Format a number of bytes for people.

    >>> size_text(3 << 19)
    '1.5 MiB'
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.0f} KiB"
