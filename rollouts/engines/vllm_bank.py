"""Bank of adapters in vLLM, which serves one adapter for each request: one increment of the bank.

An adapter of ``n`` increments is cut into ``n`` folders of its own, and each becomes a LoRA of vLLM. Mixes
of several increments would need their weights added for each request, so they are refused.

In a batch in which some requests have a LoRA, vLLM's CPU kernels give the others that of the last slot:
they index tensors with -1. So while a bank has adapters, the base answers under an increment of zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rollouts.engines.protocol import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BankAdapter
from rollouts.types import Mix

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

IDS = count(1_000_000)
"""Numbers of increments in vLLM, which adapters of single updates do not reach."""
BASE = "base"
"""Name of the increment of zeros."""
WHOLE = 1e-6
"""Largest difference from 1 of the weight of a single increment, which vLLM adds whole."""


class IncrementServer:
    """Increments of a bank, each a LoRA of one vLLM engine.

    Args:
        engine: vLLM's engine, started with LoRA.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._folders: dict[str, BankAdapter] = {}
        self._requests: dict[str, list[LoRARequest]] = {}
        self._base: LoRARequest | None = None
        self._scratch = TemporaryDirectory(prefix="increments-")

    def hold(self, adapters: Mapping[str, BankAdapter]) -> None:
        """Hold these adapters, and no others; those whose folder is known are not read again.

        Raises:
            ValueError: vLLM did not load an increment.
        """
        for name in [n for n, folder in self._folders.items() if adapters.get(n) != folder]:
            for request in self._requests.pop(name):
                self._engine.remove_lora(request.lora_int_id)
            del self._folders[name]
        if self._base is not None and not adapters:
            self._engine.remove_lora(self._base.lora_int_id)
            self._base = None
        for name, adapter in adapters.items():
            if name not in self._folders:
                self._requests[name] = [
                    self._load(name, adapter, number) for number in range(adapter.increments)
                ]
                self._folders[name] = adapter
            if self._base is None:
                self._base = self._load(BASE, adapter, None)

    def request_of(self, mix: Mix | None) -> LoRARequest | None:
        """Return the LoRA that answers a request; None: none is loaded, and the base does.

        Raises:
            ValueError: the mix has several increments, or one that is not held.
        """
        if not mix:
            return self._base
        if len(mix) > 1 or abs(mix[0].weight - 1.0) > WHOLE:
            raise ValueError(
                f"vLLM serves one adapter for each request, not a mix of {len(mix)}; set "
                "policy.bank.top_k to 1"
            )
        (increment,) = mix
        requests = self._requests.get(increment.adapter, [])
        if not 0 <= increment.number < len(requests):
            raise ValueError(
                f"increment {increment.number} of adapter {increment.adapter!r} is not held; adapters: "
                f"{', '.join(sorted(self._requests)) or 'none'}"
            )
        return requests[increment.number]

    def close(self) -> None:
        """Take all increments out of vLLM, and remove their folders."""
        self.hold({})
        self._scratch.cleanup()

    def _load(self, name: str, adapter: BankAdapter, number: int | None) -> LoRARequest:
        """Load one increment of an adapter; None: one of zeros, in the adapter's layers."""
        from vllm.lora.request import LoRARequest

        # A fresh id and name each time: vLLM serves what it cached under a known one.
        fresh_id = next(IDS)
        folder = Path(self._scratch.name) / str(fresh_id)
        write_increment(Path(adapter.folder), number, adapter.increments, folder)
        request = LoRARequest(f"{name}-{number}-{fresh_id}", fresh_id, str(folder))
        if not self._engine.add_lora(request):
            raise ValueError(
                f"vLLM did not load increment {number} of the adapter in {adapter.folder}"
            )
        return request


def write_increment(adapter: Path, number: int | None, increments: int, folder: Path) -> None:
    """Write one increment of an adapter as an adapter of its own, with the scale that it has there.

    Args:
        number: position of the increment, from 0; None: an increment of zeros.
        increments: equal parts that the adapter's rank is divided into.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    rank = int(config["r"]) // increments
    first = 0 if number is None else number
    part = slice(first * rank, (first + 1) * rank)
    tensors = {
        name: (tensor[part] if ".lora_A." in name else tensor[:, part]).contiguous()
        for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()
    }
    if number is None:
        tensors = {name: tensor.zero_() for name, tensor in tensors.items()}
    share = increments**0.5 if config.get("use_rslora") else increments
    config |= {"r": rank, "lora_alpha": config["lora_alpha"] / share}
    folder.mkdir(parents=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, sort_keys=True))
