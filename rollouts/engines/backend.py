"""Description of one engine, and what a backend says about itself: the base class of all of them.

A backend is a subclass of `EngineSpec` in a file of this folder and a line in `rollouts.engines.ENGINES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from rollouts.engines.division import WHOLE, DeviceDivision
from rollouts.engines.protocol import RolloutEngine, WeightTransfer
from rollouts.errors import UserError
from rollouts.machine.device import Device
from rollouts.model_folder import check_model_folder
from rollouts.types import WeightVersion

BASE_VERSION: WeightVersion = "base"
"""Name of the weights an engine holds before its first sync."""

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers an adapter may change. Never lm_head: vLLM then crashes on CPU, scores wrongly on GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """Model folder that engines are to serve, as transformers reads it."""

    folder: Path
    device: Literal["cpu", "cuda"]
    """Device of the engines."""
    kind: Any
    """Class that transformers loads the folder with."""
    config: Any
    """The folder's config, as transformers reads it."""
    own_architectures: tuple[str, ...]
    """Architectures that the folder's own code defines; empty where its code is not run."""
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineParts:
    """Parts of an engine beyond one device that takes plain weights."""

    division: DeviceDivision = WHOLE
    quantization: str | None = None
    weight_transfer: WeightTransfer = "host"

    @property
    def first_beyond_plain(self) -> str | None:
        """Setting that asks for the first such part; None for a plain engine."""
        if self.division != WHOLE:
            return "tensor_parallel" if self.division.tensor > 1 else "pipeline_parallel"
        if self.quantization is not None:
            return "quantization"
        return "weight_transfer" if self.weight_transfer != "host" else None


@dataclass(frozen=True, kw_only=True)
class EngineSpec(ABC):
    """Model, limits and memory of one engine, whatever its backend."""

    module: ClassVar[str]
    """Package that the backend imports; without it the backend is not available."""
    probe: ClassVar[str]
    """Python program that imports what the backend needs and prints its version."""
    remedy: ClassVar[str]
    """Next step where the package is not installed."""
    shares_process: ClassVar[bool] = False
    """True if an engine may run in the learner's own process."""

    model: str
    """A folder as written by ``save_pretrained``, or a Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: float32 on CPU, bfloat16 on GPU."""
    max_model_len: int | None = None
    """Longest prompt plus completion in tokens; None: what the model's config says."""
    max_num_seqs: int = 128
    """Completions sampled at the same time by one engine."""
    kv_cache_mb: int = 256
    """KV cache of a CPU engine, in MiB."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory for weights and KV cache."""
    threads: int = 1
    """CPU threads of one device's matrix products."""
    division: DeviceDivision = WHOLE
    """Devices that the model is divided over."""
    weight_transfer: WeightTransfer = "host"
    """Way of full weights from the learner."""
    quantization: str | None = None
    """Method that weights are quantised by when they are loaded; None: they stay what they are."""
    lora_rank: int | None = None
    """Largest rank of the adapters to come; None: the engine takes full weights."""
    lora_targets: tuple[str, ...] = LINEAR_LAYERS
    """Names of the layers that adapters change."""
    bank_increments: int | None = None
    """Number of increments that a bank is expected to come to; None: no bank will come."""
    trust_remote_code: bool = False
    """Run model code that comes with the model."""
    seed: int = 0
    """Seeds the engine itself; every request carries its own seed."""
    device: Device = "auto"
    """``auto``: a GPU when there is one."""

    @abstractmethod
    def environment(self, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """Return variables that must be set before a process imports the backend's package."""

    @abstractmethod
    def start(self) -> RolloutEngine:
        """Start the engine in this process.

        Raises:
            UserError: the backend is not installed, or cannot serve the model.
        """

    def check_folder(self, device: Literal["cpu", "cuda"]) -> None:
        """Refuse a folder that cannot be served, by the names of its files and its ``config.json``."""
        check_model_folder(self.model)

    @classmethod
    @abstractmethod
    def check_model(cls, model: ServedModel) -> None:
        """Refuse an architecture that the backend cannot serve.

        Raises:
            UserError: it cannot be served on that device.
        """

    @classmethod
    @abstractmethod
    def check_adapters(cls, model: ServedModel) -> None:
        """Refuse an architecture for which the backend serves no adapters; see `check_model`."""

    @classmethod
    def check_parts(cls, folder: Path, parts: EngineParts, device: Literal["cpu", "cuda"]) -> None:
        """Refuse engines that are more than one device with the learner's weights, unless the backend has
        them.

        Args:
            folder: folder of the model.

        Raises:
            UserError: the backend, the device or the model does not allow it.
        """
        if (setting := parts.first_beyond_plain) is not None:
            raise UserError(
                f"{cls.module} engines have one device, and take weights as they are through host "
                "memory",
                where=f"rollouts.{setting}",
                remedy="leave it out, or set rollouts.backend: vllm",
            )

    @classmethod
    def is_installed(cls) -> bool:
        """Tell if the backend's package is there; it is not imported."""
        return find_spec(cls.module) is not None

    @classmethod
    def check_installed(cls) -> None:
        """Raise a `UserError` unless the backend's package is there."""
        if not cls.is_installed():
            raise UserError(
                f"{cls.module} is not installed, and engines of this backend need it",
                where="rollouts.backend",
                remedy=cls.remedy,
            )


def offline_environment(model: str, threads: int) -> dict[str, str]:
    """Return variables of every engine process: its threads, and no network for a model in a folder."""
    environment = {
        # OpenMP threads spin while they wait: two engines on the same cores collapse.
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # torch's C++ side announces its NUMA binding on stderr otherwise.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment
