"""Settings of a bank: what it goes with, and what is refused with a reason and another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig, overlay
from align.config.policy import PolicyConfig
from align.data.demo import BASE_MODEL
from align.learner.folder.checks import fits_the_keys
from align.learner.folder.folder import ModelFolder
from align.learner.folder.sizes import snapshot_bytes, snapshots_bytes
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign

POLICY: dict[str, Any] = {
    "model": "demo://digits",
    "lora": {"rank": 2},
    "bank": {"keys": 4, "top_k": 2},
}
BACKEND = {"backend": "transformers"}


def bank_campaign(folder: Path, **changes: Any) -> dict[str, Any]:
    raw = raw_campaign(folder, policy=POLICY, rollouts=BACKEND)
    raw["defaults"]["replay"] = {"general_prompts": "demo://general?n=40"}
    return overlay(raw, changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": {"lora": None}}, "lora is not set"),
        ({"policy": {"lora": {"merge": True}}}, "remove lora.merge"),
        ({"policy": {"lora": {"dora": True}}}, "remove lora.dora"),
        ({"policy": {"lora": {"dropout": 0.1}}}, "remove lora.dropout"),
        ({"policy": {"lora": {"serve": "merged"}}}, "set serve to adapter"),
        ({"policy": {"bank": {"keys": 1}}}, "lower top_k or raise keys"),
        ({"policy": {"bank": {"encoder": "e", "layer": 2}}}, "encoder names a folder"),
        ({"policy": {"ranks": 2}}, "policy.ranks is 2; set it to 1"),
        ({"policy": {"gradient_checkpointing": True}}, "set it to false"),
        ({"rollouts": {"backend": "vllm"}}, "set policy.bank.top_k to 1"),
        (
            {"defaults": {"replay": {"answers": {}}}},
            "answers and texts of other rounds",
        ),
        ({"defaults": {"replay": {"synthesis": {}}}}, "replay.synthesis: earlier rounds keep"),
        ({"defaults": {"replay": {"past": 0.2}}}, "replay.past: earlier rounds keep their own"),
        (
            {"defaults": {"replay": {"rewards": True, "samples_per_prompt": 4}}},
            "replay.rewards: earlier rounds keep their own",
        ),
        (
            {"defaults": {"retention": [{"name": "ewc", "lambda": 1.0}]}},
            "ewc holds weights to those of earlier rounds",
        ),
        ({"defaults": {"retention": ["kl_anchors", "gpm"]}}, "use kl_anchors"),
        ({"defaults": {"repair": {"interpolate": True}}}, "set interpolate to false"),
        ({"defaults": {"merge": {"name": "slerp"}}}, "remove merge"),
        ({"defaults": {"replay": {"answers": {}}}}, "remove answers and pretraining"),
        ({"defaults": {"repair": {"distil": True}}}, "set distil to false"),
        ({"defaults": {"sampling": {"in_flight": True, "max_staleness": 1}}}, "in_flight to false"),
        (
            {
                "policy": {"bank": {"mixing": "batch"}},
                "defaults": {"sampling": {"max_staleness": 1}},
            },
            "set max_staleness to 0, or mixing to example",
        ),
    ],
)
def test_what_does_not_fit_a_bank_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    CampaignConfig.model_validate(bank_campaign(tmp_path))
    with pytest.raises(ValidationError) as refused:
        CampaignConfig.model_validate(bank_campaign(tmp_path, **changes))
    assert words in str(refused.value)


def test_vllm_serves_a_bank_of_one_increment_a_prompt(tmp_path: Path) -> None:
    changes = {"policy": {"bank": {"top_k": 1}}, "rollouts": {"backend": "vllm"}}
    config = CampaignConfig.model_validate(bank_campaign(tmp_path, **changes))
    assert config.policy.snapshot_kind == "bank"


def test_increments_keep_the_scale_of_their_own_rank() -> None:
    """Four keys of rank 2 and alpha 8 are one adapter of rank 8 and alpha 32, both scaled by 4."""
    lora: dict[str, Any] = {"rank": 2, "alpha": 8.0}
    policy = PolicyConfig.model_validate({"model": "m", "lora": lora, "bank": {"keys": 4}})
    assert policy.adapter is not None
    assert (policy.adapter.rank, policy.adapter.alpha) == (8, 32.0)
    lora = {**lora, "rslora": True}
    policy = PolicyConfig.model_validate({"model": "m", "lora": lora, "bank": {"keys": 4}})
    assert policy.adapter is not None
    assert policy.adapter.alpha / policy.adapter.rank**0.5 == pytest.approx(8 / 2**0.5)


def test_an_unset_bank_is_in_no_content(tmp_path: Path) -> None:
    """Stores that are older than the setting compare by it."""
    plain = CampaignConfig.model_validate(raw_campaign(tmp_path))
    assert "bank" not in plain.content()["policy"]
    banked = CampaignConfig.model_validate(bank_campaign(tmp_path))
    assert banked.content()["policy"]["bank"]["keys"] == 4
    assert plain.hash() != banked.hash()


def test_groups_that_do_not_divide_the_width_are_refused() -> None:
    """The tiny model's hidden states have 128 numbers."""

    def folder(groups: int) -> ModelFolder:
        policy = PolicyConfig.model_validate({**POLICY, "bank": {"groups": groups}})
        return ModelFolder(path=BASE_MODEL, policy=policy, device="cpu", backend="transformers")

    fits_the_keys(folder(4))
    with pytest.raises(UserError, match="128 numbers, which 6 groups do not divide"):
        fits_the_keys(folder(6))


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    policy = PolicyConfig.model_validate({**POLICY, "bank": {"layer": 40}})
    with pytest.raises(UserError, match="are to be encoded by layer 40"):
        fits_the_keys(
            ModelFolder(path=BASE_MODEL, policy=policy, device="cpu", backend="transformers")
        )


def test_an_encoder_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    policy = PolicyConfig.model_validate({**POLICY, "bank": {"encoder": str(tmp_path)}})
    with pytest.raises(UserError, match=r"has no modules\.json"):
        fits_the_keys(
            ModelFolder(path=BASE_MODEL, policy=policy, device="cpu", backend="transformers")
        )


def test_each_bank_is_counted_with_all_adapters_before_it() -> None:
    """After two accepted rounds three more write banks of three, four and five adapters."""
    plain = PolicyConfig.model_validate({**POLICY, "bank": None, "lora": {"rank": 8}})
    banked = PolicyConfig.model_validate(POLICY)
    adapter = snapshot_bytes(BASE_MODEL, banked)
    assert adapter == snapshot_bytes(BASE_MODEL, plain), "four increments of rank 2 are a rank of 8"
    states = ["accepted", "rejected", "accepted", "planned"]
    assert snapshots_bytes(BASE_MODEL, banked, 3, states) == (3 + 4 + 5) * adapter
    assert snapshots_bytes(BASE_MODEL, plain, 3, states) == 3 * adapter
