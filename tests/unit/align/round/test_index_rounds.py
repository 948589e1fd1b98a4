"""Whole rounds that change the index of documents, the weights, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.retrieval.index import DocumentIndex, read_index
from align.data.retrieval.record import IndexRecord, PartScores, index_of_report
from align.report.documents import documents_of
from align.report.explanation.explain import explain
from align.report.forecast.check import check_campaign
from align.report.forecast.forecast import forecast
from align.report.records.history import detail
from align.store.repairs import repairs_of
from align.store.snapshots.snapshots import SnapshotStore
from rollouts.engines.protocol import (
    RolloutEngine,
    SampleRequest,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.errors import UserError
from tests.unit.align.round.test_repair_rounds import ScriptedGate
from tests.unit.align.round.test_retention_rounds import weights
from tests.unit.align.round.test_round import Ran, run
from tests.unit.campaigns import ENFORCE, Starter, Watcher, campaign, rounds
from tests.unit.hf_engine import HFEngine

READ = {"model": "demo://digits", "retrieval": {"template": "{documents} {prompt}", "top_k": 1}}
GENERAL = {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 8}
SMALL: dict[str, Any] = {"policy": READ, "suites": [GENERAL]}
FIRST = {"a": "rev max", "b": "inc max max"}
SECOND = {"b": "inc max", "c": "sort max"}


class Listening(HFEngine):
    """An engine that remembers what it was asked, under which weights."""

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        vars(self).setdefault("asked", []).extend(
            (self.versions[-1], r.prompt_ids) for r in requests
        )
        return super().submit(requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        sequences = vars(self).setdefault("sequences", [])
        sequences.extend((self.versions[-1], r.prompt_ids) for r in requests)
        return super().score(requests)

    def sync(self, update: WeightUpdate) -> SyncReport:
        report = super().sync(update)
        if self.versions[-1] == "the weights alone":
            state = self._model.state_dict()
            vars(self).setdefault("alone", []).append({k: v.clone() for k, v in state.items()})
        return report

    def held_alone(self) -> list[dict[str, torch.Tensor]]:
        """Return the weights that were measured without the round's documents."""
        return vars(self).get("alone", [])

    def read(self, beginning: str, kind: str = "asked") -> list[str]:
        """Return the texts of the prompts under weights whose name begins so."""
        tokenizer = build_tokenizer()
        return [
            tokenizer.decode(list(ids))
            for version, ids in vars(self).get(kind, ())
            if version.startswith(beginning)
        ]

    def scored(self, beginning: str) -> list[str]:
        """Return the texts of the prompts whose answers were scored under such weights."""
        return self.read(beginning, "sequences")


class Listeners(Starter):
    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        self.engines.append(Listening(model))
        return self.engines[-1]


def written(path: Path, documents: Mapping[str, str | None]) -> str:
    """Write documents by key into a file, and return its name."""
    rows = [json.dumps({"key": key, "text": text}) for key, text in documents.items()]
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def reading(folder: Path, *changes: Mapping[str, Any], **others: Any) -> CampaignConfig:
    """A campaign of small suites whose rounds have these changes, and read one document at most."""
    specs = [{"suite": {"items": 8}, **change} for change in changes]
    return campaign(folder, rounds=rounds(*specs), **{**SMALL, **others})


def growing(folder: Path) -> CampaignConfig:
    """Three rounds: two documents, one of them overwritten while weights learn, then one forgotten."""
    first, second = written(folder / "a.jsonl", FIRST), written(folder / "b.jsonl", SECOND)
    return reading(
        folder,
        {"steps": 0, "index": first},
        {"steps": 2, "index": second, "prompts": "demo://inc?n=60", "checkpoint_every": 1},
        {"steps": 0, "index": {"forget": "a"}, "prompts": "demo://sort?n=60"},
    )


def start(config: CampaignConfig, watcher: Watcher | None = None) -> Ran:
    starter, watcher = Listeners(), watcher or Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def index_of(ran: Ran, name: str) -> DocumentIndex:
    candidate = ran.candidates[name]
    assert candidate is not None
    index = read_index(SnapshotStore(ran.config.folder).open(candidate).path)
    assert index is not None
    return index


