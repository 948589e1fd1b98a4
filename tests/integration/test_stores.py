"""A store in a bucket and a ledger on a server, both real: what one machine did another goes on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import RunError, SnapshotError, UserError
from align.gate.evidence import stored_evidence
from align.store.ledger.ledger import Ledger
from align.store.remote import Remote
from align.store.snapshots.manifest import Provenance
from align.store.snapshots.snapshots import SnapshotStore
from tests.integration.servers import postgres_server, s3_server
from tests.patience import patient
from tests.unit.campaigns import Starter, Watcher, no_engine, raw_campaign
from tests.unit.decided import keel
from tests.unit.ledgers import python

PROVENANCE = Provenance(kind="model", round="first")
FILES = {"a.safetensors": b"\x01" * 300_000, "config.json": b"{}", "tokenizer.json": b"[]"}
BUCKET = "keel"


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    """A server with one bucket; its credentials are in the environment, as they should be."""
    s3fs = pytest.importorskip("s3fs")
    keys = {"AWS_ACCESS_KEY_ID": "here", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
    with s3_server() as found, pytest.MonkeyPatch.context() as environment:
        for name, value in {**keys, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem(endpoint_url=found).mkdir(BUCKET)
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as found:
        yield found


def far(endpoint: str, prefix: str) -> Remote:
    return Remote(f"s3://{BUCKET}/{prefix}", {"endpoint_url": endpoint})


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def test_a_fresh_cache_opens_what_was_published(endpoint: str, tmp_path: Path) -> None:
    published = SnapshotStore(tmp_path / "a", far(endpoint, "open")).publish(write, PROVENANCE)
    opened = SnapshotStore(tmp_path / "b", far(endpoint, "open")).open(published.id)
    assert {name: (opened.path / name).read_bytes() for name in FILES} == FILES


def test_a_flipped_byte_is_refused_and_its_file_named(endpoint: str, tmp_path: Path) -> None:
    remote = far(endpoint, "flipped")
    published = SnapshotStore(tmp_path / "a", remote).publish(write, PROVENANCE)
    path = f"snapshots/{published.id}/a.safetensors"
    remote.write(path, FILES["a.safetensors"][:-1] + b"\x00")
    with pytest.raises(SnapshotError, match=f"{path}: a.safetensors has changed"):
        SnapshotStore(tmp_path / "b", remote).open(published.id)


DYING = """
import os, signal, sys
from pathlib import Path
from align.store.snapshots.manifest import Provenance
from align.store.remote import Remote
from align.store.snapshots.snapshots import SnapshotStore

class Dying(Remote):
    left = 2
    def upload(self, local, path):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().upload(local, path)

def write(folder):
    for name in ("a.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")

