"""Whole rounds under EWC and L2-SP: what an accepted round hands on, and what a rejected one does not."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import ArtifactError, EvidenceError
from align.report.forecast.check import check_campaign
from align.report.forecast.forecast import forecast
from align.store.ledger.amendments import amendments_of
from align.store.ledger.copy import ledger_copy
from align.store.remote import Remote
from align.store.snapshots.snapshots import SnapshotStore
from align.store.store import open_store
from tests.unit.align.round.test_algorithm_adapters import Adapters
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import ENFORCE, Copying, Starter, Watcher, campaign, raw_campaign, rounds

GAMMA = 0.9
EWC: dict[str, Any] = {"name": "ewc", "lambda": 1000.0, "gamma": GAMMA, "samples": 6}
LORA = {"model": "demo://digits", "lora": {"rank": 2, "alpha": 4.0, "serve": "adapter"}}


def campaign_under(folder: Path, retention: list[Any], **changes: Any) -> CampaignConfig:
    """The small campaign, its rounds held by these methods."""
    raw = raw_campaign(folder, **changes)
    raw["defaults"] = {**raw["defaults"], "retention": retention, "checkpoint_every": 1}
    return CampaignConfig.model_validate(raw)


def run(config: CampaignConfig, watcher: Watcher | None = None) -> Ran:
    adapters = config.policy.serves_adapters
    starter, watcher = Adapters() if adapters else Starter(), watcher or Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def artifact(config: CampaignConfig, index: int, name: str, attempt: int = 1) -> Path:
    return config.folder / f"rounds/{index:02d}-{name}/attempt-{attempt}/artifacts/ewc.safetensors"


def fisher(config: CampaignConfig, index: int, name: str, attempt: int = 1) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(artifact(config, index, name, attempt))


def weights(ran: Ran, snapshot: str | None) -> dict[str, Tensor]:
    """Every tensor of a snapshot."""
    from safetensors.torch import load_file

    folder = SnapshotStore(ran.config.folder).open(snapshot or "").path
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


STOPS = (("second", 0), ("second", 1))
"""Steps after which the store of `ewc` and `adapters` is copied."""


def copied_run(folder: Path, retention: list[Any], **changes: Any) -> Ran:
    config = campaign_under(folder, retention, **changes)
    return run(config, Copying(config.folder, folder, *STOPS))


@pytest.fixture(scope="module")
def ewc(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two accepted rounds. Tests only read it."""
    return copied_run(tmp_path_factory.mktemp("ewc"), ["kl_anchors", EWC])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The same with an adapter."""
    return copied_run(tmp_path_factory.mktemp("lora"), [EWC], policy=LORA)


def test_an_accepted_round_leaves_a_fisher_whose_hash_is_on_record(ewc: Ran) -> None:
    files = ewc.evidence.files
    for index, name in enumerate(("first", "second")):
        path = artifact(ewc.config, index, name)
        assert files.hash_of(path) is not None and files.fault_of(path) is None
        tensors = fisher(ewc.config, index, name)
        assert all((tensor >= 0).all() for tensor in tensors.values())
        assert any(tensor.any() for tensor in tensors.values())
    assert any("first: ewc holds nothing yet" in note for note in ewc.watcher.notes)
    assert not any("second: ewc holds nothing" in note for note in ewc.watcher.notes)


def test_the_penalty_acts_from_the_second_round_on(ewc: Ran) -> None:
    assert [line["retention/ewc"] for line in ewc.metrics(0, "first")] == [0.0, 0.0]
    first, second = ewc.metrics(1, "second")
    assert first["retention/ewc"] == 0.0
    assert second["retention/ewc"] > 0.0
    assert {"kl/past/owner", "beta/past/owner"} <= second.keys()


def test_the_fisher_of_rounds_adds_up_and_decays(ewc: Ran, tmp_path: Path) -> None:
    """With gamma 0 the second round learns the same, and leaves its own Fisher alone."""
    alone = run(campaign_under(tmp_path, ["kl_anchors", {**EWC, "gamma": 0.0}]))
    assert alone.metrics(1, "second")[1]["grad_norm"] == ewc.metrics(1, "second")[1]["grad_norm"]
    first, both = fisher(ewc.config, 0, "first"), fisher(ewc.config, 1, "second")
    own = fisher(alone.config, 1, "second")
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, GAMMA * first[name] + own[name])


@pytest.mark.parametrize("stop_at", STOPS)
@pytest.mark.parametrize("kind", ["ewc", "adapters"])
def test_a_round_that_was_killed_ends_where_an_undisturbed_one_does(
    kind: str, stop_at: tuple[str, int], request: pytest.FixtureRequest
) -> None:
    straight: Ran = request.getfixturevalue(kind)
    changes = {"policy": LORA} if kind == "adapters" else {}
    methods = [EWC] if kind == "adapters" else ["kl_anchors", EWC]
    assert isinstance(straight.watcher, Copying)
    config = campaign_under(straight.watcher.copy_after(*stop_at), methods, **changes)
    ran = run(config)
    assert any("goes on from step 1" in note for note in ran.watcher.notes)
    # An adapter's config names the folder of its base, so ids differ from store to store.
    for name, candidate in straight.candidates.items():
        ours, theirs = weights(ran, ran.candidates[name]), weights(straight, candidate)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = fisher(config, 1, "second", 2), fisher(straight.config, 1, "second")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_round_killed_before_its_verdict_leaves_nothing_that_counts(
    ewc: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Fisher was written, the verdict was not: the next attempt makes its own."""
    from align.store.ledger.ledger import Ledger

    config = campaign_under(tmp_path, ["kl_anchors", EWC])

    def die(*_: Any, **__: Any) -> None:
        raise MemoryError("killed")

    monkeypatch.setattr(Ledger, "commit_round", die)
    with pytest.raises(MemoryError):
        run(config)
    monkeypatch.undo()
    assert artifact(config, 0, "first").is_file()
    ran = run(config)
    assert ran.candidates == ewc.candidates
    ours, theirs = fisher(config, 1, "second"), fisher(ewc.config, 1, "second")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_is_held_by_its_factors(adapters: Ran) -> None:
    names = fisher(adapters.config, 1, "second").keys()
    assert names and all("lora_A" in name or "lora_B" in name for name in names)
    assert adapters.metrics(1, "second")[1]["retention/ewc"] > 0.0


