"""Refuses a model folder that no engine can serve, in milliseconds and in words.

Engines need seconds to start and then fail deep inside their own code; everything that can be read
from the folder's file names and its ``config.json`` is checked here first. It imports no library and reads
no weights: a file that is there but damaged is found by `align.learner.folder.checks`, which a campaign's
base passes before anything is started.
"""

from __future__ import annotations

import json
from pathlib import Path

from rollouts.errors import UserError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def check_model_folder(path: str | Path) -> None:
    """Raise a `UserError` unless ``path`` holds a config, safetensors weights and a tokenizer.

    Args:
        path: a folder as written by ``save_pretrained``.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"there is no model folder {str(path)!r}",
            where="policy.model",
            remedy="give a folder written by save_pretrained, or a Hugging Face id",
        )
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            "the model folder has no config.json",
            where=str(folder),
            remedy="give a whole model as written by save_pretrained, not an adapter alone",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"config.json is not JSON: {error}", where=str(file), remedy="save the model again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            "config.json does not hold an object", where=str(file), remedy="save the model again"
        )
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        names = ", ".join(pickled[:3])
        raise UserError(
            "the model folder has no *.safetensors weights",
            where=str(folder),
            cause=f"its weights are pickled ({names}), which can run code when read"
            if names
            else None,
            remedy="save the model with save_pretrained(folder), which writes safetensors",
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(
            f"the model folder has no tokenizer (looked for {', '.join(_TOKENIZERS)})",
            where=str(folder),
            cause="the model was saved without its tokenizer",
            remedy="call tokenizer.save_pretrained on the same folder",
        )
