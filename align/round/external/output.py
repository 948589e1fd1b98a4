"""Checks of the folder that a command wrote: as a base's, and against the policy that it is to replace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.config.policy import PolicyConfig
from align.learner.folder.checks import check_base
from align.learner.folder.folder import load_shell, model_files
from align.learner.teachers.companions import tokens_of
from rollouts.errors import KeelError, RunError
from rollouts.machine.device import resolve_device

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SHOWN = 3
"""Most names listed in a message."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every parameter by name."""


def files_of(output: Path, base: Path, policy: PolicyConfig, backend: str) -> list[Path]:
    """Return the files of a candidate that a command wrote: weights and their configs.

    Args:
        backend: backend of the engines that are to serve it.

    Raises:
        RunError: it wrote no model, a damaged one, or one that cannot replace the policy.
    """
    try:
        if policy.snapshot_kind == "adapter":
            _check_adapter(output, base, policy)
            return [output / name for name in ADAPTER_FILES]
        check_base(output, policy, resolve_device("auto"), backend=backend)
        _check_shapes(_shapes(output, policy), _shapes(base, policy), output)
        _check_tokens(output, base)
    except KeelError as error:
        raise RunError(
            f"the command's model cannot be taken: {error.what}",
            where=error.where or str(output),
            cause=error.cause,
            remedy=error.remedy
            or "write a model of the parent's architecture with save_pretrained",
        ) from error
    # The tokenizer stays the campaign's, and notes of a trainer are not wanted.
    configs = ("config.json", "generation_config.json", "model.safetensors.index.json")
    files = model_files(output, code=False)
    return [file for file in files if file.suffix == ".safetensors" or file.name in configs]


def _shapes(folder: Path, policy: PolicyConfig) -> Shapes:
    model = load_shell(folder, policy).model
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _check_shapes(shapes: Shapes, expected: Shapes, output: Path) -> None:
    """Refuse a model of another architecture or size."""
    names = shapes.keys() | expected.keys()
    differing = sorted(name for name in names if shapes.get(name) != expected.get(name))
    if not differing:
        return
    raise RunError(
        f"{len(differing)} of its parameters are not those of the policy: {', '.join(differing[:SHOWN])}",
        where=str(output),
        cause="it is of another architecture or size, or its vocabulary was changed",
        remedy="train the model in {parent}, and keep its config and tokenizer",
    )


def _check_tokens(output: Path, base: Path) -> None:
    """Refuse a tokenizer that gives other ids: prompts are read with the campaign's."""
    if not (base / "tokenizer.json").is_file():
        return
    tokens, expected = (tokens_of(folder, str(folder)) for folder in (output, base))
    if differing := sorted(tokens.items() ^ expected.items()):
        raise RunError(
            f"it has another tokenizer than the campaign: {differing[0][0]!r} is in one of them only",
            where=str(output),
            remedy="keep the tokenizer of {parent}",
        )


def _check_adapter(output: Path, base: Path, policy: PolicyConfig) -> None:
    """Refuse what is no adapter of the policy's own shape and scale."""
    absent = [name for name in ADAPTER_FILES if not (output / name).is_file()]
    if absent:
        raise RunError(
            f"the policy is an adapter, and there is no {absent[0]} in the output",
            where=str(output),
            remedy="write the adapter with save_pretrained, or set policy.lora.merge for whole models",
        )
    _check_shapes(_adapter_shapes(output), _policy_shapes(base, policy), output)
    _check_finite(output / ADAPTER_FILES[1])
    config = _config_of(output / ADAPTER_FILES[0])
    lora = policy.lora
    assert lora is not None, "the check of the snapshot's kind"
    scale: dict[str, Any] = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "alpha_pattern": {},
        "rank_pattern": {},
    }
    for key, value in scale.items():
        written = config.get(key) or type(value)()
        if written != value:
            raise RunError(
                f"{key} of the adapter is {written}, and the policy's is {value}",
                where=str(output / ADAPTER_FILES[0]),
                remedy="train an adapter with the settings of policy.lora",
            )


def _config_of(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"the adapter's config cannot be read: {error}",
            where=str(file),
            remedy="write the adapter with save_pretrained",
        ) from error


def _check_finite(file: Path) -> None:
    """Refuse an adapter with a value that is no number."""
    from safetensors.torch import load_file

    for name, tensor in load_file(file).items():
        if not tensor.isfinite().all():
            raise RunError(
                f"{name} of the adapter is not finite",
                where=str(file),
                cause="the training diverged",
                remedy="train with a lower learning rate; the round begins anew with the next keel run",
            )


def _adapter_shapes(output: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(output / ADAPTER_FILES[1], "np") as opened:
            return {n: tuple(opened.get_slice(n).get_shape()) for n in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"the adapter cannot be read as safetensors: {error}", where=str(output)
        ) from error


def _policy_shapes(base: Path, policy: PolicyConfig) -> Shapes:
    """Return names and shapes of the tensors that a snapshot of the policy has."""
    from peft import get_peft_model_state_dict

    from align.learner.model.adapter import TRAINED, with_adapter

    assert policy.lora is not None, "the check of the snapshot's kind"
    model = with_adapter(load_shell(base, policy).model, policy.lora)
    state = get_peft_model_state_dict(model, adapter_name=TRAINED)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
