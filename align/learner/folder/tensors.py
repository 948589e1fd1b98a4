"""Checks of a model folder's tensors: each parameter has one of its shape, and all numbers are finite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from align.learner.folder.folder import ModelFolder, weight_files
from align.learner.model.mapping import stored_form
from rollouts.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

HALF = 2
"""Bytes of the narrowest numbers that can be trained."""
WEIGHT = ".weight"
"""Ending of the names of weights; masks and positions, which are integers, have other names."""
SHOWN = 3
"""Largest number of names listed in a message."""


def tensors_fit(folder: ModelFolder) -> None:
    """Refuse weights that lack a parameter of the model, which would be initialised at random."""
    try:
        shell = folder.shell
    except Exception as error:
        raise UserError(
            f"transformers cannot build the model: {first_line(error)}",
            where=str(folder.path),
            cause="config.json and the weights are of different models, or the config is damaged",
            remedy="save the model again with save_pretrained",
        ) from error
    if shell.missing:
        heads = getattr(shell.model, "_tied_weights_keys", None) or ()
        untied = [name for name in shell.missing if name in heads]
        raise UserError(
            f"the weights lack {len(shell.missing)} parameter(s) of the model: {_listed(shell.missing)}",
            where=str(folder.path),
            cause="config.json says tie_word_embeddings: false, and no file holds an output layer"
            if untied
            else "the weights are of another model, or were saved in part",
            remedy="set tie_word_embeddings: true in config.json, if the model was trained so"
            if untied
            else "save the whole model again with save_pretrained",
        )
    if shell.mismatched:
        raise UserError(
            f"{len(shell.mismatched)} tensor(s) have another shape than the model: "
            f"{_listed(shell.mismatched)}",
            where=str(folder.path),
            cause="config.json is of another size of the model",
            remedy="restore the config.json that the weights were saved with",
        )


def nothing_is_cut_off(folder: ModelFolder) -> None:
    """Refuse files with more layers or experts than the config, which would be dropped silently.

    Other tensors without a parameter, such as a value head, are allowed and not copied into the store.
    """
    import torch

    model = folder.shell.model
    parameters = dict(model.named_parameters())
    patterns = {
        _pattern(name) for name in parameters.keys() | stored_form(model, parameters).keys()
    }
    empty = tuple(
        f"{name}."
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == 0
    )
    more = [
        name
        for name in folder.shell.unexpected
        if _pattern(name) in patterns or name.startswith(empty)
    ]
    if more:
        raise UserError(
            f"the files have {len(more)} tensor(s) of layers that config.json does not have: "
            f"{_listed(more)}",
            where=str(folder.path / "config.json"),
            cause="config.json is of a smaller size of the model (num_hidden_layers, num_experts)",
            remedy="restore the config.json that the weights were saved with",
        )


def is_tied_as_it_says(folder: ModelFolder) -> None:
    """Refuse a config that ties the output layer to an embedding although their tensors differ."""
    import torch

    model = folder.shell.model
    pairs = getattr(model, "_tied_weights_keys", None)
    if not isinstance(pairs, dict) or not model.config.get_text_config().tie_word_embeddings:
        return
    for name, source in pairs.items():
        shapeless = [{key: torch.empty(1, 1, device="meta")} for key in (name, source)]
        stored = [next(iter(stored_form(model, tensors))) for tensors in shapeless]
        head, embedding = (_tensor(folder.path, key) for key in stored)
        if head is None or embedding is None or torch.equal(head, embedding):
            continue
        raise UserError(
            f"config.json ties {stored[0]} to {stored[1]}, and the files have two different tensors",
            where=str(folder.path / "config.json"),
            cause="tie_word_embeddings is missing or true in the config of a model with its own output "
            "layer",
            remedy="set tie_word_embeddings: false in config.json",
        )


def numbers_are_finite(folder: ModelFolder) -> None:
    """Refuse weights with a NaN or an infinity, and quantised ones; reads every file once."""
    import torch
    from safetensors import safe_open

    for file in weight_files(folder.path):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor: Tensor = opened.get_tensor(name)
                floating = tensor.is_floating_point()
                if not tensor.numel() or not (floating or name.endswith(WEIGHT)):
                    continue
                if not floating or tensor.element_size() < HALF:
                    raise UserError(
                        f"the tensor {name!r} is stored in {str(tensor.dtype).removeprefix('torch.')}",
                        where=str(file),
                        cause="quantised weights cannot be trained, nor updated in an engine",
                        remedy="give the folder of the original model in bfloat16, float16 or float32",
                    )
                low, high = (float(bound) for bound in torch.aminmax(tensor))
                if not (isfinite(low) and isfinite(high)):
                    raise UserError(
                        f"the tensor {name!r} has numbers that are not finite",
                        where=str(file),
                        cause="a training run that diverged, an overflow in float16, or a damaged file",
                        remedy="choose an earlier checkpoint, or download the file again",
                    )


def tokens_have_rows(folder: ModelFolder) -> None:
    """Refuse a tokenizer with ids beyond the embedding; a longer embedding is allowed."""
    try:
        tokens: dict[str, int] = folder.tokenizer.get_vocab()
    except Exception as error:
        raise UserError(
            f"the tokenizer cannot be read: {first_line(error)}",
            where=str(folder.path),
            remedy="call tokenizer.save_pretrained on the folder again",
        ) from error
    rows = int(folder.shell.model.get_input_embeddings().weight.shape[0])
    beyond = sorted((number, token) for token, number in tokens.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"the tokenizer has {len(beyond)} token(s) beyond the embedding's {rows} rows, such as "
            f"{token!r} with the id {number}",
            where=str(folder.path),
            cause="tokens were added to the tokenizer and not to the model",
            remedy="call model.resize_token_embeddings(len(tokenizer)) and save the model again",
        )


def _tensor(folder: Path, name: str) -> Tensor | None:
    """Read a tensor of a folder; None if no file has it."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                tensor: Tensor = opened.get_tensor(name)
                return tensor
    return None


def _pattern(name: str) -> str:
    """Return a tensor's name without the numbers of its layer and expert.

    >>> _pattern("model.layers.11.mlp.up_proj.weight")
    'model.layers.#.mlp.up_proj.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
