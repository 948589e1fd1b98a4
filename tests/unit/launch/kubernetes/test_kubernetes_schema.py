"""Every field, key and type of what is rendered: broken one at a time, and each must be noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.render import Kind, Manifest
from launch.kubernetes.schema import KINDS, KUBERAY, KUBERNETES, SCHEMAS, problems, types
from tests.unit import manifests
from tests.unit.manifests import Place, changed, keys, leaves, made

NEEDED = {
    "apiVersion", "kind", "metadata", "spec", "schedule", "jobTemplate", "restartPolicy", "containers",
    "image", "name", "mountPath", "configMap", "persistentVolumeClaim", "claimName", "emptyDir", "key",
    "secretKeyRef", "rayClusterSpec", "rayVersion", "shutdownAfterJobFinishes", "headGroupSpec",
    "template", "groupName",
}  # fmt: skip
"""Fields without which a cluster would not take the manifest, wherever they stand."""
WRONG: dict[type, tuple[Any, ...]] = {
    str: (7, None, []),
    int: ("7", True, 1.5),
    bool: ("true", 1, None),
}
"""Values of another type."""

each_kind = pytest.mark.parametrize("kind", manifests.KINDS)


def each(kind: Kind) -> Iterator[tuple[Manifest, Place]]:
    return ((manifest, place) for manifest in made(kind) for place in keys(manifest))


def refused(manifest: Manifest) -> bool:
    """A kind that is nobody's is refused too, before any schema is asked."""
    try:
        return bool(problems(manifest))
    except Exception as error:
        assert "nothing is known of kind" in str(error)
        return True


@each_kind
def test_what_is_rendered_fits(kind: Kind) -> None:
    assert [problem for manifest in made(kind) for problem in problems(manifest)] == []


@each_kind
def test_every_misspelt_key_is_refused(kind: Kind) -> None:
    """Doubled last letter, and another case: what people do and what the API server drops."""

    def renamed(name: str) -> Any:
        return lambda parent, key: parent.update({name: parent.pop(key)})

    for manifest, place in each(kind):
        for name in (place[-1] + place[-1][-1], place[-1].swapcase()):
            if "/" not in name:  # A domain makes an extended resource of any name.
                assert refused(changed(manifest, place, renamed(name))), (place, name)


@each_kind
def test_a_missing_field_is_refused_if_and_only_if_it_is_needed(kind: Kind) -> None:
    for manifest, place in each(kind):
        missing = changed(manifest, place, lambda parent, key: parent.pop(key))
        assert refused(missing) is (place[-1] in NEEDED), place


@each_kind
def test_every_leaf_of_another_type_is_refused(kind: Kind) -> None:
    for manifest in made(kind):
        for place, value in leaves(manifest):
            is_amount = "resources" in place or place[-1] == "sizeLimit"
            for wrong in WRONG[type(value)]:
                if is_amount and "rayStartParams" not in place and wrong == 7:
                    continue  # A quantity may be a number.
                broken = changed(manifest, place, lambda p, k, wrong=wrong: p.update({k: wrong})
                                 if isinstance(p, dict) else p.__setitem__(k, wrong))  # fmt: skip
                assert refused(broken), (place, wrong)


