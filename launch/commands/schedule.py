"""``keel schedule``: rounds that fall due, run once for a system's own scheduler, or on and on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import Address, AsJson, CampaignPath, Overrides, load, print_json
from launch.cluster.running import Insecure, Strict, Wait
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.schedule.due import Due, Tick
    from align.store.ledger.ledger import Ledger

REJECTED, NOTHING_DUE = 3, 4

schedule_app = typer.Typer(help="Rounds that run when they fall due.", no_args_is_help=True)


@schedule_app.command("next")
def schedule_next(
    campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show what is due, what falls due when, and why not yet; changes nothing."""
    config = load(campaign, overrides).config
    tick = look(config)
    if as_json:
        print_json(tick)
        return
    for line in lines(tick):
        typer.echo(line)
    if not (tick.due or tick.waits):
        typer.echo("nothing is to come: all rounds are done, and none has a schedule")
    for line in endless_lines(config):
        typer.echo(line)


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
    tick = claim(config, address=address, insecure=insecure_cluster)
    for line in lines(tick):
        typer.echo(line)
    _run(config, tick.due, address, insecure_cluster, wait, strict)


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
    from align.schedule.claims import Dues

    dues, now = Dues(_swept(config).database, config), _now()
    if not (claimed := dues.ask(name, now)).claimed:
        _checked(config, [claimed], address, insecure_cluster)
    due = dues.claim_now(name, now)
    typer.echo(f"{due.round}: {due.reason}")
    _run(config, [due], address, insecure_cluster, wait, strict)


