"""A campaign as manifests for Kubernetes: a RayJob or a RayCronJob of KubeRay, or a plain CronJob.

One pod for every engine (or for each of its devices under ``executor: ray``), one for all ranks of the
learner on a node, and a head that the driver runs in. The campaign file is a ConfigMap. The store is a
volume that all pods share: Keel's ledger,
not the cluster, remembers what is done, so a job that is started again goes on. No value of a secret is
written into a manifest: Ray's token and what rewards need are named, and lie in Secrets.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.config.campaign import CampaignConfig
from align.config.episodes.placement import placed_workers
from align.config.policy import ResourcesConfig
from launch.cluster.jobs.jobs import check_env
from rollouts.errors import UserError

ManifestKind = Literal["rayjob", "raycronjob", "cronjob"]
Manifest = dict[str, Any]

CONFIG_DIR = "/etc/keel"
CONFIG_FILE = "campaign.yaml"
NOTHING_DUE = 4
"""Exit code of ``keel schedule tick`` when nothing is due, which is no failure."""
MOST_BYTES = 1_000_000
"""Bytes that a ConfigMap may hold here; Kubernetes allows 1 MiB."""

NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
FORMS: Mapping[str, tuple[str, str]] = {
    "image": (r"\S+", "a name without spaces"),
    "namespace": (r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "small letters, digits and dashes"),
    "claim": (NAME, "small letters, digits, dashes and dots"),
    "token_secret": (NAME, "small letters, digits, dashes and dots"),
    "env_secret": (NAME, "small letters, digits, dashes and dots"),
    "mount": (r"/[^:]+", "a path from the root, without a colon"),
    "memory": (r"[0-9]+(\.[0-9]+)?([KMGTPE]i?|k|m)?", "a quantity such as 16Gi"),
}
"""Pattern of what an option may hold, and how a message says it. The API server checks everything else."""
SUNDAY = re.compile(r"(^|[,-])7($|[,/-])")
"""Sunday as 7, which cron knows and Kubernetes does not."""

NOTES: Mapping[ManifestKind, str] = {
    "rayjob": "One run, for KubeRay 1.6 and later. Delete the RayJob and apply it again for another:\n"
    "finished rounds are kept.",
    "raycronjob": "RayCronJob is alpha: the operator needs --feature-gates=RayCronJob=true. KubeRay 1.6\n"
    "drops timeZone without a word, 1.7 has it. There is no concurrencyPolicy, so a run may start while\n"
    "another one works: the later one finds the store claimed and ends with an error, and nothing is\n"
    "done twice. Missed times are made up for one by one.",
    "cronjob": "The schedule here only says how often to ask; what is due stands in the campaign file.\n"
    "Kubernetes may start a job twice or not at all: each due round is claimed once in the ledger.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Settings of the manifests besides the campaign."""

    kind: ManifestKind
    image: str
    """Image with Keel and the packages of its lock."""
    namespace: str = "default"
    gpus: bool = False
    """True if the nodes have GPUs: engines and ranks take theirs, and so does the head for a learner in
    it."""
    schedule: str | None = None
    """Cron expression of a RayCronJob or a CronJob."""
    time_zone: str = "Etc/UTC"
    claim: str = "keel-store"
    """Name of the store's PersistentVolumeClaim, ReadWriteMany."""
    mount: str = "/shared"
    token_secret: str = "keel-ray-token"
    """Secret with Ray's token under the key ``auth_token``."""
    env: tuple[str, ...] = ()
    """Variables that the campaign needs."""
    env_secret: str = "keel-env"
    """Name of the secret that has each of them under its name."""
    memory: str = "16Gi"
    """Memory of every pod."""
    deadline_s: int = 86_400
    """Seconds after which a run is ended."""
    retries: int = 1


def render(
    config: CampaignConfig, text: str, target: Target, *, files: Sequence[tuple[str, Path]] = ()
) -> list[Manifest]:
    """Render the manifests in the order in which they are to be applied.

    Args:
        text: the campaign file as it is.
        files: what it names that is on this machine, each with its key.

    Raises:
        UserError: the campaign cannot run there as it is.
    """
    for key, path in files:
        raise UserError(
            f"{path} is a file here, and a pod would not find it",
            where=key,
            remedy=f"put it on the volume and name it below {target.mount}",
        )
    _check(config, text, target)
    api_version, kind, spec_of = {
        "rayjob": ("ray.io/v1", "RayJob", _ray_job_spec),
        "raycronjob": ("ray.io/v1", "RayCronJob", _ray_cron_job_spec),
        "cronjob": ("batch/v1", "CronJob", _cron_job_spec),
    }[target.kind]
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, target, "-campaign"),
        "data": {CONFIG_FILE: text},
    }
    job = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": _metadata(config, target),
        "spec": spec_of(config, target),
    }
    return [config_map, job]


