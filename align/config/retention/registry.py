"""Registry of the retention methods' settings."""

from __future__ import annotations

from typing import Any

from align.config.retention.adapters import InfLoRAConfig, NLoRAConfig, OLoRAConfig
from align.config.retention.methods import (
    AGEMConfig,
    COPRConfig,
    CPOMaskConfig,
    EWCConfig,
    GPMConfig,
    HFTConfig,
    KLAnchorsConfig,
    L2SPConfig,
    MASConfig,
    MIGUConfig,
    MoFOConfig,
    OGDConfig,
    RetentionConfig,
    SIConfig,
    TrustRegionConfig,
)
from align.settings import settings_from

RETENTION: dict[str, type[RetentionConfig]] = {
    "kl_anchors": KLAnchorsConfig,
    "ewc": EWCConfig,
    "mas": MASConfig,
    "si": SIConfig,
    "l2_sp": L2SPConfig,
    "cpo_mask": CPOMaskConfig,
    "agem": AGEMConfig,
    "ogd": OGDConfig,
    "gpm": GPMConfig,
    "hft": HFTConfig,
    "mofo": MoFOConfig,
    "migu": MIGUConfig,
    "trust_region": TrustRegionConfig,
    "o_lora": OLoRAConfig,
    "n_lora": NLoRAConfig,
    "inflora": InfLoRAConfig,
    "copr": COPRConfig,
}
"""Settings of each retention method by name; `align.retention.METHODS` has the methods themselves."""


def retention_from(value: Any) -> Any:
    """Return the settings of a method, see `settings_from`."""
    return settings_from(value, RETENTION, "retention method")
