"""Division of one engine's model over several devices, and what a model must be like for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rollouts.errors import UserError

Executor = Literal["processes", "ray"]
"""Kind of an engine's workers: processes on the engine's node, or Ray actors on several nodes."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names of the number of experts in a ``config.json``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceDivision:
    """Devices of one engine, and how the model is divided over them."""

    tensor: int = 1
    """Devices that every layer is divided over."""
    pipeline: int = 1
    """Groups of such devices that the layers are dealt out to."""
    executor: Executor = "processes"
    """Kind of the workers that compute on the devices."""
    experts: bool = False
    """True if a mixture of experts is divided by whole experts."""

    @property
    def num_devices(self) -> int:
        """Number of devices that one engine computes on."""
        return self.tensor * self.pipeline


WHOLE = DeviceDivision()
"""A model on one device."""


def check_division(config: Mapping[str, Any], division: DeviceDivision, where: str) -> None:
    """Refuse a division that the sizes of a model do not allow.

    Args:
        config: the model's ``config.json``.
        where: the file, for the message.

    Raises:
        UserError: a size that cannot be divided, with the divisions that it allows.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    heads, kv_heads = (
        _size(text, "num_attention_heads", "n_head"),
        _size(text, "num_key_value_heads"),
    )
    layers = _size(text, "num_hidden_layers", "n_layer")
    width = _size(text, "intermediate_size", "n_inner")
    if division.pipeline > (layers or division.pipeline):
        raise UserError(
            f"{layers} layers cannot be dealt out to {division.pipeline} groups of devices",
            where="rollouts.pipeline_parallel",
            cause=f"{where} says so",
            remedy=f"set it to at most {layers}",
        )
    for number, what in ((heads, "attention heads"), (width, "units of a feed-forward layer")):
        if number and number % division.tensor:
            raise _indivisible(number, what, where)
    if kv_heads and kv_heads % division.tensor and division.tensor % kv_heads:
        raise _indivisible(kv_heads, "heads of keys and values", where)
    if division.experts and num_experts(config) is None:
        raise UserError(
            "the model has no experts to divide",
            where="rollouts.expert_parallel",
            cause=f"{where} names none",
            remedy="leave expert_parallel out",
        )


def num_experts(config: Mapping[str, Any]) -> int | None:
    """Return the number of experts of a model by its ``config.json``; None if it is no mixture.

    >>> num_experts({"text_config": {"num_experts": 4}}), num_experts({"num_hidden_layers": 2})
    (4, None)
    """
    nested = config.get("text_config")
    return _size(nested if isinstance(nested, dict) else config, *EXPERTS)


def share_of_cache(config: Mapping[str, Any], division: DeviceDivision) -> float:
    """Return the part of a token's keys and values that one device holds, 1 at most.

    Devices that outnumber the heads of keys and values hold copies of them.

    >>> share_of_cache({"num_key_value_heads": 2}, DeviceDivision(tensor=4, pipeline=2))
    0.25
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    heads = _size(text, "num_key_value_heads", "num_attention_heads", "n_head")
    divided = min(division.tensor, heads) if heads else division.tensor
    return 1 / (divided * division.pipeline)


def _indivisible(number: int, what: str, where: str) -> UserError:
    divisors = [str(n) for n in range(1, 65) if number % n == 0]
    return UserError(
        f"{number} {what} cannot be divided over this number of devices",
        where="rollouts.tensor_parallel",
        cause=f"vLLM gives every device equally many, and {where} says {number}",
        remedy=f"set it to one of {', '.join(divisors)}",
    )


def _size(text: Mapping[str, Any], *names: str) -> int | None:
    sizes = (text.get(name) for name in names)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)
