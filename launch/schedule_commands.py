"""``keel schedule``: what falls due and when, once for a system's own scheduler, or on and on."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from launch.running import Address, Insecure, Strict, Wait

if TYPE_CHECKING:
    from align.config import CampaignConfig
    from align.schedule.claims import Dues
    from align.schedule.due import Due, Tick

REJECTED, NOTHING_DUE = 3, 4

schedule_app = typer.Typer(help="Rounds that run when they fall due.", no_args_is_help=True)


@schedule_app.command("next")
def schedule_next(
    campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show what is due, what falls due when, and why not yet; changes nothing."""
    found = look(load(campaign, overrides).config)
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        typer.echo(line)
    if not (found.due or found.waits):
        typer.echo("nothing is to come: all rounds are done, and none has a schedule")


@schedule_app.command("tick")
def schedule_tick(
    campaign: CampaignPath,
    overrides: Overrides = None,
    address: Address = None,
    insecure_cluster: Insecure = False,
    wait: Wait = 0.0,
    strict: Strict = False,
) -> None:
    """Run what is due now, then end: for cron, timers and Kubernetes. Exit 4 when nothing is due."""
    config = load(campaign, overrides).config
    found = claim(config)
    for line in lines(found):
        typer.echo(line)
    _run(config, found.due, address, insecure_cluster, wait, strict)


@schedule_app.command("run-now")
def schedule_run_now(
    campaign: CampaignPath,
    name: Annotated[str, typer.Argument(help="Name of a round with a schedule.")],
    overrides: Overrides = None,
    address: Address = None,
    insecure_cluster: Insecure = False,
    wait: Wait = 0.0,
    strict: Strict = False,
) -> None:
    """Run a scheduled round now, whatever its schedule says; one that fell due before goes on instead."""
    config = load(campaign, overrides).config
    due = _dues(config).claim_now(name, _now())
    typer.echo(f"{due.round}: {due.reason}")
    _run(config, [due], address, insecure_cluster, wait, strict)


@schedule_app.command("run")
def schedule_run(
    campaign: CampaignPath,
    overrides: Overrides = None,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at what has arrived.")
    ] = 60.0,
    deadline: Annotated[
        str | None,
        typer.Option(
            help="Longest time for what is due at once, such as 6h; it is taken up again then."
        ),
    ] = None,
    address: Address = None,
    insecure_cluster: Insecure = False,
    wait: Wait = 0.0,
) -> None:
    """Sleep until something is due, run it, and go on until stopped; each time reads the file anew."""
    from time import sleep

    from align.schedule.loop import keep
    from launch.ticking import deadline_of, run_tick

    load(campaign, overrides)
    options = ["--address", address] if address else []
    options += ["--insecure-cluster"] if insecure_cluster else []
    options += ["--wait", str(wait)] if wait else []
    options += [word for one in overrides or () for word in ("--set", one)]
    limit_s = None if deadline is None else deadline_of(deadline)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        keep(
            lambda now: claim(load(campaign, overrides).config, now),
            lambda: run_tick([str(campaign), *options], limit_s, say=_say),
            poll_s=poll,
            now=_now,
            sleep=sleep,
            say=_say,
        )
    except KeyboardInterrupt:
        _say("stopped; what was under way is taken up again by the next keel schedule run or tick")


def look(config: CampaignConfig, now: datetime | None = None) -> Tick:
    """What is due and why the rest is not, from the store as it is; none is made."""
    from align.schedule.claims import Dues, schedules_of
    from align.schedule.due import History, tick
    from align.schedule.expand import known_ledger

    ledger = known_ledger(config)
    if ledger is None:
        return tick(schedules_of(config), History(), {}, now or _now())
    return Dues(ledger.database, config).look(now or _now())


def waiting_lines(config: CampaignConfig) -> list[str]:
    """What a plain run leaves to `keel schedule`."""
    found, scheduled = look(config), {spec.name for spec in config.rounds if spec.scheduled}
    due = [f"{d.schedule} is due: {d.reason}; keel schedule tick runs it" for d in found.due
           if d.schedule in scheduled and not d.claimed]  # fmt: skip
    waits = [f"{w.schedule} is scheduled and not due: {w.why}" for w in found.waits]
    return due + waits if scheduled else []


def claim(config: CampaignConfig, now: datetime | None = None) -> Tick:
    """What is due, claimed, with what lies in the drop folder counted in."""
    from align.inbox.drop import sweep
    from align.inbox.feedback import stream_forms
    from align.inbox.inbox import Inbox
    from align.schedule.claims import Dues
    from align.stores import open_ledger

    ledger = open_ledger(config)
    if forms := stream_forms(config):
        sweep(config.folder / "inbox", Inbox(ledger.database), forms)
    return Dues(ledger.database, config).claim(now or _now())


def lines(found: Tick) -> list[str]:
    """One a schedule: what is due and why, or why not."""
    from align.schedule.loop import sentence

    due = [f"due      {sentence(one)}" for one in found.due]
    return due + [f"not yet  {one.schedule}: {one.why}" for one in found.waits]


def _run(
    config: CampaignConfig,
    due: Sequence[Due],
    address: str | None,
    insecure: bool,
    wait_s: float,
    strict: bool,
) -> None:
    """Run what was claimed; a live runner of the store is left alone."""
    if not due:
        raise typer.Exit(NOTHING_DUE)
    from align.errors import StoreBusy
    from launch.running import run_shown

    # As an interrupt does: the round is written down as stopped, and everything it started ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        evidence = run_shown(config, address=address, insecure=insecure, wait_s=wait_s)
    except StoreBusy as busy:
        typer.echo(f"left to the runner that is there: {busy.what}")
        raise typer.Exit(NOTHING_DUE) from None
    names = {one.round for one in due}
    refused = [r for r in evidence.ledger.rounds() if r.state == "rejected" and r.name in names]
    if strict and refused:
        raise typer.Exit(REJECTED)


def _dues(config: CampaignConfig) -> Dues:
    from align.schedule.claims import Dues
    from align.stores import open_ledger

    return Dues(open_ledger(config).database, config)


def _now() -> datetime:
    return datetime.now(UTC)


def _say(text: str) -> None:
    typer.echo(f"{_now():%Y-%m-%dT%H:%M:%SZ} {text}", err=True)
