"""Settings that a campaign file leaves to ``auto``: as the store began, else as suits this machine.

The store records what was chosen, so that a campaign that goes on elsewhere computes as it did. One
decision serves engines, learner and parity check alike, and it is taken where the command runs: a driver
without a GPU that joins a cluster with some states ``policy.dtype`` and ``policy.lora.serve`` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from align.config.campaign import CampaignConfig
from align.config.retention.rules import check_precision
from align.store.ledger.amendments import stored_content
from align.store.ledger.ledger import Ledger
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device
from rollouts.machine.processor import SLOWDOWN, bfloat16_by, processor_flags, quickest_dtype

ServedAs = Literal["adapter", "merged"]

ADAPTER_BEFORE_AUTO: ServedAs = "adapter"
"""Way of serving adapters in stores of versions that recorded no choice."""


def without_auto(config: CampaignConfig, ledger: Ledger | None) -> CampaignConfig:
    """Return the campaign with a value for every ``auto``.

    Args:
        ledger: the campaign's; None where it has none yet.

    Raises:
        UserError: the store began with adapters, and a round needs merged weights; or ``auto`` stands
            for bfloat16, and a method needs float32.
    """
    policy = config.policy
    if policy.dtype != "auto" and (policy.lora is None or policy.lora.serve != "auto"):
        return config
    began = {} if ledger is None else stored_content(ledger.database).get("policy", {})
    stored = {key: value for key, value in began.items() if value != "auto"}
    in_flight = any(spec.sampling.in_flight for spec in config.rounds)
    dtype = stored.get("dtype") or quickest_dtype(resolve_device("auto"))
    quickest: ServedAs = (
        "adapter" if resolve_device("auto") == "cuda" and not in_flight else "merged"
    )
    lora = stored.get("lora")
    serve = quickest if lora is None else lora.get("serve", ADAPTER_BEFORE_AUTO)
    resolved = policy.without_auto(dtype, serve)
    if resolved.serves_adapters and in_flight:
        raise UserError(
            "the store began with engines that serve adapters, and a round samples in_flight",
            where="policy.lora.serve",
            cause="a request that runs keeps its adapter",
            remedy="set sampling.in_flight to false, or set store to another folder",
        )
    try:
        for index, spec in enumerate(config.rounds):
            check_precision(spec, index, resolved)
    except ValueError as error:
        raise UserError(
            str(error), where="policy.dtype", cause=f"auto stands for {resolved.dtype} here"
        ) from None
    return config.model_copy(update={"policy": resolved})


def auto_lines(config: CampaignConfig, resolved: CampaignConfig) -> Iterator[str]:
    """Yield the value chosen for each ``auto``, and a warning if bfloat16 is slow on this machine.

    Args:
        config: the campaign as its file says it.
        resolved: the same, `without_auto`.
    """
    policy = resolved.policy
    if config.policy.lora and policy.lora and config.policy.lora.serve == "auto":
        yield f"policy.lora.serve: {policy.lora.serve} (auto)"
    if config.policy.dtype == "float32":
        return
    device = resolve_device("auto")
    speed = "native" if device == "cuda" else bfloat16_by(processor_flags())
    if config.policy.dtype == "auto":
        yield f"policy.dtype: {policy.dtype} (auto; {_reason(policy.dtype, device, speed)})"
    if policy.dtype == "bfloat16" and SLOWDOWN[speed]:
        yield (
            "warning: policy.dtype is bfloat16, which this processor has no instructions for: matrix "
            f"products are {SLOWDOWN[speed]} in float32 (set policy.dtype to float32, or to auto; a store "
            "keeps what it began with)"
        )


def _reason(dtype: str, device: str, speed: Literal["native", "emulated", "none"]) -> str:
    if device == "cuda":
        return "for this GPU"
    has = "has" if speed == "native" else "has no"
    preferred = "bfloat16" if speed == "native" else "float32"
    why = f"this processor {has} instructions for bfloat16"
    return why if dtype == preferred else f"as the store began, though {why}"
