"""Checks of whether vLLM can serve a model, from what vLLM says of itself, without starting it.

Importing vllm takes seconds and changes the process, so its registry is read as text: the keys of the
tables of architectures in ``registry.py``.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from align.learner.model.folder import ModelFolder
from align.learner.model.mapping import model_class
from rollouts.errors import UserError
from rollouts.model_config import sizes_of
from rollouts.model_folder import CPU_HEAD_DIMS

TABLES = ("_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
REGISTRY = "model_executor/models/registry.py"
ALIGNMENT = 32
"""Divisor of an expert's sizes that vLLM's CPU kernel asks for in the hidden size."""


def is_served(folder: ModelFolder) -> None:
    """Refuse an architecture that vLLM neither has nor can take from transformers."""
    known = served_architectures()
    kind = model_class(folder.path, folder.policy)
    named = folder.raw.get("architectures") or [kind.__name__]
    if not known or any(name in known for name in named):
        return
    if kind.is_backend_compatible() or kind._can_set_attn_implementation():
        return
    raise UserError(
        f"vLLM cannot serve {named[0]}",
        where=str(folder.path / "config.json"),
        cause="vLLM has no such model, and transformers' own cannot run inside vLLM: it does not let its "
        "attention be replaced, or has none",
        remedy="choose an architecture that vLLM lists, such as Llama, Qwen, Mistral or GPT-NeoX",
    )


def fits_cpu_kernels(folder: ModelFolder) -> None:
    """Refuse shapes and layers that vLLM has for GPUs only, where engines are on the CPU."""
    if folder.device != "cpu":
        return
    sizes = sizes_of(folder.path, trust_remote_code=folder.policy.trust_remote_code)
    kind = model_class(folder.path, folder.policy)
    where = str(folder.path / "config.json")
    if getattr(kind, "_is_stateful", False):
        raise UserError(
            f"{kind.__name__} cannot be sampled on a CPU",
            where=where,
            cause="its layers carry a state along the text, and vLLM has kernels for them on GPUs only",
            remedy="use a model of attention layers alone, or run on a GPU",
        )
    if sizes.head_dim is not None and sizes.head_dim not in CPU_HEAD_DIMS:
        raise UserError(
            f"attention head size {sizes.head_dim} cannot be sampled on a CPU",
            where=where,
            cause=f"vLLM's CPU attention knows the head sizes {', '.join(map(str, CPU_HEAD_DIMS))}",
            remedy="use a model with one of these (head_dim, or hidden size / attention heads), or run "
            "on a GPU",
        )
    text = folder.config.get_text_config(decoder=True)
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    if experts and text.hidden_size % ALIGNMENT:
        raise UserError(
            f"experts over a hidden size of {text.hidden_size} cannot be sampled on a CPU",
            where=where,
            cause=f"vLLM's CPU kernel for experts takes multiples of {ALIGNMENT}",
            remedy="use another model, or run on a GPU",
        )


@cache
def served_architectures() -> frozenset[str]:
    """Names of the text decoders that vLLM has; empty where vLLM is not installed or says it otherwise."""
    spec = find_spec("vllm")
    places = spec.submodule_search_locations if spec is not None else None
    file = Path(places[0]) / REGISTRY if places else Path()
    if not file.is_file():
        return frozenset()
    names: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in TABLES:
            assert isinstance(node, ast.Assign)
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            names |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    return frozenset(names)