@schedule_app.command("skip")
def schedule_skip(
    campaign: CampaignPath,
    round_name: Annotated[
        str, typer.Argument(metavar="ROUND", help="A round with a schedule, or one that fell due.")
    ],
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pass over what is due of a schedule, this time; what it would have read waits for the next one."""
    config = load(campaign, overrides).config
    from align.schedule.skips import skip_round
    from align.store.ledger.amendments import user_name
    from align.store.store import known_ledger

    ledger = known_ledger(config)
    if ledger is None:
        raise UserError(
            f"round {round_name!r} is not due: nothing has happened in this store yet",
            where="ROUND",
            remedy="keel schedule next shows what falls due when",
        )
    done = skip_round(ledger, config, round_name, who=user_name(), reason=reason, now=_now())
    if as_json:
        print_json(done)
        return
    typer.echo(done.sentence)
    for waiting in look(config).waits:
        if waiting.schedule == done.schedule:
            typer.echo(f"not yet  {waiting.schedule}: {waiting.why}")


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
    load(campaign, overrides)
    from time import sleep

    from align.schedule.loop import keep
    from launch.cluster.ticking import deadline_of, run_tick

    options = ["--address", address] if address else []
    options += ["--insecure-cluster"] if insecure_cluster else []
    options += ["--wait", str(wait)] if wait else []
    options += [word for override in overrides or () for word in ("--set", override)]
    limit_s = None if deadline is None else deadline_of(deadline)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        keep(
            lambda now: notice(load(campaign, overrides).config, now),
            lambda: run_tick([str(campaign), *options], limit_s, say=_say),
            poll_s=poll,
            now=_now,
            sleep=sleep,
            say=_say,
        )
    except KeyboardInterrupt:
        _say("stopped; what was under way is taken up again by the next keel schedule run or tick")


def look(config: CampaignConfig, now: datetime | None = None) -> Tick:
    """Find what is due and why the rest is not, from the store as it is; make none."""
    from align.schedule.claims import Dues, schedules_of
    from align.schedule.due import History, tick
    from align.store.store import known_ledger

    ledger = known_ledger(config)
    if ledger is None:
        return tick(schedules_of(config), History(), {}, now or _now())
    return Dues(ledger.database, config).look(now or _now())


def waiting_lines(config: CampaignConfig) -> list[str]:
    """Describe what a plain run leaves to `keel schedule`."""
    tick, scheduled = look(config), {spec.name for spec in config.rounds if spec.scheduled}
    due = [f"{d.schedule} is due: {d.reason}; keel schedule tick runs it" for d in tick.due
           if d.schedule in scheduled and not d.claimed]  # fmt: skip
    waits = [f"{w.schedule} is scheduled and not due: {w.why}" for w in tick.waits]
    return due + waits if scheduled else []


def notice(config: CampaignConfig, now: datetime | None = None) -> Tick:
    """Find what is due without claiming it, with the drop folder counted in; close ticks that found too
    little."""
    from align.schedule.claims import Dues

    return Dues(_swept(config).database, config).claim(now or _now(), checked=())


def claim(
    config: CampaignConfig,
    now: datetime | None = None,
    *,
    address: str | None = None,
    insecure: bool = False,
) -> Tick:
    """Claim what is due once it could run, since a claim keeps its settings, mistakes included."""
    from align.schedule.claims import Dues

    tick = notice(config, now)
    new = [due for due in tick.due if not due.claimed]
    if not new:
        return tick
    ledger = _checked(config, new, address, insecure)
    return Dues(ledger.database, config).claim(now or _now(), checked=[due.schedule for due in new])


def lines(tick: Tick) -> list[str]:
    """Format a line per schedule: what is due and why, or why not; and what of it was passed over last."""
    from align.schedule.loop import sentence

    due = [f"due      {sentence(entry)}" for entry in tick.due]
    waits = [f"not yet  {entry.schedule}: {entry.why}" for entry in tick.waits]
    return due + waits + [f"skipped  {entry.sentence}" for entry in tick.skips]


def endless_lines(config: CampaignConfig) -> list[str]:
    """Describe how rounds without end stay affordable: what later ones look back on, and how they share
    alpha."""
    from align.gate.statistics.alpha import spending_sentence, spent_by
    from align.store.lookback import templates_in

    templates = templates_in(config)
    gate = spent_by(config.gate, endless=True)
    sentences = [template.sentence for template in templates]
    return [*sentences, spending_sentence(gate, 1)] if templates else []


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
    from align.campaign import run_campaign
    from align.errors import StoreBusy
    from launch.cluster.running import observed, show_report

    try:
        with observed(config, address=address, insecure=insecure, wait_s=wait_s) as watch:
            start_engine, observer = watch
            evidence = run_campaign(config, start_engine=start_engine, observer=observer)
    except StoreBusy as busy:
        typer.echo(f"left to the runner that is there: {busy.what}")
        raise typer.Exit(NOTHING_DUE) from None
    show_report(evidence)
    names = {claimed.round for claimed in due}
    refused = [r for r in evidence.ledger.rounds() if r.state == "rejected" and r.name in names]
    if strict and refused:
        raise typer.Exit(REJECTED)


def _swept(config: CampaignConfig) -> Ledger:
    """Open the ledger after taking what lay in the drop folder."""
    from align.schedule.inbox.drop import sweep
    from align.schedule.inbox.inbox import Inbox
    from align.schedule.inbox.rows import stream_forms
    from align.store.paths import StorePaths
    from align.store.store import open_ledger

    ledger = open_ledger(config)
    if forms := stream_forms(config):
        sweep(StorePaths(config.folder).inbox.folder, Inbox(ledger.database), forms)
    return ledger


def _checked(
    config: CampaignConfig, due: Sequence[Due], address: str | None, insecure: bool
) -> Ledger:
    """Open the ledger after checking that what is due could run: its inputs, and its cluster."""
    from align.schedule.checked import check_due
    from align.store.store import open_ledger
    from launch.cluster.cluster import check_address

    ledger = open_ledger(config)
    if address is not None and address != "local":
        check_address(address, os.environ, insecure=insecure)
    check_due(config, ledger, due)
    return ledger


def _now() -> datetime:
    return datetime.now(UTC)


def _say(text: str) -> None:
    typer.echo(f"{_now():%Y-%m-%dT%H:%M:%SZ} {text}", err=True)