@each_kind
def test_every_branch_of_another_shape_is_refused(kind: Kind) -> None:
    """A mapping where a list belongs and the other way round."""
    for manifest, place in each(kind):
        found: Any = manifest
        for step in place:
            found = found[step]
        if isinstance(found, dict | list):
            other: Any = [] if isinstance(found, dict) else {}
            broken = changed(manifest, place, lambda p, k, other=other: p.update({k: other}))
            assert refused(broken), place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"submissionMode": "HttpMode"}, "submissionMode: 'HttpMode' cannot stand there"),
        ({"shutdownAfterJobFinishes": False}, "spec: ttlSecondsAfterFinished without"),
        ({"backoffLimit": -1}, "backoffLimit: -1 cannot stand there"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds: 0 cannot stand there"),
        ({"activeDeadlineSeconds": 2**31}, "2147483648 cannot stand there"),
        ({"preRunningDeadlineSeconds": 0}, "preRunningDeadlineSeconds: 0 cannot stand there"),
        ({"managedBy": "me"}, "managedBy: 'me' cannot stand there"),
        ({"entryPoint": "x"}, "spec: no field 'entryPoint' there; did you mean 'entrypoint'?"),
        ({"deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}, "spec.deletionStrategy"),
        (
            {"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}},
            "deletionRules.0.condition",
        ),
    ],
)
def test_what_the_operator_would_refuse(change: dict[str, Any], said: str) -> None:
    _, job = made("rayjob")
    job["spec"].update(change)
    assert said in " ".join(map(str, problems(job)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rayVersion": "2.51.9"}, "token authentication needs rayVersion 2.52.0 or later"),
        ({"rayVersion": None}, "None cannot stand there, only a string"),
        ({"authOptions": {"mode": "password"}}, "authOptions.mode: 'password'"),
        ({"authOptions": {"enableK8sTokenAuth": True}}, "a RayJob cannot use enableK8sTokenAuth"),
        ({"tlsOptions": {"enable": True}}, "did you mean 'enabled'?"),
        ({"autoscalerOptions": {"upscalingMode": "Fast"}}, "upscalingMode: 'Fast'"),
    ],
)
def test_a_cluster_that_the_operator_would_refuse(change: dict[str, Any], said: str) -> None:
    _, job = made("rayjob")
    job["spec"]["rayClusterSpec"].update(change)
    assert said in " ".join(map(str, problems(job)))


@pytest.mark.parametrize(
    ("version", "fits"),
    [("2.52.0", True), ("2.60.0", True), ("2.100.1", True), ("3.0.0", True), ("10.1", True),
     ("2.9.0", False), ("2.5.0", False), ("1.52.0", False), ("latest", False)],
)  # fmt: skip
def test_versions_of_ray_that_know_a_token(version: str, fits: bool) -> None:
    _, job = made("rayjob")
    job["spec"]["rayClusterSpec"]["rayVersion"] = version
    assert (problems(job) == []) is fits


@pytest.mark.parametrize(
    ("schedule", "fits"),
    [
        ("0 3 * * *", True), ("*/10 0-6,12 1 JAN-MAR mon-fri", True), ("0 3 * * 0,3-5", True),
        ("0 3 * * */2", True), ("0 3 * * 7", False), ("0 3 L * *", False), ("0 3 * * 1#2", False),
        ("@daily", False), ("TZ=UTC 0 3 * * *", False), ("0 3 * *", False),
    ],
)  # fmt: skip
def test_schedules_as_kubernetes_reads_them(schedule: str, fits: bool) -> None:
    """robfig/cron's standard parser, in the API server and in the operator alike."""
    for kind in ("cronjob", "raycronjob"):
        _, job = made(kind)
        job["spec"]["schedule"] = schedule
        assert (problems(job) == []) is fits


def test_a_pod_as_people_edit_it() -> None:
    _, job = made("rayjob")
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["nodeSelector"] = {"gpu": "a100"}
    pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    pod["imagePullSecrets"] = [{"name": "registry"}]
    pod["securityContext"] = {"runAsNonRoot": True, "fsGroup": 1000}
    pod["containers"][0] |= {
        "imagePullPolicy": "Always",
        "livenessProbe": {"tcpSocket": {"port": "gcs"}, "periodSeconds": 10},
        "envFrom": [{"configMapRef": {"name": "settings"}}],
    }
    pod["affinity"] = yaml.safe_load("""
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions: [{key: zone, operator: In, values: [a, b]}]
        """)
    assert problems(job) == []
    pod["tolerations"][0]["efect"] = pod["tolerations"][0].pop("effect")
    pod["containers"][0]["livenessProbe"]["periodSeconds"] = "10s"
    first, second = problems(job)
    assert first.what == "'10s' cannot stand there, only an integer"
    assert second.remedy == "did you mean 'effect'?"


def test_one_container_name_and_one_variable_once() -> None:
    _, job = made("rayjob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"].append({"name": "A", "value": "again"})
    (problem,) = problems(job)
    assert problem.what == "'A' stands there twice"


def test_the_extracts_are_whole_and_say_what_they_are_of() -> None:
    for name, source in (("kubernetes.json", KUBERNETES), ("kuberay.json", KUBERAY)):
        comment = json.loads((SCHEMAS / name).read_text())["$comment"]
        assert comment.startswith(source)
    assert "97509c3a7216cf3440af381646560a1885afb53b" in comment
    assert "controller-gen v0.16.5" in comment
    known = types()
    named = {ref.rpartition("/")[2] for ref in _references(known)}
    assert named <= set(known)
    assert set(known) - named == {kind for _, kind in KINDS}, "a definition that nothing refers to"
    for name, one in known.items():
        if one["type"] == "object":
            assert one["additionalProperties"] is False, name
            assert set(one.get("required", ())) <= set(one["properties"]), name


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def test_every_start_parameter_is_an_option_of_ray_start() -> None:
    """KubeRay passes them on as they are, and Ray would end with an error in the pod."""
    found = find_spec("ray")
    assert found is not None and found.origin is not None
    commands = (Path(found.origin).parent / "scripts/scripts.py").read_text()
    cluster = made("rayjob")[1]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert [name for name in group["rayStartParams"] if f'"--{name}"' not in commands] == []
