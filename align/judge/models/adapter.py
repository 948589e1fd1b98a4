"""peft adapters: added to their base when they are measured, since engines take not every kind as it is.

The sum is taken in float32 and written in the precision that the engines compute in, so they hold what
they would hold after any other way of adding it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from align.data.base_model import load_encoder
from align.judge.models.base import Named
from align.judge.models.digest import combined, digest_of_files, digest_of_model
from align.judge.models.local import LocalModel, find_folder, quantised_by, served_policy
from align.learner.folder.folder import ADAPTER_BASE, is_read, load_shell
from align.round.session import StartEngine
from rollouts.engines.protocol import RolloutEngine
from rollouts.errors import UserError, first_line

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WRAPPERS = ("modules_to_save", "base_layer")
"""Modules that peft puts around those of the base."""
SHOWN = 3
"""Most names listed in a message."""


@dataclass(frozen=True, kw_only=True)
class AdapterModel(LocalModel):
    """An adapter over a base; ``folder`` is the base's."""

    adapter: Path

    @property
    def own_folder(self) -> Path:
        """Folder of the adapter."""
        return self.adapter

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Reader of prompts: the tokenizer saved with the adapter, else its base's."""
        return load_encoder(_tokenizer_folder(self.adapter, self.folder), self.policy)

    @contextmanager
    def serve(self, start_engine: StartEngine) -> Iterator[RolloutEngine]:
        """Write base and adapter as one model, start engines on it, and remove it in the end."""
        with TemporaryDirectory(prefix="keel-judge-") as scratch:
            merged = Path(scratch) / "merged"
            write_merged(self, merged)
            engine = start_engine(self.campaign, merged, self.context)
            try:
                yield engine
            finally:
                engine.close()


def is_adapter(folder: Path) -> bool:
    """Tell a folder that holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def open_adapter(argument: Named, folder: Path, base: Path | None) -> AdapterModel:
    """Open an adapter over the base that is given, that the command line names, or that the adapter names.

    Raises:
        UserError: no such base, a quantised one, pickled weights, or a base that engines cannot serve.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(file.name for file in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        raise UserError(
            f"the adapter has no {WEIGHTS}",
            where=str(folder),
            cause=f"its weights are pickled ({pickled[0]}), which can run code when read"
            if pickled
            else None,
            remedy="save the adapter with save_pretrained, which writes safetensors",
        )
    below = base or _base_of(argument, folder)
    if method := quantised_by(below):
        raise UserError(
            f"the adapter's base {str(below)!r} is quantised ({method}), and nothing can be added to it",
            where=str(folder),
            remedy="name the folder of the base before it was quantised with --base",
        )
    policy = served_policy(argument.file, below)
    _check_names(folder, load_shell(below, policy).model)
    files = [file for file in folder.iterdir() if file.name in (CONFIG, WEIGHTS) or is_read(file)]
    return AdapterModel(
        name=argument.name,
        folder=below,
        adapter=folder,
        file=argument.file,
        policy=policy,
        id=combined(digest_of_model(below, code=policy.trust_remote_code), digest_of_files(files)),
        notes=(f"{argument.name}: an adapter over {below}, added to it for the measurement",),
    )


def write_merged(model: AdapterModel, target: Path) -> None:
    """Write the base with the adapter added, and the tokenizer, in the precision of the engines.

    Raises:
        UserError: the adapter is of another base.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from align.data.base_model import load_tokenizer
    from align.learner.model.loading import write_model

    base = AutoModelForCausalLM.from_pretrained(
        model.folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=model.policy.trust_remote_code,
        use_safetensors=True,
    )
    try:
        added = PeftModel.from_pretrained(base, str(model.adapter), local_files_only=True)
        merged = added.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the adapter cannot be added to {str(model.folder)!r}: {first_line(error)}",
            where=str(model.adapter),
            cause="it was trained over another base, or by a newer peft",
            remedy="name its base with --base",
        ) from error
    write_model(merged, target, None, getattr(torch, str(model.policy.dtype)))
    tokenizer = load_tokenizer(_tokenizer_folder(model.adapter, model.folder), model.policy)
    tokenizer.save_pretrained(target)


def _base_of(argument: Named, folder: Path) -> Path:
    """Return the folder of an adapter's base."""
    try:
        base = json.loads((folder / CONFIG).read_text("utf-8"))[ADAPTER_BASE]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{CONFIG} cannot be read, or has no {ADAPTER_BASE}: {error!r}",
            where=str(folder / CONFIG),
            remedy="save the adapter again",
        ) from error
    if argument.base is None and not base:
        raise UserError(
            "the adapter does not say which base it belongs to",
            where=str(folder / CONFIG),
            remedy="name it with --base",
        )
    beside = folder / str(base)
    chosen = argument.base or (str(beside) if beside.is_dir() else str(base))
    try:
        return find_folder(chosen, argument.file.policy)
    except UserError as error:
        raise UserError(
            f"the adapter's base {chosen!r}: {error.what}",
            where="--base" if argument.base else str(folder / CONFIG),
            cause=error.cause,
            remedy="name the folder or hub id of its base with --base",
        ) from error


def _tokenizer_folder(adapter: Path, base: Path) -> Path:
    """Return the folder to read the tokenizer from."""
    return adapter if (adapter / "tokenizer_config.json").is_file() else base


def _check_names(adapter: Path, base: Any) -> None:
    """Refuse an adapter for modules that the base does not have; peft would pass over them in silence."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / WEIGHTS, "np") as opened:
            names = sorted(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the adapter's weights cannot be read: {error}",
            where=str(adapter / WEIGHTS),
            cause="the file was cut short, or is a pointer of Git LFS in place of the file",
            remedy="download or save it again",
        ) from error
    modules = {name for name, _ in base.named_modules()}
    plain = {name: name.removeprefix("base_model.model.") for name in names}
    strange = [full for full, name in plain.items() if _module_of(name) not in modules]
    if strange:
        raise UserError(
            f"the base has no module for {len(strange)} tensor(s) of the adapter: "
            f"{', '.join(strange[:SHOWN])}",
            where=str(adapter / WEIGHTS),
            cause="the adapter was trained over another base",
            remedy="name its base with --base",
        )


def _module_of(name: str) -> str:
    """Return the module that a tensor of an adapter changes.

    >>> _module_of("model.layers.0.self_attn.q_proj.lora_A.weight")
    'model.layers.0.self_attn.q_proj'
    >>> _module_of("lm_head.weight")
    'lm_head'
    """
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.startswith("lora_")), len(parts) - 1)
    return ".".join(part for part in parts[:end] if part not in WRAPPERS)
