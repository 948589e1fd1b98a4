"""Rounds that a command trains: a candidate like any other, and every way in which a command can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.errors import RunError
from align.gate.evidence import Evidence
from align.round.inputs import load_inputs
from align.store.store import Store, open_ledger
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, no_engine, raw_campaign

TRAINER = """
import json, os, shutil, sys
from pathlib import Path
from safetensors.numpy import load_file, save_file

parent, output = Path(sys.argv[1]), Path(os.environ["KEEL_OUTPUT"])
for file in parent.iterdir():
    if file.name != "manifest.json":
        shutil.copyfile(file, output / file.name)
tensors = load_file(output / "model.safetensors")
(Path(os.environ["KEEL_ROUND"]) / "seen.json").write_text(json.dumps({
    "environment": sorted(os.environ), "arguments": sys.argv[1:],
    "prompts": Path(os.environ["KEEL_PROMPTS"]).read_text().splitlines(),
}))
CHANGE
save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
"""
SMALL = 'tensors = {n: t * 1.0001 if ".mlp." in n else t for n, t in tensors.items()}'


def write(folder: Path, trainer: str = SMALL, **algorithm: Any) -> CampaignConfig:
    """Write a campaign of one external round and its trainer, and load it."""
    (folder / "train.py").write_text(TRAINER.replace("CHANGE", trainer))
    external = {"name": "external", "command": ["python", "train.py", "{parent}"], **algorithm}
    spec = {"name": "theirs", "algorithm": external, "prompts": "demo://rev?n=60",
            "rewards": ["exact_match"]}  # fmt: skip
    raw = raw_campaign(folder, rounds=[spec])
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(raw))
    return load_campaign(path).config


def run(config: CampaignConfig) -> tuple[Evidence, Watcher]:
    watcher = Watcher()
    return run_campaign(config, start_engine=Starter(), observer=watcher), watcher


def test_a_commands_model_is_a_candidate_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "secret")
    monkeypatch.setenv("WANTED", "1")
    evidence, watcher = run(write(tmp_path, environment=["WANTED"]))
    (record,) = evidence.ledger.rounds()
    assert record.state == "accepted" and record.candidate != evidence.base
    assert evidence.ledger.alias("production") == record.candidate
    snapshot = evidence.store.snapshots.open(record.candidate or "")
    assert snapshot.manifest.provenance.parent == evidence.base
    assert (snapshot.path / "tokenizer.json").is_file()
    verdict = watcher.verdicts["theirs"].verdict
    assert {check.suite for check in verdict.checks} == {"theirs", "general"}
    (seen,) = (tmp_path / "store/rounds").glob("00-theirs/seen.json")
    said = json.loads(seen.read_text())
    assert "SOME_API_TOKEN" not in said["environment"] and "WANTED" in said["environment"]
    assert Path(said["arguments"][0]).name == evidence.base
    assert len(said["prompts"]) == 60
    assert {"prompt", "answer"} <= json.loads(said["prompts"][0]).keys()
    assert not list((tmp_path / "store").rglob("output"))


def test_a_later_round_goes_on_from_it(tmp_path: Path) -> None:
    config = write(tmp_path)
    own = {"name": "ours", "prompts": "demo://inc?n=60", "rewards": ["exact_match"], "steps": 1}
    raw = json.loads((tmp_path / "campaign.yaml").read_text())
    raw["rounds"].append(own)
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw))
    evidence, _ = run(load_campaign(tmp_path / "campaign.yaml").config)
    theirs, ours = evidence.ledger.rounds()
    assert config.rounds[0].steps == 1
    assert ours.parent == theirs.candidate and ours.state == "accepted"


FAILURES = {
    "it fails": ("raise SystemExit('no GPU here')", "exit code 1.*no GPU here"),
    "it is killed": ("os.kill(os.getpid(), 9)", "SIGKILL"),
    "it writes nothing": ("shutil.rmtree(output); output.mkdir(); sys.exit()", "folder is empty"),
    "pickled weights": (
        "(output / 'model.safetensors').unlink(); (output / 'pytorch_model.bin').write_bytes(b'x');"
        "sys.exit()",
        "pickled",
    ),
    "another size": (
        "tensors['model.embed_tokens.weight'] = tensors['model.embed_tokens.weight'][:, :8].copy()",
        "another shape",
    ),
    "not finite": (
        "tensors['model.norm.weight'] = tensors['model.norm.weight'] * float('nan')", "not finite",
    ),
    "a tensor is gone": ("tensors.pop('model.norm.weight')", "lack 1 parameter"),
    "another tokenizer": (
        "file = output / 'tokenizer.json'; content = json.loads(file.read_text());"
        "vocabulary = content['model']['vocab']; name = list(vocabulary)[-1];"
        "vocabulary['other'] = vocabulary.pop(name); file.write_text(json.dumps(content))",
        "another tokenizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("trainer", "said"), FAILURES.values(), ids=FAILURES)
def test_what_a_command_cannot_give_fails_the_round_and_moves_nothing(
    tmp_path: Path, trainer: str, said: str
) -> None:
    config = write(tmp_path, trainer)
    with pytest.raises(RunError, match=f"(?s){said}"):
        run(config)
    evidence = Evidence(store=Store(config.folder, open_ledger(config)), config=config)
    (record,) = evidence.ledger.rounds()
    assert record.state == "failed"
    assert evidence.ledger.alias("production") == evidence.base


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown place": ({"command": ["python", "{outptu}"]}, {}, "did you mean 'output'"),
    "no command": ({"command": []}, {}, "command"),
    "steps": ({}, {"steps": 5}, "takes no learner steps"),
    "an optimizer": ({}, {"optimizer": {"lr": 1e-5}}, "does not use it"),
    "no prompts": ({}, {"prompts": None}, "set prompts"),
    "no rewards": ({}, {"rewards": []}, "set rewards"),
}


@pytest.mark.parametrize(("algorithm", "changes", "said"), BAD.values(), ids=BAD)
def test_a_wrong_round_is_refused_when_the_file_is_read(
    tmp_path: Path, algorithm: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    write(tmp_path)
    raw = json.loads((tmp_path / "campaign.yaml").read_text())
    raw["rounds"][0] |= changes
    raw["rounds"][0]["algorithm"] |= algorithm
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=said):
        load_campaign(tmp_path / "campaign.yaml")


def test_a_program_that_is_not_here_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = write(tmp_path, command=["no-such-trainer", "{output}"])
    with pytest.raises(UserError, match="no program 'no-such-trainer'"):
        load_inputs(config)
    with pytest.raises(UserError, match="no program"):
        run_campaign(config, start_engine=no_engine, observer=Watcher())
    assert not (tmp_path / "store").exists()
