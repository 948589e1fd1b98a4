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
)
from rollouts.errors import nearest

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
    "o_lora": OLoRAConfig,
    "n_lora": NLoRAConfig,
    "inflora": InfLoRAConfig,
    "copr": COPRConfig,
}
"""Settings of each retention method by name; `align.retention.METHODS` has the methods themselves."""


def retention_from(value: Any) -> Any:
    """Return the settings of a method, from ``ewc`` or ``{name: ewc, lambda: 100}``.

    Raises:
        ValueError: the value names no method, or one that does not exist.
    """
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"{value} names no method of retention; write which one as name")
    return retention_class(value["name"]).model_validate(value)


def retention_class(name: object) -> type[RetentionConfig]:
    """Return the class of a method's settings.

    Raises:
        ValueError: no method has this name.
    """
    if isinstance(name, str) and name in RETENTION:
        return RETENTION[name]
    raise ValueError(f"no retention method {name!r}; {nearest(str(name), list(RETENTION))}")
