"""Surroundings of a run: a live display, trackers, engines on a cluster, and a report at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rollouts.machine.collector import without_collector

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence
    from align.round.session import Observer, StartEngine

Insecure = Annotated[
    bool, typer.Option(help="Join a cluster on another host although it asks for no token.")
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds that a cluster's nodes may take to have room.")
]
Strict = Annotated[bool, typer.Option(help="Exit 3 when the gate rejected a round.")]


@contextmanager
def observed(
    config: CampaignConfig, *, address: str | None, insecure: bool, wait_s: float
) -> Iterator[tuple[StartEngine, Observer]]:
    """Check that a campaign can run here, then yield what starts its engines and what shows its progress.

    Raises:
        UserError: the campaign or the machine cannot be used; nothing was changed.
    """
    from align.report.forecast.machine import check_machine
    from align.report.progress import LiveProgress
    from align.report.tables import report_console
    from align.report.trackers import open_tracker
    from align.report.trackers.observer import TrackedObserver
    from align.store.changes.settle import settle
    from launch.cluster.engines import engine_starter
    from rollouts.machine.stopping import ended_by_sigterm

    settle(config).check()
    check_machine(config, address)
    trackers = [open_tracker(name, config.folder, config.name) for name in config.trackers]
    with (
        ended_by_sigterm(),
        LiveProgress(report_console()) as progress,
        TrackedObserver(progress, trackers) as observer,
        engine_starter(address, observer, insecure=insecure, wait_s=wait_s) as start_engine,
    ):
        yield start_engine, observer


def show_report(evidence: Evidence) -> None:
    """Print what came of a run."""
    from align.report.tables import print_report, report_console

    with without_collector():
        print_report(evidence, evidence.folder, report_console())