def _check(config: CampaignConfig, text: str, target: Target) -> None:
    """Refuse what the API server or a pod would refuse later."""
    from align.clock import check_cron, check_timezone

    check_env(target.env)
    for field, (pattern, form) in FORMS.items():
        value = getattr(target, field)
        if re.fullmatch(pattern, value) is None:
            raise UserError(
                f"{value!r} cannot stand there, only {form}", where=f"--{field.replace('_', '-')}"
            )
    if not config.folder.is_relative_to(target.mount):
        name = "cache" if config.is_remote else "store"
        raise UserError(
            f"the {name} {str(config.folder)!r} is not on the volume at {target.mount}",
            where=name,
            remedy=f"set {name} to a path such as {target.mount}/{config.name}, or give --mount",
        )
    if len(text.encode()) > MOST_BYTES:
        raise UserError(
            "the campaign file is too large for a ConfigMap",
            remedy="move prompts and suites into files on the volume",
        )
    if (target.kind == "rayjob") != (target.schedule is None):
        needs = "takes no" if target.kind == "rayjob" else "needs a"
        raise UserError(f"--kind {target.kind} {needs} --schedule", where="--schedule")
    if target.kind == "cronjob" and config.policy.nodes > 1:
        raise UserError(
            f"the ranks are on {config.policy.nodes} nodes, and --kind cronjob has one pod",
            where="policy.ranks_per_node",
            remedy="take --kind raycronjob, or leave ranks_per_node out",
        )
    if target.schedule is None:
        return
    for option, check, value in (
        ("--schedule", check_cron, target.schedule),
        ("--time-zone", check_timezone, target.time_zone),
    ):
        try:
            check(value)
        except ValueError as error:
            raise UserError(str(error), where=option) from None
    if SUNDAY.search(target.schedule.split()[4]):
        raise UserError(
            f"{target.schedule!r} has a day 7; for Kubernetes Sunday is 0",
            where="--schedule",
            remedy="write 0 for Sunday",
        )


def _name(config: CampaignConfig) -> str:
    """Spell a campaign's name as a DNS label, with dashes for other characters; KubeRay adds to it."""
    return config.name.replace("_", "-").replace(".", "-")[:30].rstrip("-")


def _metadata(config: CampaignConfig, target: Target, suffix: str = "") -> Manifest:
    return {
        "name": f"keel-{_name(config)}{suffix}",
        "namespace": target.namespace,
        "labels": {"app.kubernetes.io/name": "keel", "app.kubernetes.io/instance": _name(config)},
    }


def _ray_cron_job_spec(config: CampaignConfig, target: Target) -> Manifest:
    template = _ray_job_spec(config, target)
    return {"schedule": target.schedule, "timeZone": target.time_zone, "jobTemplate": template}


def _ray_job_spec(config: CampaignConfig, target: Target) -> Manifest:
    """Render a driver and the Ray cluster that is made for it."""
    from importlib.metadata import version

    policy, engines = config.policy, config.rollouts
    # A learner that is one process is in the driver, and the driver on the head.
    alone = policy.ranks == 1
    head = ResourcesConfig(cpus=policy.threads + 1, gpus=None if alone else 0.0)
    division = engines.division
    pods, devices = engines.engines, division.num_devices
    if division.executor == "ray":  # Workers may be on several nodes: a pod for each.
        pods, devices = pods * devices, 1
    groups = [_workers("engine", engines.resources, pods, devices, config, target)]
    if not alone:
        processes = policy.ranks_together
        learner = _workers("learner", policy.resources, policy.nodes, processes, config, target)
        groups.append(learner)
    for index, placed in enumerate(placed_workers(config)):
        resources = placed.resources.model_copy(update={"gpus": placed.resources.gpus or 0.0})
        name = f"environment-{index}" if index else "environment"
        groups.append(_workers(name, resources, placed.num, 1, config, target))
    head_pod = _pod("ray-head", _limits(head, 1, target), config, target, secrets=True)
    words = ["keel", "run", f"{CONFIG_DIR}/{CONFIG_FILE}", "--address", "auto", "--wait", "600"]
    return {
        "entrypoint": shlex.join(words),
        "submissionMode": "K8sJobMode",
        "activeDeadlineSeconds": target.deadline_s,
        # Every retry is a fresh cluster; the round goes on from its last checkpoint in the store.
        "backoffLimit": target.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            # KubeRay 1.5.1 makes a token of its own from this, 1.6 takes one; it reaches every container
            # of Ray.
            "authOptions": {"mode": "token", "secretName": target.token_secret},
            "headGroupSpec": {
                # Nothing but the driver runs there, so Ray has nothing to give away on it.
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                "template": {"spec": head_pod},
            },
            "workerGroupSpecs": groups,
        },
    }


