"""Whole campaigns of an adapter bank: each round one adapter, retrieved by the prompt, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.bank.bank import ADAPTERS, BANK, read_bank
from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import SnapshotError
from align.gate.measurement.results import ItemResults
from align.gate.measurement.routing import retrieval_share, routing_accuracy
from align.report.status import status_of
from align.store.snapshots.snapshots import SnapshotStore
from rollouts.engines.protocol import RolloutEngine
from rollouts.engines.transformers import TransformersConfig
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Copying, Starter, Watcher, raw_campaign

POLICY: dict[str, Any] = {
    "model": "demo://digits",
    "lora": {"rank": 2, "alpha": 4.0},
    "bank": {"keys": 2, "top_k": 2},
}


class Banks(Starter):
    """Starts engines that hold banks."""

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        return TransformersConfig(
            model=str(model), max_model_len=context, lora_rank=4, kv_cache_mb=16
        ).start()


def bank_campaign(folder: Path, **bank: Any) -> CampaignConfig:
    policy = {**POLICY, "bank": {**POLICY["bank"], **bank}}
    raw = raw_campaign(folder, policy=policy, rollouts={"backend": "transformers"}, suites=[])
    raw["defaults"] |= {
        "replay": {"general_prompts": "demo://general?n=40", "general": 0.2},
        "suite": {"items": 20, "temperature": 1.0},
        "checkpoint_every": 1,
    }
    return CampaignConfig.model_validate(raw)


def run(config: CampaignConfig, watcher: Watcher | None = None) -> Ran:
    starter, watcher = Banks(), watcher or Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two accepted rounds. Tests only read it."""
    folder = tmp_path_factory.mktemp("bank")
    config = bank_campaign(folder)
    return run(config, Copying(config.folder, folder, ("second", 0)))


def bank_folder(ran: Ran, name: str) -> Path:
    return SnapshotStore(ran.config.folder).open(ran.candidates[name] or "").path


def results_of(ran: Ran, snapshot: str, suite: str) -> ItemResults:
    (hash_of_suite,) = [
        e.suite_hash
        for e in ran.evidence.ledger.evaluations()
        if (e.snapshot, e.suite) == (ran.candidates[snapshot], suite)
    ]
    return ItemResults.load(ran.evidence.locate(ran.candidates[snapshot] or "", hash_of_suite))


def accuracy_of(results: ItemResults) -> float | None:
    return routing_accuracy(results.suite, results.routed)


def test_a_snapshot_is_the_bank_so_far_and_the_new_adapter(ran: Ran) -> None:
    first, second = (bank_folder(ran, name) for name in ("first", "second"))
    assert read_bank(first).names == ("first",)
    bank = read_bank(second)
    assert bank.names == ("first", "second")
    assert bank.keys_GPC.shape == (4, 4, 32)
    assert SnapshotStore(ran.config.folder).open(ran.candidates["second"] or "").kind == "bank"
    # An earlier adapter is frozen: its bytes, keys included, stay what they were.
    for file in (first / ADAPTERS / "first").iterdir():
        assert file.read_bytes() == (second / ADAPTERS / "first" / file.name).read_bytes()
    assert not list(second.glob("*.safetensors")), "a bank holds no weights of the base"


def test_each_round_learns_an_adapter_of_its_own_over_the_base(ran: Ran) -> None:
    tensors = [
        weights_in(bank_folder(ran, "second") / ADAPTERS / name) for name in ("first", "second")
    ]
    for adapter in tensors:
        moved = [name for name, tensor in adapter.items() if "lora_B" in name and tensor.any()]
        assert len(moved) == sum("lora_A" in name for name in adapter) > 0
    # Nothing of the round before is gone on with: the policy begins as the base, at a KL of 0.
    first, second = (ran.metrics(i, name)[0] for i, name in enumerate(("first", "second")))
    assert abs(first["kl/general/base"]) < 1e-6
    assert abs(second["kl/general/base"]) < 1e-6
    assert max(line["parity/max_abs_diff"] for line in ran.metrics(1, "second")) < 1e-4


def test_measurement_retrieves_by_the_prompt_and_says_which_adapter_answered(ran: Ran) -> None:
    alone, other = (results_of(ran, "first", suite) for suite in ("first", "second"))
    assert set(alone.routes) == set(other.routes) == {"first"}
    assert accuracy_of(alone) == 1.0
    assert accuracy_of(other) is None, "the bank has no adapter of that round yet"
    both = results_of(ran, "second", "first")
    assert len(both.routes) == len(both.item_ids)
    assert set(both.routes) <= {"first", "second"}
    assert accuracy_of(both) == both.routes.count("first") / 20
    share = retrieval_share(both.retrieval_s, both.seconds)
    assert share is not None
    assert 0 < share < 1
    assert any("second on first: answered by the adapters of" in n for n in ran.watcher.notes)
    assert results_of(ran, "second", "second").routes != both.routes
    accuracies = [accuracy_of(results_of(ran, "second", name)) for name in ran.candidates]
    assert min(a for a in accuracies if a is not None) >= 0.9, "the ops are easy to tell apart"


def test_status_shows_routing_accuracy_and_the_share_of_retrieval(ran: Ran) -> None:
    base, first, second = status_of(ran.evidence).matrix
    assert "routing accuracy" not in base.figures.get("first", {})
    assert first.figures["first"]["routing accuracy"] == 1.0
    assert "routing accuracy" not in first.figures["second"]
    accuracy = accuracy_of(results_of(ran, "second", "second"))
    assert second.figures["second"]["routing accuracy"] == accuracy
    assert 0 < second.figures["second"]["retrieval share"] < 1


def test_a_round_that_was_killed_ends_where_an_undisturbed_one_does(ran: Ran) -> None:
    """Adapters and keys alike; the process is killed in the second round, after a checkpoint."""
    assert isinstance(ran.watcher, Copying)
    resumed = run(bank_campaign(ran.watcher.copy_after("second", 0)))
    assert any("goes on from step 1" in note for note in resumed.watcher.notes)
    for name in ("first", "second"):
        ours = weights_in(bank_folder(resumed, "second") / ADAPTERS / name)
        theirs = weights_in(bank_folder(ran, "second") / ADAPTERS / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (
        results_of(resumed, "second", "first").routes == results_of(ran, "second", "first").routes
    )


@pytest.mark.parametrize(("mode", "mixing"), [("add", "example"), ("override", "batch")])
def test_a_round_with_the_prompts_of_an_earlier_one_takes_its_place(
    mode: str, mixing: str, tmp_path: Path
) -> None:
    """Both adapters would be retrieved by the same prompts, and the earlier one lacks the new reward."""
    config = bank_campaign(tmp_path, mixing=mixing)
    first, second = config.rounds
    again = second.model_copy(update={"prompts": first.prompts, "mode": mode, "steps": 1})
    short = config.model_copy(update={"rounds": (first.model_copy(update={"steps": 1}), again)})
    ran = run(short)
    assert read_bank(bank_folder(ran, "first")).names == ("first",)
    assert read_bank(bank_folder(ran, "second")).names == ("second",)


def test_a_bank_whose_keys_are_gone_stops_the_next_round(ran: Ran, tmp_path: Path) -> None:
    from shutil import copytree

    folder = tmp_path / "bank"
    copytree(bank_folder(ran, "second"), folder)
    (folder / ADAPTERS / "first").chmod(0o755)
    (folder / ADAPTERS / "first" / "keys.safetensors").unlink()
    with pytest.raises(SnapshotError, match="keys of this adapter are missing"):
        read_bank(folder)
    assert (folder / BANK).is_file()


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}