def texts(index: DocumentIndex) -> dict[str, str]:
    return {d.key: d.text for d in index.documents}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The campaign of `growing`, undisturbed. Tests only read it."""
    return start(growing(tmp_path_factory.mktemp("grown")))


def test_each_accepted_round_grows_the_index_of_the_one_before(grown: Ran) -> None:
    assert [r.state for r in grown.evidence.ledger.rounds()] == ["accepted"] * 3
    assert texts(index_of(grown, "round0")) == FIRST
    assert texts(index_of(grown, "round1")) == FIRST | SECOND
    assert texts(index_of(grown, "round2")) == SECOND
    owners = {d.key: d.round for d in index_of(grown, "round1").documents}
    assert owners == {"a": "round0", "b": "round1", "c": "round1"}
    manifest = SnapshotStore(grown.config.folder).manifest(grown.candidates["round1"] or "")
    assert manifest.provenance.extra["index"] == {
        "id": index_of(grown, "round1").id, "documents": 3,
    }  # fmt: skip
    assert {"prompts", "documents"} <= manifest.provenance.data_hashes.keys()


def test_a_round_of_no_steps_keeps_the_weights_bit_for_bit(grown: Ran) -> None:
    base, first = weights(grown, grown.evidence.base), weights(grown, grown.candidates["round0"])
    assert all(torch.equal(first[name], tensor) for name, tensor in base.items())
    assert grown.candidates["round0"] != grown.evidence.base
    second = weights(grown, grown.candidates["round1"])
    assert any(not torch.equal(second[name], tensor) for name, tensor in first.items())


def test_prompts_of_training_and_of_suites_are_read_behind_documents(grown: Ran) -> None:
    """Each snapshot is measured with its own index: ``b`` was overwritten by the second round."""
    (engine,) = grown.starter.engines
    assert isinstance(engine, Listening)
    begins = {
        name: {" ".join(text.split(" = ")[0].split()[:4]) for text in engine.read(name)}
        for name in ("base", "00-round0", "01-round1", "02-round2")
    }
    assert any(text.startswith("rev _") for text in begins["base"])
    assert not any("max rev" in text or "max inc" in text for text in begins["base"])
    assert any(text.startswith("rev max rev _") for text in begins["00-round0"])
    assert any(text.startswith("inc max max inc") for text in begins["00-round0"])
    assert any(text.startswith("inc max inc _") for text in begins["01-round1"])
    assert not any(text.startswith("inc max max") for text in begins["01-round1"])
    assert any(text.startswith("rev _") for text in begins["02-round2"])
    assert any(text.startswith("sort max sort _") for text in begins["02-round2"])


def test_a_person_is_told_what_changed(grown: Ran) -> None:
    lines = [note for note in grown.watcher.notes if ": index " in note]
    assert [line.split(" of ", 1)[1] for line in lines] == [
        "2 documents: 2 added", "3 documents: 1 added, 1 overwritten", "2 documents: 1 forgotten",
    ]  # fmt: skip
    records = [detail(grown.evidence, f"round{n}").documents for n in range(3)]
    assert [r.sentence for r in records if r] == [line.split(": ", 1)[1] for line in lines]
    (story, *_) = [line for line in explain(grown.evidence, "round1").lines() if "reads" in line]
    assert "1 added, 1 overwritten" in story


def test_weights_and_index_are_measured_apart_where_both_change(grown: Ran) -> None:
    """The two pairs that the gate compares have their stored means; the mixed ones were asked for."""
    ledger, names = grown.evidence.ledger, ("round0", "round1", "round2")
    records = {
        name: index_of_report(r.report) for name, r in zip(names, ledger.rounds(), strict=True)
    }
    assert [len(r.parts) if r else None for r in records.values()] == [0, 4, 0]
    stored = {
        name: {e.suite: e.mean for e in ledger.evaluations(snapshot or "")}
        for name, snapshot in grown.candidates.items()
    }
    for scores in getattr(records["round1"], "parts", ()):
        assert scores.both == stored["round1"][scores.suite]
        assert scores.parent == stored["round0"][scores.suite]
    roles = {s.suite: s.role for s in getattr(records["round1"], "parts", ())}
    assert roles == {
        "general": "retention", "round0": "retention", "round1": "target", "round2": "shown",
    }  # fmt: skip
    (engine,) = grown.starter.engines
    assert isinstance(engine, Listening)
    # The parent's weights read the new ``b``, the candidate's the old one.
    assert any(text.startswith("inc max inc _") for text in engine.read("the index alone"))
    assert any(text.startswith("inc max max inc _") for text in engine.read("the weights alone"))
    assert any("round1: " in note and " gained " in note for note in grown.watcher.notes)


@pytest.mark.parametrize(
    ("repair", "parts"), [({"interpolate": {"steps": 1}}, 2), ({"index": True}, 0)]
)
def test_parts_are_those_of_the_candidate_that_was_judged_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repair: dict[str, Any], parts: int
) -> None:
    """A repair changed half as much; one that keeps the documents alone has no parts to compare."""
    ScriptedGate([False, True]).install(monkeypatch)
    change = {"steps": 2, "index": written(tmp_path / "a.jsonl", FIRST), "repair": repair}
    ran = start(reading(tmp_path, change, gate=ENFORCE))
    (record,) = ran.evidence.ledger.rounds()
    documents = index_of_report(record.report)
    first, taken = repairs_of(record.report)
    assert documents is not None and record.candidate == taken.candidate != first.candidate
    assert len(documents.parts) == parts
    stored = {e.suite: e.mean for e in ran.evidence.ledger.evaluations(taken.candidate)}
    assert all(scores.both == stored[scores.suite] for scores in documents.parts)
    engine, halves = ran.starter.engines[0], weights(ran, taken.candidate)
    assert isinstance(engine, Listening)
    alone = engine.held_alone()
    assert len(alone) == (parts > 0)
    for held in alone:
        assert all(torch.equal(held[name], tensor) for name, tensor in halves.items())


def test_documents_of_a_snapshot_can_be_looked_at(grown: Ran) -> None:
    shown = documents_of(grown.evidence, "round1", query=None, limit=2)
    assert (shown.total, [d.key for d in shown.documents]) == (3, ["a", "b"])
    found = documents_of(grown.evidence, "production", query="sort 1?", limit=2)
    assert (found.total, [d.key for d in found.documents]) == (2, ["c"])
    with pytest.raises(UserError, match="'base' reads no documents"):
        documents_of(grown.evidence, "base", query=None, limit=2)


def test_a_part_with_more_gain_is_named() -> None:
    def scores(role: str, weights: float, index: float, both: float) -> PartScores:
        return PartScores(
            suite=role, role=role, parent=0.5, weights=weights, index=index, both=both
        )

    parts = (scores("target", 0.6, 0.9, 0.9), scores("retention", 0.25, 0.5, 0.25))
    record = IndexRecord(id="0" * 64, documents=1, parts=parts)
    assert record.verdict == (
        "both together gained most (weights +0.100, index +0.400, both +0.400); "
        "the index alone kept most (weights -0.250, index +0.000, both -0.250)"
    )
    equal = IndexRecord(id="0" * 64, documents=1, parts=(scores("target", 0.5, 0.5, 0.5),))
    assert equal.verdict == "all three gained the same (weights +0.000, index +0.000, both +0.000)"
    assert IndexRecord(id="0" * 64, documents=1).verdict == ""
    assert "of 1 document:" in equal.sentence


def test_a_round_that_was_stopped_ends_with_the_same_index_and_weights(
    grown: Ran, tmp_path: Path
) -> None:
    config = growing(tmp_path)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        start(config, Watcher(("round1", 0)))
    ran = start(config)
    assert any("goes on from step 1" in note for note in ran.watcher.notes)
    for name, candidate in grown.candidates.items():
        assert index_of(ran, name) == index_of(grown, name)
        ours, theirs = weights(ran, ran.candidates[name]), weights(grown, candidate)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_documents_of_decided_rounds_are_needed_no_more(tmp_path: Path) -> None:
    first = {"steps": 0, "index": written(tmp_path / "a.jsonl", FIRST)}
    start(reading(tmp_path, first))
    Path(first["index"]).unlink()
    late = {"steps": 0, "index": written(tmp_path / "d.jsonl", {"d": "cmp 1"})}
    config = reading(tmp_path, first, {**late, "prompts": "demo://cmp?n=60"})
    check_campaign(config)
    assert texts(index_of(start(config), "round1")) == {**FIRST, "d": "cmp 1"}


def test_a_dense_index_is_searched_by_the_base_and_keeps_its_vectors(tmp_path: Path) -> None:
    """The base's hidden states tell reversals from sums; a second run encodes nothing again."""
    retrieval = {**READ["retrieval"], "method": "dense", "layer": 1}
    file = written(tmp_path / "a.jsonl", {"r": "rev _ 9 9 9 9 9 =", "i": "inc _ 9 9 9 9 9 ="})
    ran = start(
        reading(
            tmp_path,
            {"steps": 0, "index": file},
            policy={"model": "demo://digits", "retrieval": retrieval},
        )
    )
    (engine,) = ran.starter.engines
    assert isinstance(engine, Listening)
    asked = [text for text in engine.read("00-round0") if text.count("=") == 2]
    assert asked
    assert all(text.startswith("rev _ 9 9 9 9 9 = rev") for text in asked if " rev _" in text[3:])
    folder = SnapshotStore(ran.config.folder).open(ran.candidates["round0"] or "").path
    vectors = load_file(folder / "retrieval/vectors.safetensors")["vectors"]
    assert vectors.shape[0] == 2
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_examples_of_a_file_are_learnt_and_measured_behind_documents(tmp_path: Path) -> None:
    """A round of demonstrations: engines score held-out answers behind the documents of their prompts."""
    rows = [
        {"prompt": f"rev _ {i % 10} {i // 10} 1 2 3 =", "completion": f" 3 2 1 {i // 10} {i % 10}"}
        for i in range(60)
    ]
    demos = tmp_path / "demos.jsonl"
    demos.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = start(
        reading(
            tmp_path,
            {
                "algorithm": "sft", "prompts": None, "rewards": [],
                "data": {"source": str(demos), "heldout": 0.3},
                "index": written(tmp_path / "a.jsonl", FIRST),
            },
        )
    )  # fmt: skip
    (engine,) = ran.starter.engines
    assert isinstance(engine, Listening)
    plain, read = (
        [text for text in engine.scored(version) if "rev _" in text]
        for version in ("base", "00-round0")
    )
    assert plain and all(text.startswith("rev _") for text in plain)
    assert len(read) >= 8 and all(text.startswith("rev max rev _") for text in read)


def test_a_rejected_index_leaves_production_with_the_one_before(tmp_path: Path) -> None:
    """A document that spoils every answer of the general suite is refused by the gate."""
    file = written(tmp_path / "a.jsonl", {"spoils": " ".join(["copy cmp max"] * 9 + ["_ ="])})
    ran = run(reading(tmp_path, {"steps": 0, "index": file}, gate={**ENFORCE, "min_gain": 0.0}))
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "rejected"
    assert ran.evidence.ledger.alias("production") == ran.evidence.base


def test_a_campaign_is_checked_and_planned_without_a_step(tmp_path: Path) -> None:
    config = growing(tmp_path)
    check_campaign(config)
    planned = forecast(config)
    assert [r.steps for r in planned.rounds] == [0, 2, 0]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"add": "gone.jsonl"}, "gone.jsonl"),
        ({"forget": "zzz"}, "no earlier round adds a document with the key 'zzz'"),
        ({"add": "gone.jsonl", "forget": "all"}, "gone.jsonl"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, index: dict[str, Any], words: str
) -> None:
    config = reading(tmp_path, {"steps": 0, "index": index})
    with pytest.raises(UserError, match=words) as raised:
        check_campaign(config)
    assert "rounds.0.index" in str(raised.value)
