"""Folders of encoders, by their files alone: what is refused, the width of a query, the hash of weights."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from rollouts.errors import UserError

WHERE = "policy.bank.encoder"
WIDTHS = ("out_features", "word_embedding_dimension", "hidden_size")
"""Settings of a module of sentence-transformers that state the length of its output."""


def check_sentence_encoder(folder: Path, where: str = WHERE) -> None:
    """Refuse an encoder whose package or folder is missing, before anything is loaded.

    Args:
        where: setting that names it.

    Raises:
        UserError: it cannot be used.
    """
    if not (folder / "modules.json").is_file():
        raise UserError(
            f"{folder} is no folder of sentence-transformers: it has no modules.json",
            where=where,
            remedy="name a folder that SentenceTransformer.save wrote, or leave encoder out for the "
            "policy's own hidden states",
        )
    if find_spec("sentence_transformers") is None:
        raise UserError(
            "the encoder needs the package sentence-transformers, which is not installed",
            where=where,
            remedy="pip install 'keel-align[bank]', or leave encoder out for the policy's own hidden "
            "states",
        )


def sentence_width(folder: Path) -> int:
    """Return the length of a query, as the modules of an encoder's folder state it.

    Raises:
        UserError: none of them does.
    """
    widths: list[int] = []
    try:
        for module in json.loads((folder / "modules.json").read_text()):
            config = folder / module["path"] / "config.json"
            settings = json.loads(config.read_text()) if config.is_file() else {}
            widths += [int(settings[name]) for name in WIDTHS if name in settings][:1]
        return widths[-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"the encoder's folder does not say how long its vectors are ({error!r})",
            where=f"{WHERE}: {folder}",
            cause="the folder was copied in part, or another program wrote it",
            remedy="save it again with SentenceTransformer.save",
        ) from error


def weights_hash(folder: Path) -> str:
    """Return the sha256 over the names and bytes of a folder's weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
