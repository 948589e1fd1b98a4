"""Models that vLLM can serve, read from vLLM's own lists without starting it.

Importing vllm takes seconds and changes the process, so its registry is read as text: the keys of the
tables of architectures in ``registry.py``, and what the classes named there inherit.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rollouts.engines.backend import ServedModel
from rollouts.engines.division import DeviceDivision
from rollouts.engines.protocol import WeightTransfer
from rollouts.errors import UserError, nearest
from rollouts.model_config import sizes_of

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM 0.32's CPU attention; the GPU backends take more."""
TABLES = ("_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
MODELS = "model_executor/models"
ONLINE = "_ONLINE_SHORTHANDS"
"""Table of vLLM's methods that quantise plain weights."""
ALIGNMENT = 32
"""Divisor of an expert's sizes that vLLM's CPU kernel asks for in the hidden size."""
OTHER_BACKEND = "set rollouts.backend: transformers, which serves it"


def check_served(model: ServedModel) -> None:
    """Refuse an architecture that vLLM neither has nor can take from transformers, or not on a CPU."""
    known = served_architectures()
    class_name = model.kind.__name__  # What a base's config names, whatever the folder's says.
    if known and not any(name in known for name in (class_name, *model.own_architectures)):
        _check_takes_attention(model)
    if model.device == "cpu":
        _check_cpu_kernels(model)


def _check_takes_attention(model: ServedModel) -> None:
    """Refuse a model of transformers that cannot run inside vLLM."""
    if model.kind.is_backend_compatible() or model.kind._can_set_attn_implementation():
        return
    raise UserError(
        f"vLLM cannot serve {model.kind.__name__}",
        where=str(model.folder / "config.json"),
        cause="vLLM has no such model, and transformers' own cannot run inside vLLM: it does not let its "
        "attention be replaced, or has none",
        remedy="choose an architecture that vLLM lists, such as Llama, Qwen, Mistral or GPT-NeoX, or "
        + OTHER_BACKEND,
    )


def _check_cpu_kernels(model: ServedModel) -> None:
    """Refuse shapes and layers that vLLM supports on GPUs only."""
    where = str(model.folder / "config.json")
    if getattr(model.kind, "_is_stateful", False):
        raise UserError(
            f"{model.kind.__name__} cannot be sampled on a CPU",
            where=where,
            cause="its layers carry a state along the text, and vLLM has kernels for them on GPUs only",
            remedy=f"use a model of attention layers alone, run on a GPU, or {OTHER_BACKEND}",
        )
    sizes = sizes_of(model.folder, trust_remote_code=model.trust_remote_code)
    check_head_dim(sizes.head_dim, model.folder)
    text = model.config.get_text_config(decoder=True)
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    if experts and text.hidden_size % ALIGNMENT:
        raise UserError(
            f"experts over a hidden size of {text.hidden_size} cannot be sampled on a CPU",
            where=where,
            cause=f"vLLM's CPU kernel for experts takes multiples of {ALIGNMENT}",
            remedy=f"use another model, run on a GPU, or {OTHER_BACKEND}",
        )


def check_serves_adapters(model: ServedModel) -> None:
    """Refuse an architecture whose adapters vLLM does not serve."""
    architectures = (*model.own_architectures, model.kind.__name__)
    location = served_architectures().get(architectures[0])
    if location is None or _supports_adapters(*location):
        return
    raise UserError(
        f"vLLM serves no adapters of {architectures[0]}",
        where="policy.lora.serve",
        remedy="set serve: merged: engines get the base with the update added",
    )


def check_head_dim(head_dim: int | None, folder: Path) -> None:
    """Refuse a size of attention heads that vLLM's CPU kernels do not know."""
    if head_dim is None or head_dim in CPU_HEAD_DIMS:
        return
    raise UserError(
        f"attention head size {head_dim} cannot be sampled on a CPU",
        where=str(folder / "config.json"),
        cause=f"vLLM's CPU attention knows the head sizes {', '.join(map(str, CPU_HEAD_DIMS))}",
        remedy="use a model with one of these (head_dim, or hidden size / attention heads), run on a GPU, "
        f"or {OTHER_BACKEND}",
    )


def check_executor(division: DeviceDivision, device: Literal["cpu", "cuda"]) -> None:
    """Refuse Ray workers on a CPU."""
    if division.executor == "ray" and device == "cpu":
        raise UserError(
            "engines on CPUs have no Ray workers",
            where="rollouts.executor",
            cause="vLLM's executor over Ray asks Ray for GPUs",
            remedy="set executor: processes, or give rollouts.resources.gpus where a cluster has them",
        )


def check_quantization(name: str | None, device: Literal["cpu", "cuda"]) -> None:
    """Refuse a method that vLLM does not have, and one that cannot quantise plain weights on the device."""
    if name is None:
        return
    methods = online_methods()
    if name not in methods:
        raise UserError(
            f"vLLM cannot quantise weights by {name!r} as it loads them",
            where="rollouts.quantization",
            cause="an engine's weights come from a learner that trains plain ones",
            remedy=nearest(name, methods),
        )
    if device == "cpu":
        raise UserError(
            f"engines on CPUs cannot quantise weights by {name!r}",
            where="rollouts.quantization",
            cause="vLLM has the kernels for weights that it quantises itself on GPUs only",
            remedy="leave quantization out, or give rollouts.resources.gpus where a cluster has them",
        )


def check_transfer(way: WeightTransfer, device: Literal["cpu", "cuda"]) -> None:
    """Refuse a way for weights that the device does not have."""
    if way in ("nccl", "ipc") and device == "cpu":
        raise UserError(
            f"engines on CPUs take no weights by {way}",
            where="rollouts.weight_transfer",
            cause=f"{way} copies between the memories of GPUs",
            remedy="set it to gloo or host, or give rollouts.resources.gpus where a cluster has them",
        )


@cache
def online_methods() -> tuple[str, ...]:
    """Read the names of vLLM's methods that quantise plain weights while they are loaded."""
    for node in _syntax("quantization", "config"):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == ONLINE:
            assert isinstance(node, ast.AnnAssign)
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return ()


@cache
def served_architectures() -> Mapping[str, tuple[str, str]]:
    """Read module and class of every text decoder that vLLM has, by architecture.

    Empty where vLLM is not installed or says it otherwise.
    """
    tables: dict[str, tuple[str, str]] = {}
    for node in _syntax("registry"):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in TABLES:
            assert isinstance(node, ast.Assign)
            tables |= ast.literal_eval(node.value)
    return tables


@cache
def _supports_adapters(module: str, kind: str) -> bool:
    """Tell if a class of vLLM's, or one that it inherits from, says that it takes adapters."""
    if not module.isidentifier() or module == "transformers":
        return (
            True  # vLLM's face of transformers' models does; what lies elsewhere is not looked at.
        )
    body = _syntax(module)
    origins = {
        alias.asname or alias.name: (node.module.rpartition(".")[2], alias.name)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module
        if node.level == 1 or node.module.startswith("vllm.model_executor.models.")
        for alias in node.names
    }
    definition = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == kind), None)
    bases = (
        [base.id for base in definition.bases if isinstance(base, ast.Name)] if definition else []
    )
    if "SupportsLoRA" in bases:
        return True
    local = {node.name for node in body if isinstance(node, ast.ClassDef)}
    above = [(module, base) for base in bases if base in local]
    above += [origins[base] for base in bases if base in origins and base not in local]
    return any(_supports_adapters(*location) for location in above if location[0] != "interfaces")


def _syntax(module: str, folder: str = MODELS) -> list[ast.stmt]:
    """Parse one of vLLM's modules; return nothing if it has no file."""
    spec = find_spec("vllm")
    places = spec.submodule_search_locations if spec is not None else None
    file = Path(places[0]) / folder / f"{module}.py" if places else Path()
    return ast.parse(file.read_text("utf-8")).body if file.is_file() else []
