"""Exported snapshots: ordinary folders, whole or absent, with a card that hides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import yaml

from align.config.retrieval.settings import RetrievalConfig
from align.data.demo import BASE_MODEL
from align.data.retrieval.documents import IndexedDocument
from align.data.retrieval.index import DocumentIndex, read_index
from align.errors import SnapshotError
from align.gate.evidence import Evidence
from align.gate.verdict import Verdict
from align.report.export import export as module
from align.report.export.export import export, find, licence_of
from align.report.families import passed_lines
from align.store.snapshots.snapshots import SnapshotKind
from rollouts.errors import UserError
from tests.unit.campaigns import ENFORCE, raw_campaign, rounds
from tests.unit.stores import BETTER, GOOD, HARMFUL, made

INDEX = DocumentIndex(
    settings=RetrievalConfig(),
    documents=(IndexedDocument(key="fr", text="Paris is in France.", round="first"),),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Three rounds: accepted, rejected, accepted."""
    return made(tmp_path_factory.mktemp("export"), GOOD, HARMFUL, BETTER)


def write(store: Evidence, which: str, folder: Path, **options: bool) -> Path:
    export(store, which, folder, **{"merge": False, "force": False, **options})
    return folder


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_production_is_the_snapshot_and_its_card(store: Evidence, tmp_path: Path) -> None:
    folder = write(store, "production", tmp_path / "deep/out")
    assert {path.name for path in folder.iterdir()} == {"config.json", "README.md"}
    assert json.loads((folder / "config.json").read_text()) == {"made_by": "round2"}
    (folder / "config.json").write_text("{}")  # Not read-only as in the store.
    front, body = card(folder)
    assert front == {
        "base_model": "demo://digits",
        "library_name": "transformers",
        "tags": ["keel", "alignment"],
    }
    assert "not accepted" not in body
    rows = [line.split(" | ")[0] for line in body.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row in ("| base", "| round0", "| round1", "| round2")] == [
        "| base", "| round0", "| round2",  # lineage: the rejected round is no ancestor
        "| round0", "| round1", "| round2",  # the gate's suites, once per distinct comparator
        "| round0", "| round2",  # data
    ]  # fmt: skip
    assert "exact_match × 1" in body.replace("\\", "")
    assert "prompts dddddddddddddddd" in body
    assert store.config.hash() in body
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_the_same_by_round_and_by_id(store: Evidence, tmp_path: Path) -> None:
    production = store.ledger.alias("production")
    assert production is not None
    assert find(store, "production") == find(store, "round2") == find(store, production[:8])
    assert find(store, "base") == store.base
    cards = [write(store, w, tmp_path / w) / "README.md" for w in ("round2", production[:12])]
    assert cards[0].read_text() == cards[1].read_text()


def test_the_start_has_a_card_too(store: Evidence, tmp_path: Path) -> None:
    _, body = card(write(store, "base", tmp_path / "out"))
    assert "The start of a campaign meets no gate." in body
    assert "No round has trained this snapshot." in body


