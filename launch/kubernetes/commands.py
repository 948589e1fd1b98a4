"""``keel k8s``: manifests for Kubernetes, on the screen. Nothing is sent anywhere."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from rollouts.errors import UserError

kubernetes_app = typer.Typer(help="Manifests for Kubernetes.", no_args_is_help=True)


KindOption = Annotated[
    Literal["rayjob", "raycronjob", "cronjob"],
    typer.Option("--kind", help="One run, KubeRay's own schedule, or ticks of keel schedule."),
]
Env = Annotated[
    list[str] | None,
    typer.Option(help="Name of a variable that the campaign needs. Repeatable."),
]


@kubernetes_app.callback()
def _group() -> None:
    """Write manifests for Kubernetes."""


@kubernetes_app.command("render")
def render(
    campaign: CampaignPath,
    image: Annotated[str, typer.Option(help="Image that has Keel and the packages of its lock.")],
    kind: KindOption = "rayjob",
    namespace: Annotated[str, typer.Option(help="Namespace of everything.")] = "default",
    gpus: Annotated[
        bool, typer.Option(help="The nodes have GPUs; engines and ranks get theirs.")
    ] = False,
    schedule: Annotated[
        str | None, typer.Option(help="Cron expression, for the kinds with a schedule.")
    ] = None,
    time_zone: Annotated[str, typer.Option(help="Of the schedule.")] = "Etc/UTC",
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim of the store.")] = "keel-store",
    mount: Annotated[str, typer.Option(help="Where it is mounted.")] = "/shared",
    token_secret: Annotated[str, typer.Option(help="Secret with Ray's token.")] = "keel-ray-token",
    env: Env = None,
    env_secret: Annotated[str, typer.Option(help="Secret with their values.")] = "keel-env",
    memory: Annotated[str, typer.Option(help="Of every pod.")] = "16Gi",
    deadline_s: Annotated[
        int, typer.Option(min=1, help="Seconds after which a run is ended.")
    ] = 86_400,
    retries: Annotated[int, typer.Option(min=0, help="Times a failed run is started again.")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print the manifests of a campaign for kubectl apply -f -."""
    file = load(campaign, overrides)
    import yaml

    from launch.cluster.jobs.jobs import files_named
    from launch.kubernetes.render import NOTES, Target, placement_note, to_yaml
    from launch.kubernetes.render import render as manifests_of

    # An override belongs to the campaign that runs there, so it stands in the file.
    text = yaml.safe_dump(file.raw, sort_keys=False) if overrides else campaign.read_text()
    target = Target(
        kind=kind,
        image=image,
        namespace=namespace,
        gpus=gpus,
        schedule=schedule,
        time_zone=time_zone,
        claim=claim,
        mount=mount,
        token_secret=token_secret,
        env=tuple(env or ()),
        env_secret=env_secret,
        memory=memory,
        deadline_s=deadline_s,
        retries=retries,
    )
    files = files_named(file.raw, campaign.parent)
    manifests = manifests_of(file.config, text, target, files=files)
    if as_json:
        print_json(manifests)
        return
    typer.echo(to_yaml(manifests, NOTES[kind]), nl=False)
    typer.echo(NOTES[kind], err=True)
    if note := placement_note(file.config):
        typer.echo(note, err=True)


@kubernetes_app.command("check", hidden=True, context_settings={"ignore_unknown_options": True})
def check(files: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Name the command that holds manifests against the types of a cluster."""
    raise UserError(
        "keel k8s check is gone: a cluster knows its own types best",
        remedy=f"kubectl apply --dry-run=server -f {(files or ['FILE'])[0]}",
    )
