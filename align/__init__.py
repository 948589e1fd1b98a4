"""Rounds, learner, gate and store: what changes the policy, and decides if the change is kept.

``import align`` is Keel for programs and notebooks: campaigns from files or objects, runs with an observer,
results as data frames. It imports nothing heavy; a name is loaded when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read once, when torch is loaded. Waiting threads that spin take the cores from the engines: beside
# one busy process, a learner of two threads is then slower than one of one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from align.api.building import Reward
    from align.api.campaign import Campaign, load_campaign, run
    from align.api.events import Event, MeasuringEvent, NoteEvent, StepEvent, VerdictEvent
    from align.api.policies import load_policy
    from align.api.stored import StoredCampaign, open_store
    from align.config.campaign import CampaignConfig, ReplayConfig, RoundConfig, RoundSettings
    from align.config.data import ExamplesConfig, PromptsConfig
    from align.config.episodes.settings import EpisodeConfig
    from align.config.gate import GateConfig, RoundSuiteConfig, SuiteConfig
    from align.config.learning import OptimizerConfig, SamplingConfig
    from align.config.policy import EngineConfig, LoraConfig, PolicyConfig
    from align.config.repair import RepairConfig
    from align.config.retention.anchors import AnchorConfig, AnchorsConfig
    from align.config.retention.methods import EWCConfig, KLAnchorsConfig, L2SPConfig
    from align.config.rewards import RewardConfig
    from align.config.watch import HackingConfig
    from align.errors import KeelError, RunError, UserError

_MODULES = {
    "align.api.building": ("Reward",),
    "align.api.campaign": ("Campaign", "load_campaign", "run"),
    "align.api.events": ("Event", "MeasuringEvent", "NoteEvent", "StepEvent", "VerdictEvent"),
    "align.api.policies": ("load_policy",),
    "align.api.stored": ("StoredCampaign", "open_store"),
    "align.config.campaign": ("CampaignConfig", "ReplayConfig", "RoundConfig", "RoundSettings"),
    "align.config.data": ("ExamplesConfig", "PromptsConfig"),
    "align.config.episodes.settings": ("EpisodeConfig",),
    "align.config.gate": ("GateConfig", "RoundSuiteConfig", "SuiteConfig"),
    "align.config.learning": ("OptimizerConfig", "SamplingConfig"),
    "align.config.policy": ("EngineConfig", "LoraConfig", "PolicyConfig"),
    "align.config.repair": ("RepairConfig",),
    "align.config.retention.anchors": ("AnchorConfig", "AnchorsConfig"),
    "align.config.retention.methods": ("EWCConfig", "KLAnchorsConfig", "L2SPConfig"),
    "align.config.rewards": ("RewardConfig",),
    "align.config.watch": ("HackingConfig",),
    "align.errors": ("KeelError", "RunError", "UserError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AnchorConfig",
    "AnchorsConfig",
    "Campaign",
    "CampaignConfig",
    "EWCConfig",
    "EngineConfig",
    "EpisodeConfig",
    "Event",
    "ExamplesConfig",
    "GateConfig",
    "HackingConfig",
    "KLAnchorsConfig",
    "KeelError",
    "L2SPConfig",
    "LoraConfig",
    "MeasuringEvent",
    "NoteEvent",
    "OptimizerConfig",
    "PolicyConfig",
    "PromptsConfig",
    "RepairConfig",
    "ReplayConfig",
    "Reward",
    "RewardConfig",
    "RoundConfig",
    "RoundSettings",
    "RoundSuiteConfig",
    "RunError",
    "SamplingConfig",
    "StepEvent",
    "StoredCampaign",
    "SuiteConfig",
    "UserError",
    "VerdictEvent",
    "load_campaign",
    "load_policy",
    "open_store",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
