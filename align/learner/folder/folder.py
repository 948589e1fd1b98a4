"""Folder of a model, and the files in it that make up the model.

transformers reads only ``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists;
engines may read every safetensors file in the folder. So only these files are copied into a store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from align.config.policy import PolicyConfig
from align.learner.model.mapping import attention_of
from align.store.snapshots.manifest import MANIFEST
from rollouts.engines import DEFAULT_BACKEND

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_BASE = "base_model_name_or_path"
"""Key of an adapter's config that names the model under it."""
CODE = ".py"
PLAIN_SUFFIXES = frozenset({".json", ".txt", ".jinja", ".model"})
"""Suffixes of configs, vocabularies, chat templates and sentencepiece models."""
READ = ("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
READ_PREFIXES = (
    "tokenizer",
    "vocab",
    "merges",
    "chat_template",
    "tekken",
    "spiece",
    "sentencepiece",
)
"""Prefixes of names of files, besides weights and code, that change how a model reads text."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """Folder of a base model, with what has been read of it."""

    path: Path
    policy: PolicyConfig
    device: Literal["cpu", "cuda"]
    """Device of the engines."""
    backend: str = DEFAULT_BACKEND
    """Backend of the engines, as ``rollouts.backend`` names it."""

    @cached_property
    def raw(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        content: dict[str, Any] = json.loads((self.path / "config.json").read_text("utf-8"))
        return content

    @property
    def architectures(self) -> tuple[str, ...]:
        """Names of classes in the config, such as ``LlamaForCausalLM``; a folder may name none."""
        names = self.raw.get("architectures") or ()
        return (names,) if isinstance(names, str) else tuple(map(str, names))

    @cached_property
    def config(self) -> Any:
        """Config as transformers reads it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(
            self.path, local_files_only=True, trust_remote_code=self.policy.trust_remote_code
        )

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the model."""
        from align.data.base_model import load_tokenizer

        return load_tokenizer(self.path, self.policy)

    @cached_property
    def shell(self) -> Shell:
        """Model without its weights, and the fit of its files; no tensor is read."""
        return load_shell(self.path, self.policy)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell:
    """Model on the meta device, with names and shapes of its parameters but no numbers."""

    model: Any
    missing: tuple[str, ...]
    """Parameters that are in no file."""
    mismatched: tuple[str, ...]
    """Parameters whose tensor has another shape."""
    unexpected: tuple[str, ...]
    """Tensors that the model has no parameter for."""


def load_shell(folder: Path, policy: PolicyConfig) -> Shell:
    """Build a model from a folder's config and the headers of its files, without reading a tensor."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    # transformers would also log what does not fit, which the result reports.
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            attn_implementation=attention_of(folder, policy),
            local_files_only=True,
            trust_remote_code=policy.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(before)
    return Shell(
        model=model,
        missing=tuple(sorted(report["missing_keys"])),
        mismatched=tuple(sorted(str(entry[0]) for entry in report["mismatched_keys"])),
        unexpected=tuple(sorted(report["unexpected_keys"])),
    )


def stored_dtype(base: Path, policy: PolicyConfig) -> Literal["float32", "bfloat16"]:
    """Choose the precision of whole-model snapshots; ``auto`` follows the files of the base."""
    if policy.snapshot_dtype != "auto":
        return policy.snapshot_dtype
    from safetensors import safe_open

    kinds: set[str] = set()
    for file in weight_files(base):
        with safe_open(file, "np") as opened:
            kinds |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return "bfloat16" if "BF16" in kinds and "F32" not in kinds else "float32"


def weight_files(folder: Path) -> list[Path]:
    """List the files of the weights, if any; some may be absent."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS] if (folder / WEIGHTS).exists() else []
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def names_in(file: Path) -> set[str]:
    """Read the names of a file's tensors."""
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return set(opened.keys())


def is_read(file: Path) -> bool:
    """Tell by a file's name if the model or its tokenizer depends on the file."""
    weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
    plain = file.name in READ or file.name.startswith(READ_PREFIXES)
    return weights or plain or file.suffix == CODE


def model_files(folder: Path, *, code: bool) -> list[Path]:
    """List the files that a store copies: weights, their index, configs, tokenizer, and ``code``."""
    weights = weight_files(folder)
    sharded = weights and weights[0].name != WEIGHTS
    suffixes = PLAIN_SUFFIXES | ({CODE} if code else set())
    plain = [
        file
        for file in folder.iterdir()
        if file.suffix in suffixes
        and file.is_file()
        # The folder may be a snapshot of another store, whose manifest is of that store.
        and file.name != MANIFEST
        and (sharded or not file.name.endswith("safetensors.index.json"))
    ]
    return sorted([*weights, *plain])
