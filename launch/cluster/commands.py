"""``keel submit`` and ``keel jobs``: campaigns as jobs of a Ray cluster."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from rollouts.errors import KeelError

if TYPE_CHECKING:
    from launch.cluster.jobs.jobs import Job, Jobs

Address = Annotated[
    str, typer.Option("--address", help="The cluster's jobs API, such as http://head:8265.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
Insecure = Annotated[
    bool, typer.Option("--insecure-cluster", help="Talk to a cluster that asks for no token.")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Seconds to follow for; the job goes on.")
]

Include = Annotated[
    list[Path] | None,
    typer.Option(help="A file or folder that the campaign reads. Repeatable."),
]
Env = Annotated[
    list[str] | None,
    typer.Option(help="Name of a variable that the job needs; its value is on the cluster."),
]
EnvDir = Annotated[
    str | None, typer.Option(help="Folder on the cluster with one file per such variable.")
]

jobs_app = typer.Typer(help="Campaigns that run as jobs of a cluster.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Add both to a command line."""
    app.command("submit")(submit)
    app.add_typer(jobs_app, name="jobs")


def submit(
    campaign: CampaignPath,
    address: Address,
    overrides: Overrides = None,
    include: Include = None,
    env: Env = None,
    env_dir: EnvDir = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Id of the job; a second one of that id is refused.")
    ] = None,
    installed: Annotated[
        bool, typer.Option(help="Use the Keel that is installed there instead of sending this one.")
    ] = False,
    python: Annotated[str, typer.Option(help="The cluster's Python.")] = "python",
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds that the cluster's nodes may take to have room.")
    ] = 300.0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the job's log until it ends.")
    ] = False,
    timeout: Timeout = None,
    insecure_cluster: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Run a campaign on a Ray cluster, as a job that needs this terminal no longer."""
    file = load(campaign, overrides)
    from launch.cluster.jobs import address as jobs_address
    from launch.cluster.jobs import jobs, leaks

    config = file.config
    jobs.check_store(config)
    jobs.check_env(env or ())
    files = jobs.working_files(campaign, include or (), file.raw)
    spec = jobs.JobSpec(
        entrypoint=jobs.entrypoint(
            next(iter(files)),
            overrides=overrides or (),
            env=env or (),
            env_dir=env_dir,
            wait_s=wait,
            insecure=insecure_cluster,
            python=python,
        ),
        files=files,
        metadata={"keel_campaign": config.name, "keel_config": config.hash()[:16]},
        ship=not installed,
    )
    leaks.check_no_secrets(spec.entrypoint, files.values(), os.environ)
    client = _open(address, insecure=insecure_cluster)
    name = job_id or f"{config.name}-{secrets.token_hex(4)}"
    client.submit(spec, name)
    if as_json and not follow:
        print_json({"id": name, "entrypoint": spec.entrypoint, "files": list(files)})
        return
    hint = f"keel jobs logs {name} --address {jobs_address.shown(address)} --follow"
    typer.echo(f"submitted {name}; its log: {hint}", err=True)
    if follow:
        _follow(client, name, timeout, address)


@jobs_app.command("list")
def jobs_list(
    address: Address, insecure_cluster: Insecure = False, as_json: AsJson = False
) -> None:
    """Show the jobs of a cluster, newest first."""
    jobs = _open(address, insecure=insecure_cluster).list()
    if as_json:
        print_json(jobs)
        return
    for job in jobs:
        typer.echo(_line(job))


@jobs_app.command("status")
def jobs_status(
    job: JobId, address: Address, insecure_cluster: Insecure = False, as_json: AsJson = False
) -> None:
    """Show one job."""
    status = _open(address, insecure=insecure_cluster).get(job)
    if as_json:
        print_json(status)
        return
    typer.echo(_line(status))
    if status.message:
        typer.echo(f"  {status.message}")


@jobs_app.command("logs")
def jobs_logs(
    job: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
    timeout: Timeout = None,
    insecure_cluster: Insecure = False,
) -> None:
    """Print what a job has printed."""
    client = _open(address, insecure=insecure_cluster)
    if follow:
        _follow(client, job, timeout, address)
    else:
        typer.echo(client.logs(job), nl=False)


@jobs_app.command("stop")
def jobs_stop(
    job: JobId,
    address: Address,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds it may take to end.")] = 60.0,
    insecure_cluster: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """End a job; its finished rounds are kept, and submitting it again goes on from there."""
    status = _open(address, insecure=insecure_cluster).stop(job, timeout)
    if as_json:
        print_json(status)
    else:
        typer.echo(_line(status))


def _open(address: str, *, insecure: bool) -> Jobs:
    from launch.cluster.jobs import address as jobs_address
    from launch.cluster.jobs import jobs

    # Before Ray is imported: it reads its authentication mode then.
    for note in jobs_address.check_jobs_address(address, os.environ, insecure=insecure):
        typer.echo(f"note: {note}", err=True)
    return jobs.Jobs(address)


def _follow(jobs: Jobs, job: str, timeout: float | None, address: str) -> None:
    """Print a job's log until it ends; an interrupt ends the watching, not the job.

    Raises:
        RunError: the job did not succeed.
    """
    ended = jobs.follow(job, lambda text: typer.echo(text, nl=False), timeout)
    typer.echo(_line(ended), err=True)
    if ended.status in ("FAILED", "STOPPED"):
        from launch.cluster.jobs.address import shown
        from launch.cluster.jobs.log import job_failure

        log = ""
        with suppress(KeelError):  # The cluster may be gone by now; Ray's reason is here already.
            log = jobs.logs(job)
        raise job_failure(ended, log, shown(address))


def _line(job: Job) -> str:
    started = (
        "" if job.started is None else datetime.fromtimestamp(job.started, UTC).isoformat()[:19]
    )
    seconds = "" if job.ended is None or job.started is None else f"{job.ended - job.started:.0f} s"
    return f"{job.id:<32}  {job.status:<10}  {job.campaign or '-':<20}  {started:<19}  {seconds}".rstrip()