def test_a_rejected_round_leaves_no_artifact(tmp_path: Path) -> None:
    """And the round after it is held to the same parent as before."""
    harmful = {"name": "harmful", "optimizer": {"lr": 0.1}}
    specs = rounds(harmful, {"name": "next", "prompts": "demo://inc?n=60"})
    ran = run(campaign_under(tmp_path, [EWC], rounds=specs, gate=ENFORCE))
    assert ran.evidence.ledger.rounds()[0].state == "rejected"
    assert not list(ran.config.folder.glob("rounds/00-harmful/**/artifacts"))
    assert any("next: ewc holds nothing yet" in note for note in ran.watcher.notes)


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_artifact_stops_the_next_round(ewc: Ran, tmp_path: Path, damage: str) -> None:
    copytree(ewc.config.folder, tmp_path / "store")
    specs = [spec.model_dump(mode="json") for spec in ewc.config.rounds]
    third = {**specs[0], "name": "third", "prompts": "demo://sort?n=60", "steps": 1}
    config = campaign_under(tmp_path, ["kl_anchors", EWC], rounds=[*specs, third])
    path = artifact(config, 1, "second")
    if damage == "changed":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    else:
        path.unlink()
    with pytest.raises(EvidenceError, match=r"the file (was changed|is missing)") as error:
        run(config)
    assert str(path) in str(error.value) and "backup" in str(error.value)
    for command in (run, check_campaign, forecast):
        with pytest.raises(
            ArtifactError, match=r"round 'third' goes on from .*the file"
        ) as refusal:
            command(config)
        assert (refusal.value.exit_code, refusal.value.where) == (2, str(path))
    with ledger_copy(config) as ledger:  # What is refused was not written down either.
        assert [record.name for record in ledger.rounds()] == ["first", "second"]
        assert amendments_of(ledger) == []
    assert [r.state for r in ewc.evidence.ledger.rounds()] == ["accepted", "accepted"]


def harm(path: Path, damage: str) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1] if damage == "changed" else []))
    if damage == "removed":
        path.unlink()


