"""CRDs of a cluster: our extract in the form of a CRD says what the extract says, and an operator that is
older, broken or missing is noticed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from launch.cli import app
from launch.kubernetes.crds import closed, load_crds
from launch.kubernetes.schema import Crds, check_manifest, identity, problems
from rollouts.errors import UserError
from tests.unit.manifests import Manifest, campaign, changed, crd, keys, leaves, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a Helm chart has it, and a file beside them that is none of ours."""
    folder = tmp_path_factory.mktemp("crds")
    for kind in ("RayJob", "RayCronJob"):
        path = folder / f"ray.io_{kind.lower()}s.yaml"
        path.write_text(yaml.safe_dump(crd(kind)))
    (folder / "values.yaml").write_text("image: {tag: v1.7.0}\n")
    return folder


@pytest.fixture(scope="module")
def crds(folder: Path) -> Crds:
    return load_crds(folder)


def job() -> Manifest:
    return made("rayjob")[1]


def test_what_is_read(folder: Path, crds: Crds) -> None:
    assert set(crds) == {("ray.io/v1", "RayJob"), ("ray.io/v1", "RayCronJob")}
    one = crds["ray.io/v1", "RayJob"]
    assert (one.generator, one.path) == ("v0.16.5", folder / "ray.io_rayjobs.yaml")
    assert set(load_crds(one.path)) == {("ray.io/v1", "RayJob")}