remote = Dying(sys.argv[2], {"endpoint_url": sys.argv[1]})
SnapshotStore(Path(sys.argv[3]), remote).publish(write, Provenance(kind="model"))
"""


def test_a_publisher_killed_between_files_leaves_nothing_that_loads(
    endpoint: str, tmp_path: Path
) -> None:
    child = python(DYING, endpoint, f"s3://{BUCKET}/killed", str(tmp_path / "a"))
    assert child.wait(patient(60)) == -signal.SIGKILL
    remote = far(endpoint, "killed")
    there = list(remote.versions("snapshots"))
    assert [name.rpartition("/")[2] for name in there] == ["a.safetensors", "config.json"]
    other = SnapshotStore(tmp_path / "b", remote)
    with pytest.raises(SnapshotError, match="no snapshot"):
        other.open(there[0].split("/")[1])
    assert other.clean() == 1
    assert remote.versions("snapshots") == {}


def alone(folder: Path) -> dict[str, Any]:
    """The small campaign in a folder, with a checkpoint after every step."""
    base = raw_campaign(folder)
    first, second = base["rounds"]
    defaults = {**base["defaults"], "checkpoint_every": 1}
    return base | {"defaults": defaults, "rounds": [{**first, "steps": 1}, second]}


def raw(folder: Path, endpoint: str, ledger: str) -> dict[str, Any]:
    """The same in a bucket and on a server."""
    return alone(folder) | {
        "store": f"s3://{BUCKET}/runs/small",
        "store_options": {"endpoint_url": endpoint},
        "ledger": ledger,
        "cache": str(folder / "cache"),
    }


def test_a_campaign_goes_on_from_machine_to_machine(
    endpoint: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEL_LEDGER", server)
    one, other, third = (
        raw(tmp_path / name, endpoint, "env:KEEL_LEDGER") for name in ("one", "other", "third")
    )
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(
            CampaignConfig.model_validate(one),
            start_engine=Starter(),
            observer=Watcher(stop_at=("second", 0)),
        )
    watcher = Watcher()
    evidence = run_campaign(
        CampaignConfig.model_validate(other), start_engine=Starter(), observer=watcher
    )
    assert "round second goes on from step 1" in watcher.notes
    assert watcher.steps == [("second", 1)]
    assert [r.state for r in evidence.ledger.rounds()] == ["accepted", "accepted"]

    undisturbed = run_campaign(
        CampaignConfig.model_validate(alone(tmp_path / "alone")),
        start_engine=Starter(),
        observer=Watcher(),
    )
    assert [r.candidate for r in evidence.ledger.rounds()] == [
        r.candidate for r in undisturbed.ledger.rounds()
    ]

    path = tmp_path / "third.yaml"
    path.write_text(json.dumps(third))
    code, out, error = keel("status", str(path))
    assert (code, "first" in out, "s3://keel/runs/small" in out) == (0, True, True), error
    for name in ("first", "second"):
        code, out, error = keel("gate", "recompute", str(path), name)
        assert code == 0, error
    fresh = stored_evidence(CampaignConfig.model_validate(third))
    production = fresh.ledger.alias("production")
    assert production is not None
    assert (fresh.store.snapshots.open(production).path / "model.safetensors").is_file()
    again = run_campaign(
        CampaignConfig.model_validate(third), start_engine=no_engine, observer=Watcher()
    )
    assert again.matrix() == evidence.matrix()
    kept = Remote(f"s3://{BUCKET}/runs/small", {"endpoint_url": endpoint}).versions("")
    assert not any("checkpoint" in name or "ledger" in name for name in kept)


def test_a_missing_bucket(endpoint: str) -> None:
    with pytest.raises(UserError, match="no such bucket"):
        Remote("s3://nowhere/prefix", {"endpoint_url": endpoint})


def test_no_credentials(endpoint: str) -> None:
    script = (
        "import sys; from align.store.remote import Remote\n"
        "try: Remote('s3://keel/x', {'endpoint_url': sys.argv[1]})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    said = subprocess.run(
        [sys.executable, "-c", script, endpoint],
        env={**bare, "PYTHONPATH": str(Path(__file__).parents[2]), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True, text=True, timeout=patient(60),
    )  # fmt: skip
    assert "UserError" in said.stdout
    assert "no credentials for this store" in said.stdout


def test_a_store_that_is_not_there() -> None:
    quick = {"connect_timeout": 1, "retries": {"max_attempts": 1}}
    with pytest.raises(RunError, match="the store could not be used") as refused:
        Remote("s3://keel/x", {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": quick})
    assert "hush-hush" not in str(refused.value)


def test_a_ledger_that_is_gone_stops_the_run_before_it_begins(
    endpoint: str, tmp_path: Path
) -> None:
    ledger = "postgresql://keel@127.0.0.1:9/keel"
    config = CampaignConfig.model_validate(raw(tmp_path, endpoint, ledger))
    with pytest.raises(UserError, match="cannot be reached"):
        run_campaign(config, start_engine=no_engine, observer=Watcher())
    with pytest.raises(UserError, match="cannot be reached"):
        Ledger(ledger)