def _workers(
    name: str,
    resources: ResourcesConfig,
    pods: int,
    processes: int,
    config: CampaignConfig,
    target: Target,
) -> Manifest:
    """Render a group of pods that each hold some processes."""
    start = {"num-cpus": str(math.ceil(resources.cpus * processes))}
    if resources.custom:
        pairs = ", ".join(f'\\"{n}\\": {a * processes:g}' for n, a in resources.custom.items())
        start["resources"] = f'"{{{pairs}}}"'
    return {
        "groupName": name,
        "replicas": pods,
        "minReplicas": pods,
        "maxReplicas": pods,
        "rayStartParams": start,
        "template": {
            "spec": _pod(f"ray-{name}", _limits(resources, processes, target), config, target)
        },
    }


def _cron_job_spec(config: CampaignConfig, target: Target) -> Manifest:
    """Render a job of one pod, with a Ray cluster of its own for as long as a round takes."""
    policy, engines = config.policy, config.rollouts
    placed_cpus = sum(placed.resources.cpus * placed.num for placed in placed_workers(config))
    devices = engines.engines * engines.division.num_devices
    cpus = math.ceil(
        devices * engines.resources.cpus + policy.ranks * policy.threads + placed_cpus + 1
    )
    whole = ResourcesConfig(cpus=cpus, gpus=0.0)
    limits = _limits(whole, 1, target)
    if target.gpus:
        limits["nvidia.com/gpu"] = str(devices + policy.ranks)
    pod = _pod("keel", limits, config, target, secrets=True)
    tick = shlex.join(["keel", "schedule", "tick", f"{CONFIG_DIR}/{CONFIG_FILE}"])
    pod["containers"][0]["command"] = ["sh", "-c", f"{tick} || test $? -eq {NOTHING_DUE}"]
    job = {
        "activeDeadlineSeconds": target.deadline_s,
        "backoffLimit": 0,  # The next tick is the retry.
        "template": {"spec": {"restartPolicy": "Never", **pod}},
    }
    return {
        "schedule": target.schedule,
        "timeZone": target.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 300,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": job},
    }


def _limits(resources: ResourcesConfig, processes: int, target: Target) -> dict[str, str]:
    """Return requests that equal the limits, so that a node's memory is never promised twice."""
    bundle = resources.bundle(gpus=target.gpus)
    gpus = math.ceil(bundle.get("GPU", 0.0) * processes)
    limits = {"cpu": str(math.ceil(bundle["CPU"] * processes)), "memory": target.memory}
    return limits | ({"nvidia.com/gpu": str(gpus)} if gpus else {})


def _pod(
    name: str,
    limits: Mapping[str, str],
    config: CampaignConfig,
    target: Target,
    *,
    secrets: bool = False,
) -> dict[str, Any]:
    """Render a pod of one container; only the driver's gets secrets."""
    variables: list[Manifest] = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    for variable in target.env if secrets else ():
        reference = {"secretKeyRef": {"name": target.env_secret, "key": variable}}
        variables.append({"name": variable, "valueFrom": reference})
    container = {
        "name": name,
        "image": target.image,
        "env": variables,
        "resources": {"requests": dict(limits), "limits": dict(limits)},
        "volumeMounts": [
            {"name": "campaign", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "store", "mountPath": target.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    volumes = [
        {"name": "campaign", "configMap": {"name": _metadata(config, target, "-campaign")["name"]}},
        {"name": "store", "persistentVolumeClaim": {"claimName": target.claim}},
        # Ray's object store; without it a pod has 64 MiB.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]
    return {"containers": [container], "volumes": volumes}


def placement_note(config: CampaignConfig) -> str | None:
    """Say how engines stay off the pods of a learner on several nodes, unless the campaign does."""
    policy, engines = config.policy, config.rollouts
    if policy.nodes == 1 or (policy.resources.custom and engines.resources.custom):
        return None
    return (
        f"engines may take room on the {policy.nodes} pods of the learner, which then wait for each other; "
        "keep them apart with policy.resources.custom: {learner: 1} and rollouts.resources.custom: "
        "{engine: 1}"
    )


def to_yaml(manifests: Sequence[Mapping[str, Any]], notes: str) -> str:
    """Join manifests to a stream for ``kubectl apply -f -``, with the notes as comments at its top."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of several lines as they are."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    head = "".join(f"# {line}\n" for line in notes.splitlines())
    return head + "---\n".join(
        yaml.dump(dict(manifest), Dumper=Dumper, sort_keys=False, width=1000)
        for manifest in manifests
    )
