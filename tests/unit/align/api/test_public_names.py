"""`import align`: the public names, each of which exists, and nothing heavy before one is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import align

ROOT = Path(__file__).resolve().parents[4]

PUBLIC = {
    # a campaign, its run and its results
    "Campaign", "Reward", "StoredCampaign", "load_campaign", "load_policy", "open_store",
    "run",
    # events of a run, and errors
    "Event", "MeasuringEvent", "NoteEvent", "StepEvent", "VerdictEvent",
    "KeelError", "RunError", "UserError",
    # settings
    "AnchorConfig", "AnchorsConfig", "CampaignConfig", "EWCConfig", "EngineConfig", "EpisodeConfig",
    "ExamplesConfig", "GateConfig", "HackingConfig", "KLAnchorsConfig", "L2SPConfig", "LoraConfig",
    "OptimizerConfig", "PolicyConfig", "PromptsConfig", "RepairConfig", "ReplayConfig", "RewardConfig",
    "RoundConfig", "RoundSettings", "RoundSuiteConfig", "SamplingConfig", "SuiteConfig",
}  # fmt: skip
"""Names that programs rely on: they are added to and never renamed."""


def test_the_public_names_are_these() -> None:
    assert set(align.__all__) == PUBLIC
    assert set(align.__all__) <= set(dir(align))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(align, name)
    assert name == "Event" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'align' has no attribute 'lood_campaign'"):
        align.lood_campaign  # noqa: B018


def modules_after(code: str) -> set[str]:
    """Return the outermost names of all modules that a fresh process has after some code."""
    code = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_import_brings_only_the_standard_library() -> None:
    assert modules_after("import align") <= {"align", *sys.stdlib_module_names}


def test_campaigns_and_settings_need_no_torch() -> None:
    heavy = {"torch", "ray", "vllm", "transformers", "trl", "peft", "datasets", "pandas", "launch"}
    names = ", ".join(sorted(PUBLIC))
    assert not modules_after(f"from align import {names}") & heavy
