"""Manifests: three golden files, what stands in them, and what makes none.

After a change on purpose, then read the diff:
``KEEL_WRITE_GOLDEN=1 pytest tests/unit/launch/kubernetes/test_kubernetes.py``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from align.config.campaign import CampaignConfig
from launch.cli import app
from launch.kubernetes.render import ManifestKind, Target, placement_note, render
from rollouts.errors import UserError

GOLDEN = Path(__file__).parents[2] / "data" / "kubernetes"
CAMPAIGN = """\
name: nightly_v1.0
policy: {model: demo://digits, ranks: RANKS, threads: 3}
store: /shared/nightly
rollouts:
  engines: 2
  resources: {cpus: 1.5, custom: {a100: 1}}
rounds:
  - {name: reverse, prompts: demo://rev, rewards: [exact_match], steps: 2}
"""
OPTIONS: dict[ManifestKind, list[str]] = {
    "rayjob": ["--gpus", "--env", "JUDGE_API_KEY", "--namespace", "research"],
    "raycronjob": ["--schedule", "0 3 * * *", "--time-zone", "Europe/Berlin"],
    "cronjob": ["--schedule", "*/10 * * * *", "--gpus", "--env", "JUDGE_API_KEY"],
}


def campaign(ranks: int = 1) -> str:
    return CAMPAIGN.replace("RANKS", str(ranks))


PLACED = """\
  - name: act
    prompts: demo://rev
    environment: desk.py:Desk
    episode: {workers: 2, resources: {cpus: 0.5, custom: {desk: 1}}}
    steps: 2
"""
"""A further round whose environments are placed on nodes."""


def rendered(folder: Path, kind: ManifestKind, *options: str, ranks: int = 1) -> str:
    path = folder / "nightly.yaml"
    path.write_text(campaign(ranks))
    words = ["k8s", "render", str(path), "--kind", kind, "--image", "registry.example/keel:1"]
    run = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def manifests(
    folder: Path, kind: ManifestKind, *options: str, ranks: int = 1
) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(rendered(folder, kind, *options, ranks=ranks)))


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_golden(tmp_path: Path, kind: ManifestKind) -> None:
    text = rendered(tmp_path, kind, *OPTIONS[kind], ranks=2 if kind == "rayjob" else 1)
    golden = GOLDEN / f"{kind}.yaml"
    if os.environ.get("KEEL_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_campaign_travels_as_it_is(tmp_path: Path) -> None:
    config_map, job = manifests(tmp_path, "rayjob")
    assert config_map["data"]["campaign.yaml"] == campaign()
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "campaign", "configMap": {"name": config_map["metadata"]["name"]}} in volumes
    changed, _ = manifests(tmp_path, "rayjob", "--set", "rounds.0.steps=7")
    assert yaml.safe_load(changed["data"]["campaign.yaml"])["rounds"][0]["steps"] == 7


def test_a_learner_of_one_process_takes_the_heads_gpu(tmp_path: Path) -> None:
    def gpus(ranks: int) -> list[str | None]:
        _, job = manifests(tmp_path, "rayjob", "--gpus", ranks=ranks)
        cluster = job["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        pods = [group["template"]["spec"]["containers"][0] for group in groups]
        return [pod["resources"]["limits"].get("nvidia.com/gpu") for pod in pods]

    assert gpus(1) == ["1", "1"]
    assert gpus(2) == [None, "1", "2"]


def test_only_the_driver_gets_secrets_and_only_by_name(tmp_path: Path) -> None:
    _, job = manifests(tmp_path, "rayjob", "--env", "JUDGE_API_KEY", ranks=2)
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    secret = {"name": "keel-env", "key": "JUDGE_API_KEY"}
    assert {"name": "JUDGE_API_KEY", "valueFrom": {"secretKeyRef": secret}} in head
    workers = [g["template"]["spec"]["containers"][0]["env"] for g in cluster["workerGroupSpecs"]]
    assert all("JUDGE_API_KEY" not in str(one) for one in workers)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "keel-ray-token"}


def test_what_the_pods_offer_holds_what_the_campaign_asks(tmp_path: Path) -> None:
    from launch.cluster.preflight import ClusterNode, demands_of, problems

    nodes_of_ranks = "ranks: 8, ranks_per_node: 4"
    divided = "engines: 2\n  tensor_parallel: 2"
    for text in (
        campaign(1) + PLACED,
        campaign(2) + PLACED,
        campaign(2).replace("ranks: 2", nodes_of_ranks).replace("engines: 2", divided),
        campaign(2).replace("engines: 2", f"{divided}\n  executor: ray"),
    ):
        config = CampaignConfig.model_validate(yaml.safe_load(text))
        target = Target(kind="rayjob", image="registry.example/keel:1")
        _, job = render(config, text, target)
        nodes = []
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            start = group["rayStartParams"]
            labels = yaml.safe_load(yaml.safe_load(start.get("resources", '"{}"')))
            total = {"CPU": float(start["num-cpus"]), **labels}
            nodes += [ClusterNode(name="pod", total=total, free=total)] * group["replicas"]
        assert problems(nodes, demands_of(config, gpus=False)) == []


def test_a_learner_on_several_nodes_has_a_pod_on_each(tmp_path: Path) -> None:
    text = campaign(2).replace("ranks: 2", "ranks: 16, ranks_per_node: 8")
    config = CampaignConfig.model_validate(yaml.safe_load(text))
    target = Target(kind="rayjob", image="registry.example/keel:1", gpus=True)
    _, job = render(config, text, target)
    learner = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    assert (learner["groupName"], learner["replicas"]) == ("learner", 2)
    limits = learner["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["cpu"], limits["nvidia.com/gpu"]) == ("8", "8")
    # Engines ask for a100, the ranks for nothing of their own.
    assert "engines may take room on the 2 pods" in (placement_note(config) or "")
    alone = text.replace(
        "ranks_per_node: 8", "ranks_per_node: 8, resources: {custom: {learner: 1}}"
    )
    assert placement_note(CampaignConfig.model_validate(yaml.safe_load(alone))) is None
    with pytest.raises(UserError, match="--kind cronjob has one pod"):
        tick = Target(kind="cronjob", image="registry.example/keel:1", schedule="0 3 * * *")
        render(config, text, tick)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--mount", "/elsewhere"], "is not on the volume"),
        (["--set", "store=runs/x"], "is not on the volume"),
        (["--schedule", "0 3 * * *"], "takes no --schedule"),
        (["--kind", "raycronjob"], "needs a --schedule"),
        (["--kind", "cronjob", "--schedule", "0 25 * * *"], "no cron expression"),
        (["--kind", "cronjob", "--schedule", "0 3 * * 7"], "Sunday is 0"),
        (
            ["--kind", "raycronjob", "--schedule", "0 3 * * *", "--time-zone", "Europe/Berln"],
            "no time zone",
        ),
        (["--env", "KEY=value"], "without a value"),
        (["--image", "no image"], "'no image' cannot stand there"),
        (["--namespace", "No_Such"], "'No_Such' cannot stand there"),
        (["--memory", "lots"], "'lots' cannot stand there"),
        (["--claim", "no_such"], "'no_such' cannot stand there"),
        (["--kind", "cronjob", "--schedule", "0 3 * * 5-7"], "Sunday is 0"),
    ],
)
def test_what_makes_no_manifest(tmp_path: Path, options: list[str], reason: str) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(campaign())
    words = ["k8s", "render", str(path), "--image", "keel:1", *options]
    run = CliRunner().invoke(app, words)
    assert isinstance(run.exception, UserError), run.output
    assert reason in str(run.exception)
    assert run.stdout == ""


def test_a_file_of_this_machine_is_not_in_a_pod() -> None:
    config = CampaignConfig.model_validate(yaml.safe_load(campaign()))
    target = Target(kind="rayjob", image="keel:1")
    with pytest.raises(UserError, match="a pod would not find it") as caught:
        render(config, campaign(), target, files=[("rounds.0.prompts", Path("prompts.jsonl"))])
    assert caught.value.where == "rounds.0.prompts"


def test_a_tick_with_nothing_to_do_is_no_failure(tmp_path: Path) -> None:
    from launch.commands.schedule import NOTHING_DUE

    _, job = manifests(tmp_path, "cronjob", "--schedule", "0 3 * * *")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    shell, flag, line = pod["command"]
    assert (shell, flag) == ("sh", "-c")
    for code, expected in ((0, 0), (NOTHING_DUE, 0), (1, 1), (3, 1)):
        stand_in = line.replace("keel schedule", f"sh -c 'exit {code}' keel schedule")
        assert subprocess.run(["sh", "-c", stand_in]).returncode == expected


def test_checking_is_left_to_the_cluster() -> None:
    run = CliRunner().invoke(app, ["k8s", "check", "nightly-job.yaml", "--crds", "crds.yaml"])
    assert isinstance(run.exception, UserError), run.output
    assert run.exception.remedy == "kubectl apply --dry-run=server -f nightly-job.yaml"
