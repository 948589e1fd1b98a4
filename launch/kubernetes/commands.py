"""``keel k8s``: manifests for Kubernetes, on the screen. Nothing is sent anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json

kubernetes_app = typer.Typer(help="Manifests for Kubernetes.", no_args_is_help=True)


KindOption = Annotated[
    Literal["rayjob", "raycronjob", "cronjob"],
    typer.Option("--kind", help="One run, KubeRay's own schedule, or ticks of keel schedule."),
]
Env = Annotated[
    list[str] | None,
    typer.Option(help="Name of a variable that the campaign needs. Repeatable."),
]
CrdsOption = Annotated[
    Path | None,
    typer.Option(
        "--crds", help="File or folder with your cluster's CRDs, to check against these as well."
    ),
]
BAD = 2
"""Exit code of ``check`` when something does not fit, as for every wrong input."""


@kubernetes_app.callback()
def _group() -> None:
    """Print manifests for Kubernetes."""


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
    crds: CrdsOption = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print the manifests of a campaign, checked, for kubectl apply -f -."""
    file = load(campaign, overrides)
    from launch.cluster.jobs import files_named
    from launch.kubernetes.render import NOTES, Target
    from launch.kubernetes.render import render as manifests_of
    from launch.kubernetes.stream import to_yaml

    text = _with_overrides(file.raw) if overrides else campaign.read_text()
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
    input_files = files_named(file.raw, campaign.parent)
    manifests = manifests_of(file.config, text, target, files=input_files)
    _check_all(manifests, crds)
    if as_json:
        print_json(manifests)
        return
    typer.echo(to_yaml(manifests, NOTES[kind]), nl=False)
    typer.echo(NOTES[kind], err=True)


def _with_overrides(raw: dict[str, Any]) -> str:
    """Write a campaign anew: an override belongs to the one that runs there, so it stands in the file."""
    import yaml

    return yaml.safe_dump(raw, sort_keys=False)


def _check_all(manifests: Sequence[dict[str, Any]], path: Path | None) -> None:
    from launch.kubernetes.crds import load_crds
    from launch.kubernetes.schema import check_manifest

    crds = load_crds(path) if path is not None else None
    for manifest in manifests:
        check_manifest(manifest)
        if crds is not None:
            check_manifest(manifest, crds)


@kubernetes_app.command("check")
def check(
    files: Annotated[
        list[Path], typer.Argument(help="Manifests (YAML). A - is standard input.", allow_dash=True)
    ],
    crds: CrdsOption = None,
    as_json: AsJson = False,
) -> None:
    """Hold manifests, such as those that you have edited, against the types of Kubernetes and KubeRay."""
    from launch.kubernetes.check import check_file, lines
    from launch.kubernetes.crds import load_crds

    types = load_crds(crds) if crds is not None else None
    checked = [result for path in files for result in check_file(path, types)]
    if as_json:
        print_json(checked)
    else:
        typer.echo("\n".join(lines(checked)))
    if any(result.problems for result in checked):
        raise typer.Exit(BAD)
