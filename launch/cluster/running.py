"""Run of what is due of a campaign, with a live display, engines on a cluster, and a report at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: host:port, or auto; without it, one of your own here."),
]
Insecure = Annotated[
    bool, typer.Option(help="Join a cluster on another host although it asks for no token.")
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds that a cluster's nodes may take to have room.")
]
Strict = Annotated[bool, typer.Option(help="Exit 3 when the gate rejected a round.")]


def run_shown(
    config: CampaignConfig, *, address: str | None, insecure: bool, wait_s: float
) -> Evidence:
    """Run the campaign's rounds that are due, and print what came of it."""
    from align.campaign import run_campaign
    from align.report.forecast.machine import check_machine
    from align.report.progress import LiveProgress
    from align.report.tables import print_report, report_console
    from align.report.trackers import open_tracker
    from align.report.trackers.observer import TrackedObserver
    from align.store.changes.settle import settle
    from launch.cluster.engines import engine_starter

    settle(config).check()
    check_machine(config, address)
    console = report_console()
    trackers = [open_tracker(name, config.folder, config.name) for name in config.trackers]
    with (
        LiveProgress(console) as progress,
        TrackedObserver(progress, trackers) as observer,
        engine_starter(address, observer, insecure=insecure, wait_s=wait_s) as start_engine,
    ):
        evidence = run_campaign(config, start_engine=start_engine, observer=observer)
    print_report(evidence, config.folder, console)
    return evidence