def test_what_was_rejected_goes_out_only_by_force(store: Evidence, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not accepted") as caught:
        write(store, "round1", tmp_path / "out")
    assert "--force" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    _, body = card(write(store, "round1", tmp_path / "out", force=True))
    assert "> **This snapshot was not accepted (state: rejected).**" in body
    assert "general: 50.0 points lost" in body
    assert "regressed" in body


def with_rates(name: str, verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict, with answers held to margins of rates as well."""
    first = next(check for check in verdict["checks"] if check["role"] == "retention")
    rates = [{**first, "what": what, "also": ()} for what in ("truncation", "failure")]
    return {**verdict, "checks": [*verdict["checks"], *rates]}


def test_rates_of_cut_and_failed_answers_stand_apart(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD, BETTER, report=with_rates)
    _, body = card(write(store, "production", tmp_path / "out"))
    gate = body.partition("## What the gate said")[2].partition("\n## ")[0]
    scores, rates = gate.split("### Answers that were cut or have no score")
    parts = [
        [line.split(" | ")[1] for line in part.splitlines() if line.startswith("| ")]
        for part in (scores, rates)
    ]
    heads = ["part", "---"]
    assert set(parts[0]) - {*heads, "target", "retention", "shown"} == set()
    assert parts[0].count("retention") >= 1
    assert parts[1] == [*heads, "answers not cut", "answers with a score"]
    verdict = Verdict.from_dict(store.committed()[-1].report or {})
    (line,) = passed_lines(verdict.checks)
    assert line.endswith(" (2 of them on answers that are cut or have no score)")
    (plain,) = passed_lines(check for check in verdict.checks if check.what == "value")
    assert plain.endswith("retention checks passed")


def test_a_snapshot_without_rates_has_no_section_of_them(store: Evidence, tmp_path: Path) -> None:
    _, body = card(write(store, "production", tmp_path / "out"))
    assert "Answers that were cut" not in body


def test_an_observing_gate_is_named(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD, HARMFUL, gate={"mode": "observe"})
    _, body = card(write(store, "round1", tmp_path / "out"))
    assert "accepted by an observing gate (would be: rejected)" in body


@pytest.mark.parametrize("which", ["nonsense", "roundd1", "", "0", "ffffffffff"])
def test_unknown_snapshots(store: Evidence, tmp_path: Path, which: str) -> None:
    with pytest.raises(UserError, match="there is no snapshot"):
        write(store, which, tmp_path / "out")


def test_nothing_is_overwritten(store: Evidence, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(store, "production", tmp_path / "empty")
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(UserError, match="is there already"):
            write(store, "production", tmp_path / name)
    assert file.read_text() == "mine"


def test_a_failure_leaves_nothing(
    store: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "copy_contained", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write(store, "production", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_snapshot_is_not_exported(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD)
    path = store.folder / "snapshots" / find(store, "production") / "config.json"
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(SnapshotError):
        write(store, "production", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_are_no_markup(tmp_path: Path) -> None:
    changes = {"rewards": [{"name": "evil|<script>.py:[f](x)`"}]}
    store = made(tmp_path, GOOD, rounds=rounds(changes))
    text = (write(store, "production", tmp_path / "out") / "README.md").read_text()
    assert "<script>" not in text
    assert "evil\\|&lt;script&gt;.py:\\[f\\](x)\\` × 1" in text


def test_no_path_of_a_machine_is_in_a_card(tmp_path: Path) -> None:
    model = tmp_path / "models/mine"
    model.mkdir(parents=True)
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    store = made(
        tmp_path,
        GOOD,
        policy={"model": str(model)},
        rounds=rounds({"prompts": str(tmp_path / "secret/prompts.jsonl")}),
    )
    front, body = card(write(store, "production", tmp_path / "out"))
    assert (front["base_model"], front["license"]) == ("mine", "apache-2.0")
    assert str(tmp_path) not in body
    assert "data prompts.jsonl | not recorded" in body


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\n- list\n---\n", "---\nx: [\n---\n"]
)
def test_a_licence_that_is_not_known_is_not_made_up(tmp_path: Path, text: str) -> None:
    assert licence_of(tmp_path) == "not recorded"
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == "not recorded"


# adapters


def adapter_store(folder: Path) -> Evidence:
    """The tiny world's base, and a round whose candidate is an adapter with a random update."""

    def files(at: Path, name: str | None) -> SnapshotKind:
        import torch
        from transformers import AutoModelForCausalLM

        from align.config.campaign import LoraConfig
        from align.learner.model.adapter import save_adapter, with_adapter

        for file in BASE_MODEL.iterdir():
            if file.suffix == ".json" or name is None:
                copy(file, at)
        if name is None:
            return "model"
        (at / "config.json").unlink()
        torch.manual_seed(0)
        model = with_adapter(AutoModelForCausalLM.from_pretrained(BASE_MODEL), LoraConfig(rank=2))
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
        save_adapter(model, at)
        INDEX.write(at)
        return "adapter"

    return made(folder, GOOD, write=files)


def test_adapters_stay_adapters_or_become_models(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store = adapter_store(tmp_path)
    plain = write(store, "production", tmp_path / "adapter")
    merged = write(store, "production", tmp_path / "merged", merge=True)
    config = json.loads((plain / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo://digits"
    assert card(plain)[0]["library_name"] == "peft"
    assert card(merged)[0]["library_name"] == "transformers"
    assert not (merged / "adapter_config.json").exists()
    assert read_index(plain) == read_index(merged) == INDEX

    base = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = base(ids).logits
    expected = PeftModel.from_pretrained(base, str(plain))(ids).logits
    found = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(merged).vocab_size > 0


def test_a_whole_model_has_nothing_to_merge(store: Evidence, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        write(store, "production", tmp_path / "out", merge=True)


# the command


def test_the_command_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch import cli

    changes: dict[str, Any] = {
        "rounds": rounds({}, {}),
        "gate": ENFORCE,
    }
    made(tmp_path, GOOD, HARMFUL, **changes)
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(raw_campaign(tmp_path, **changes)))

    def keel(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["keel", "export", str(file), *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capsys.readouterr()
        return int(caught.value.code or 0), out + error

    code, said = keel("production", "--to", str(tmp_path / "out"))
    assert code == 0 and "README.md" in said
    code, said = keel("round1", "--to", str(tmp_path / "forced"))
    assert code == 2 and "add --force" in said
    assert keel("round1", "--to", str(tmp_path / "forced"), "--force")[0] == 0