def test_what_kubectl_prints(tmp_path: Path, crds: Crds) -> None:
    listed = {"kind": "List", "apiVersion": "v1", "items": [crd("RayJob"), crd("RayCronJob")]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert set(load_crds(tmp_path)) == set(crds)


def test_what_is_rendered_fits(crds: Crds) -> None:
    for kind in ("rayjob", "raycronjob", "cronjob"):
        for manifest in made(kind):
            check_manifest(manifest, crds)


def doubled(parent: Any, key: str) -> None:
    parent[key * 2] = parent.pop(key)


def mutations(manifest: Manifest) -> Iterator[Manifest]:
    """Every field missing, every field misspelt, every leaf of another type."""
    for place in keys(manifest):
        yield changed(manifest, place, lambda parent, key: parent.pop(key))
        yield changed(manifest, place, doubled)
    for place, _ in leaves(manifest):
        for wrong in (7, "7"):
            yield changed(manifest, place, partial(put, wrong))


def put(value: Any, parent: Any, key: Any) -> None:
    parent[key] = value


def test_the_crd_and_the_extract_say_the_same(crds: Crds) -> None:
    manifest = job()
    seen = set()
    for broken in mutations(manifest):
        if identity(broken) != identity(manifest):
            continue
        by_extract = [str(problem) for problem in problems(broken)]
        by_crd = [str(problem) for problem in problems(broken, crds)]
        assert by_extract == by_crd
        seen.add(bool(by_crd))
    assert seen == {True, False}


Change = Callable[[Any], None]
"""Of a RayJob's whole schema, as another version of the operator may have it."""


def spec(schema: Any) -> Any:
    return schema["properties"]["spec"]["properties"]


def cluster(schema: Any) -> Any:
    return spec(schema)["rayClusterSpec"]["properties"]


def auth(schema: Any) -> Any:
    return cluster(schema)["authOptions"]["properties"]


OTHER_OPERATORS: dict[str, tuple[Change, str]] = {
    "1.5.0: no token": (lambda s: cluster(s).pop("authOptions"), "no field 'authOptions'"),
    "1.5.1: no secret": (lambda s: auth(s).pop("secretName"), "no field 'secretName'"),
    "another name": (lambda s: spec(s).update(run=spec(s).pop("entrypoint")), "'entrypoint'"),
    "another type": (lambda s: spec(s).update(backoffLimit={"type": "string"}), "only a string"),
    "a new field": (lambda s: s["properties"]["spec"].update(required=["queue"]), "'queue'"),
    "other modes": (lambda s: spec(s)["submissionMode"].update(enum=["HTTPMode"]), "HTTPMode"),
    "a lower bound": (lambda s: spec(s)["backoffLimit"].update(maximum=0), "maximum"),
    "no list": (lambda s: cluster(s).update(workerGroupSpecs={"type": "object"}), "an object"),
}


@pytest.mark.parametrize("name", OTHER_OPERATORS)
def test_another_operator_is_noticed(tmp_path: Path, name: str) -> None:
    change, said = OTHER_OPERATORS[name]
    other = crd("RayJob")
    change(other["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    path = tmp_path / "crd.yaml"
    path.write_text(json.dumps(other))
    with pytest.raises(UserError) as caught:
        check_manifest(job(), load_crds(path))
    assert said in caught.value.what
    assert caught.value.cause == f"{path} is not of KubeRay v1.7.0, for which this is written"


def test_a_newer_operator_takes_what_the_extract_does_not_know(tmp_path: Path) -> None:
    newer = crd("RayJob")
    spec(newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"])["queue"] = {"type": "string"}
    (tmp_path / "crd.yaml").write_text(json.dumps(newer))
    manifest = job()
    manifest["spec"]["queue"] = "night"
    assert problems(manifest, load_crds(tmp_path)) == []
    (problem,) = problems(manifest)
    assert problem.what == "no field 'queue' there"


def test_a_field_with_a_default_may_be_left_out(crds: Crds) -> None:
    manifest = job()
    for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        del group["minReplicas"], group["maxReplicas"]
    assert problems(manifest, crds) == []


def test_rules_that_only_the_server_evaluates_are_listed(crds: Crds) -> None:
    one = crds["ray.io/v1", "RayJob"]
    manifest = job()
    assert one.not_evaluated(manifest) == []
    manifest["spec"]["managedBy"] = "ray.io/kuberay-operator"
    assert one.not_evaluated(manifest) == [], "there is no old object to compare with"
    manifest["spec"]["deletionStrategy"] = {}
    (listed,) = one.not_evaluated(manifest)
    assert listed.startswith("spec.deletionStrategy: ((has(self.onSuccess)")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": "x"}, {"b": "x"}),
        ({"type": "object"}, {}, {"a": 1}),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": "1"}),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, {"a": 1}, []),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True,
          "properties": {"a": {"type": "object"}}}, {"b": 1, "a": {}}, {"a": {"pruned": 1}}),
        ({"x-kubernetes-preserve-unknown-fields": True, "minItems": 1}, [1, {"a": None}], []),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}],
          "pattern": "^[0-9]+$"}, 5, "five"),
        ({"x-kubernetes-int-or-string": True}, "5", 5.5),
        ({"type": "string", "nullable": True}, None, 1),
        ({"type": "string", "nullable": True, "enum": ["a"]}, None, "b"),
        ({"type": "string"}, "", None),
        ({"type": "integer", "format": "int32"}, 2**31 - 1, 2**31),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 1, 0),
        ({"type": "integer", "maximum": 3}, 3, 4),
        ({"type": "boolean"}, True, "true"),
        ({"type": "integer"}, 1, True),
        ({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
         ["a", "b"], ["a", "a"]),
        ({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string"}, "b": {"type": "string", "default": "x"}}}, {"a": "x"}, {"b": "x"}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
          "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": "x"}, {"a": "x", "b": "x"}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
          "not": {"properties": {"a": {"enum": ["x"]}}, "required": ["a"]}},
         {"a": "y", "b": ""}, {"a": "x"}),
        ({"type": "object", "x-kubernetes-embedded-resource": True,
          "properties": {"spec": {"type": "object"}}},
         {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}, {"spec": {}}),
    ],
)  # fmt: skip
def test_what_a_structural_schema_means(schema: Any, good: Any, bad: Any) -> None:
    before = copy.deepcopy(schema)
    validator = Draft202012Validator(closed(schema))
    assert validator.is_valid(good)
    assert not validator.is_valid(bad)
    assert schema == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "cannot be read"),
        ("image: {tag: v1}", "no CustomResourceDefinition in"),
        ("kind: CustomResourceDefinition\nspec: {group: ray.io}", "without 'versions'"),
        ("just words", "no object of Kubernetes"),
        ("kind: List\nitems: [words]", "no object of Kubernetes"),
        ("kind: List", "no CustomResourceDefinition in"),
    ],
)
def test_what_is_no_crd(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_crds(tmp_path)


def test_a_version_that_is_not_served_is_not_there(tmp_path: Path) -> None:
    old = crd("RayJob")
    old["spec"]["versions"][0]["served"] = False
    (tmp_path / "x.yaml").write_text(json.dumps(old))
    with pytest.raises(UserError, match="no CustomResourceDefinition"):
        load_crds(tmp_path)


def keel(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["k8s", *map(str, words)])


def test_render_asks_the_cluster_too(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(campaign())
    words = ("render", path, "--image", "keel:1", "--crds")
    assert keel(*words, folder).exit_code == 0
    only_jobs = folder / "ray.io_rayjobs.yaml"
    assert keel(*words, only_jobs).exit_code == 0
    schedule = ("--kind", "raycronjob", "--schedule", "0 3 * * *")
    missing = keel(*words, only_jobs, *schedule).exception
    assert isinstance(missing, UserError)
    assert "none of the CRDs is that of RayCronJob" in missing.what
    assert "kubectl get crd raycronjobs.ray.io" in str(missing.remedy)
    plain = keel(*words, only_jobs, "--kind", "cronjob", "--schedule", "0 3 * * *")
    assert plain.exit_code == 0, "a CronJob needs no CRD"


def test_check_says_everything_that_is_wrong(tmp_path: Path, folder: Path) -> None:
    config_map, manifest = made("rayjob")
    good = tmp_path / "job.yaml"
    good.write_text(yaml.safe_dump_all([config_map, manifest]))
    run = keel("check", good, "--crds", folder)
    assert run.exit_code == 0
    crd_of_jobs = folder / "ray.io_rayjobs.yaml"
    assert run.stdout.splitlines()[1].endswith(f"fits ({crd_of_jobs} (controller-gen v0.16.5))")
    manifest["spec"]["entrypont"] = manifest["spec"].pop("entrypoint")
    manifest["spec"]["suspend"] = "no"
    good.write_text(yaml.safe_dump(manifest))
    run = keel("check", good)
    assert run.exit_code == 2
    head, *said = run.stdout.splitlines()
    assert head == f"{good}: RayJob keel-nightly-v1-0: 2 wrong (KubeRay v1.7.0)"
    assert said == [
        "  spec: no field 'entrypont' there; did you mean 'entrypoint'?",
        "  spec.suspend: 'no' cannot stand there, only a boolean",
    ]
    listed = yaml.safe_load(keel("check", good, "--json").stdout)
    assert [one["where"] for one in listed[0]["problems"]] == ["spec", "spec.suspend"]


def test_check_reads_a_pipe_and_knows_its_kinds(tmp_path: Path) -> None:
    text = yaml.safe_dump(made("cronjob")[1])
    run = CliRunner().invoke(app, ["k8s", "check", "-"], input=text)
    assert (run.exit_code, "CronJob keel-nightly-v1-0: fits" in run.stdout) == (0, True)
    (tmp_path / "x.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\n")
    assert "nothing is known of kind Deployment in apps/v1" in str(
        keel("check", tmp_path / "x.yaml").exception
    )
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert "there is no manifest in it" in str(keel("check", tmp_path / "x.yaml").exception)