def third_round(ewc: Ran, folder: Path) -> tuple[CampaignConfig, Path]:
    """The campaign with a third round to come, its store behind a URL; and the remote file it rests on."""
    copytree(ewc.config.folder, folder / "far")
    (folder / "far/ledger.db").rename(folder / "ledger.db")
    specs = [spec.model_dump(mode="json") for spec in ewc.config.rounds]
    third = {**specs[0], "name": "third", "prompts": "demo://sort?n=60", "steps": 1}
    config = campaign_under(
        folder,
        ["kl_anchors", EWC],
        rounds=[*specs, third],
        store=f"file://{folder / 'far'}",
        cache=str(folder / "cache"),
        ledger=f"sqlite:///{folder / 'ledger.db'}",
    )
    return config, folder / "far" / artifact(config, 1, "second").relative_to(config.folder)


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_every_command_names_an_artifact_that_a_url_has_lost(
    ewc: Ran, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, remote_file = third_round(ewc, tmp_path)
    harm(remote_file, damage)
    with monkeypatch.context() as patch:
        patch.setattr(
            Remote, "download", lambda *_: pytest.fail("only the list of files is asked for")
        )
        for command in (check_campaign, forecast):
            with pytest.raises(
                ArtifactError, match=r"round 'third' goes on from .*the file"
            ) as refusal:
                command(config)
            said = str(refusal.value)
            assert (refusal.value.exit_code, remote_file.name in said, "backup" in said) == (
                2,
                True,
                True,
            )
    assert not (tmp_path / "cache").exists(), "they write nothing"
    with pytest.raises(ArtifactError, match=r"round 'third' goes on from .*the file"):
        run(config)


def test_a_run_fetches_a_sound_artifact_in_place_of_one_that_was_changed_here(
    ewc: Ran, tmp_path: Path
) -> None:
    config, _ = third_round(ewc, tmp_path)
    open_store(config).pull()
    harm(artifact(config, 1, "second"), "changed")
    check_campaign(config)
    assert [r.state for r in run(config).evidence.ledger.rounds()] == ["accepted"] * 3


def test_a_round_without_the_method_is_stepped_over(ewc: Ran, tmp_path: Path) -> None:
    """The third round goes on from the first's Fisher, around the second's weights."""
    specs = rounds(
        {"name": "first"},
        {"name": "second", "prompts": "demo://inc?n=60", "retention": ["kl_anchors"]},
        {"name": "third", "prompts": "demo://sort?n=60", "steps": 2},
    )
    ran = run(campaign_under(tmp_path, [{**EWC, "gamma": 1.0}], rounds=specs))
    assert not artifact(ran.config, 1, "second").exists()
    first, second = ran.metrics(2, "third")
    assert (first["retention/ewc"], second["retention/ewc"] > 0) == (0.0, True)
    before, after = fisher(ran.config, 0, "first"), fisher(ran.config, 2, "third")
    assert all((after[name] >= before[name]).all() for name in after)


@pytest.mark.parametrize("to", ["parent", "base"])
@pytest.mark.parametrize("policy", [{"model": "demo://digits"}, LORA], ids=["full", "lora"])
def test_a_campaign_under_l2_sp(tmp_path: Path, to: str, policy: dict[str, Any]) -> None:
    ran = run(campaign_under(tmp_path, [{"name": "l2_sp", "alpha": 1.0, "to": to}], policy=policy))
    values = [
        line["retention/l2_sp"]
        for index, name in enumerate(("first", "second"))
        for line in ran.metrics(index, name)
    ]
    assert values[0] == pytest.approx(0.0, abs=1e-9) and values[1] > 0.0
    # The second round starts where the first ended: at its parent, and away from the base.
    if to == "parent":
        assert values[2] == pytest.approx(0.0, abs=1e-9)
    else:
        assert values[2] > 1e-9
    assert not list(ran.config.folder.glob("rounds/**/artifacts"))


def test_a_repaired_round_keeps_the_fisher_of_what_was_accepted(tmp_path: Path) -> None:
    """The last candidate that was tried need not be the one that is kept."""
    from align.round.plan import RoundOutcome
    from align.round.records import artifacts
    from align.store.repairs import RepairStep

    config = campaign(tmp_path / "plain", rounds=rounds({"name": "first", "retention": [EWC]}))
    straight = run(config)
    kept = fisher(straight.config, 0, "first")

    repaired = campaign(tmp_path / "repaired", rounds=rounds({"name": "first", "retention": [EWC]}))
    real = artifacts.keep_artifacts

    def after_repairs(plan: Any, session: Any, outcome: RoundOutcome) -> None:
        session.learner.load(session.base)
        step = RepairStep(
            rung="round", description="", candidate=outcome.candidate, look=1, outcome="accepted", kept=1.0,
            reasons=(),
        )  # fmt: skip
        real(plan, session, RoundOutcome(
            candidate=outcome.candidate, verdict=outcome.verdict, look=1, repairs=(step,),
        ))  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.round.round.keep_artifacts", after_repairs)
        run(repaired)
    again = fisher(repaired, 0, "first")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize(
    ("first", "second", "warned"),
    [([], ["kl_anchors", EWC], True), ([EWC], [EWC], False), ([], ["l2_sp"], False)],
    ids=["no Fisher before", "a Fisher before", "no state needed"],
)
def test_a_method_that_no_earlier_round_left_anything_for_is_named(
    tmp_path: Path, first: list[Any], second: list[Any], warned: bool
) -> None:
    specs = rounds(
        {"retention": first} if first else {}, {"prompts": "demo://inc?n=60", "retention": second}
    )
    lines = check_campaign(campaign(tmp_path, rounds=specs)).lines
    named = [line for line in lines if line.startswith("warning: round round1: ewc holds nothing")]
    assert len(named) == warned
