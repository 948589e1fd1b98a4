"""Mixtures of experts learn from rollouts in float32 alone, where engine and learner route alike."""

from __future__ import annotations

import json

import pytest

from align.config.campaign import CampaignConfig
from align.errors import UserError
from align.round.companion_models import check_routing

ROLLOUTS = {"name": "a", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1}
PAIRS = {
    "name": "a",
    "data": "pairs.jsonl",
    "algorithm": {"name": "dpo", "pairs": "file"},
    "steps": 1,
}
QUANTISED = {"quantization": "fp8", "probe_tolerance": 0.3}
NARROW = {"dtype": "bfloat16", "probe_tolerance": 0.3}


def checked(tmp_path, model, *, policy=None, rollouts=None, spec=ROLLOUTS):
    (tmp_path / "config.json").write_text(json.dumps(model))
    config = CampaignConfig.model_validate(
        {
            "name": "c",
            "policy": {"model": str(tmp_path), **(policy or {})},
            "rollouts": rollouts or {},
            "rounds": [spec],
        }
    )
    check_routing(config.rounds[0], tmp_path, config)


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"policy": {"dtype": "bfloat16"}}, "policy.dtype"),
        ({"rollouts": NARROW}, "rollouts.dtype"),
        ({"rollouts": QUANTISED}, "rollouts.quantization"),
    ],
)
def test_rounded_numbers_are_refused(tmp_path, key, settings, where):
    with pytest.raises(UserError, match="mixture of 8 experts") as caught:
        checked(tmp_path, {key: 8}, **settings)
    assert where in str(caught.value) and "float32" in str(caught.value)


def test_float32_files_and_dense_models_pass(tmp_path):
    checked(tmp_path, {"num_experts": 8})
    checked(tmp_path, {"text_config": {}}, policy={"dtype": "bfloat16"}, rollouts=QUANTISED)
    checked(tmp_path, {"num_experts": 8}, policy={"dtype": "bfloat16"}, spec=PAIRS)
    with pytest.raises(UserError):
        checked(tmp_path, {"text_config": {"num_experts": 8}}, policy={"dtype": "bfloat16"})
