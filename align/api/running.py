"""Run of a campaign for an observer, with engines on a Ray cluster or in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from align.api.events import EventObserver, handler_of
from align.config.campaign import CampaignConfig
from align.config.episodes.placement import placed_workers
from align.report.forecast.machine import check_machine, is_local
from align.report.trackers import open_tracker
from align.report.trackers.observer import TrackedObserver
from align.round.session import StartEngine
from align.store.changes.settle import settle
from rollouts.engines import backend_named
from rollouts.errors import UserError
from rollouts.machine.stopping import ended_by_sigterm

STARTERS = "launch.cluster.engines"
"""Module of the functions that start engines. It is imported by name when a campaign runs: ``align`` knows
no cluster, and a program that only reads results needs none."""
INTERRUPTED = "interrupted: finished rounds are kept, and the next run goes on from there"


def run_observed(
    config: CampaignConfig,
    observer: Any,
    *,
    in_process: bool | None,
    address: str | None,
    insecure_cluster: bool,
    wait_s: float,
) -> None:
    """Run what is due of a campaign; see `align.run` for the arguments."""
    from align.campaign import run_campaign

    events = EventObserver(handler_of(observer))
    here = runs_in_process(config, in_process, address)
    settle(config).check()
    check_machine(config, "local" if here else address)
    trackers = [open_tracker(name, config.folder, config.name) for name in config.trackers]
    try:
        with _ended_unless_handled(), TrackedObserver(events, trackers) as tracked:
            starter = import_module(STARTERS)
            starting: AbstractContextManager[StartEngine] = (
                starter.in_process_starter(tracked)
                if here
                else starter.engine_starter(
                    address, tracked, insecure=insecure_cluster, wait_s=wait_s
                )
            )
            with starting as start_engine:
                run_campaign(config, start_engine=start_engine, observer=tracked)
    except (KeyboardInterrupt, SystemExit):
        events.note(INTERRUPTED)
        raise


@contextmanager
def _ended_unless_handled() -> Iterator[None]:
    """Make SIGTERM end the block in order by SystemExit, unless the program handles the signal itself."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with ended_by_sigterm():
        yield


def runs_in_process(config: CampaignConfig, wish: bool | None, address: str | None) -> bool:
    """Tell if a campaign's engine runs in this process.

    Raises:
        UserError: it is wished for and cannot be had.
    """
    engines = config.rollouts
    can_share = backend_named(engines.backend).shares_process
    obstacles = [
        (
            not can_share,
            f"rollouts.backend is {engines.backend!r}, which needs a process of its own",
        ),
        (engines.engines > 1, f"rollouts.engines is {engines.engines}, and one process has one"),
        (bool(placed_workers(config)), "episode.resources place environments on a Ray cluster"),
        (not is_local(address), "a Ray cluster is named, by address or by RAY_ADDRESS"),
    ]
    reasons = [reason for is_obstacle, reason in obstacles if is_obstacle]
    if wish and reasons:
        raise UserError(
            "the engines cannot run in this process",
            where="in_process",
            cause=reasons[0],
            remedy="leave in_process out, or set rollouts to {backend: transformers, engines: 1}",
        )
    return not reasons if wish is None else wish
