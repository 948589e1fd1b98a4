"""Devices that a cluster may have, by their makers' data sheets, or as a file describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from align.settings import Settings
from rollouts.errors import UserError, nearest

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class DeviceConfig(Settings):
    """One device and the links to others; the shares say what programs reach of a data sheet."""

    name: str = "device"
    memory_gib: Positive
    """Memory of one device, in GiB."""
    tflops: Positive
    """Products in bfloat16, in 10^12 operations a second, without sparsity."""
    tflops_float32: Positive
    """Products in float32."""
    memory_gbs: Positive
    """Reading of its memory, in 10^9 bytes a second."""
    link_gbs: Positive
    """Link to devices of the same node, in 10^9 bytes a second in one direction."""
    network_gbs: Positive
    """Share of the network that one device has, in 10^9 bytes a second."""
    host_gbs: Positive = 25.0
    """Link to the host's memory."""
    learning: Share = 0.4
    """Share of ``tflops`` that learning reaches."""
    reading: Share = 0.5
    """Share of ``tflops`` that reading prompts reaches."""
    decoding: Share = 0.6
    """Share of ``memory_gbs`` that decoding reaches."""
    moving: Share = 0.7
    """Share of links and network that transfers reach."""
    token_s: Annotated[float, Field(ge=0)] = 0.004
    """Seconds that every decoded token of a batch takes besides reading and products: scheduling, starts of
    kernels, sampling."""
    experts: Share = 0.3
    """Share of these rates that mixtures of experts reach: their products are small and uneven."""


def _nvidia(name: str, **sizes: float) -> DeviceConfig:
    return DeviceConfig(name=name, **sizes)


DEVICES = {
    device.name: device
    for device in (
        _nvidia("a100", memory_gib=80, tflops=312, tflops_float32=19.5, memory_gbs=2039, link_gbs=300,
                network_gbs=25),
        _nvidia("h100", memory_gib=80, tflops=989, tflops_float32=67, memory_gbs=3350, link_gbs=450,
                network_gbs=50),
        _nvidia("h200", memory_gib=141, tflops=989, tflops_float32=67, memory_gbs=4800, link_gbs=450,
                network_gbs=50),
        _nvidia("b200", memory_gib=180, tflops=2250, tflops_float32=75, memory_gbs=8000, link_gbs=900,
                network_gbs=50),
        _nvidia("l40s", memory_gib=48, tflops=362, tflops_float32=91.6, memory_gbs=864, link_gbs=32,
                network_gbs=12.5),
    )
}  # fmt: skip
"""Devices by name; SXM modules with a network of one card for each where there is such a module."""


def device_named(name: str) -> DeviceConfig:
    """Return a device of `DEVICES`.

    Raises:
        UserError: there is none of the name.
    """
    if (device := DEVICES.get(name.lower())) is not None:
        return device
    raise UserError(
        f"no device {name!r} is known",
        where="--gpu",
        remedy=f"{nearest(name.lower(), list(DEVICES))}, or describe it in a file (--devices FILE)",
    )


def device_from(file: Path) -> DeviceConfig:
    """Read a description of a device from a YAML file.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or out of its range.
    """
    import yaml
    from pydantic import ValidationError

    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the description of devices cannot be read: {error}",
            where=f"--devices {file}",
            remedy="give a YAML file with the keys of docs/how-to/predict-a-cluster.md",
        ) from error
    try:
        return DeviceConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{key}: {first['msg']}",
            where=f"--devices {file}",
            cause="a description has numbers of one device: memory_gib, tflops, tflops_float32, "
            "memory_gbs, link_gbs and network_gbs",
            remedy=f"set {key}, or take a known device with --gpu: {', '.join(DEVICES)}",
        ) from error
