"""Hash of what a model folder computes and reads; the same in every folder and on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from align.learner.folder.folder import is_read, model_files
from align.store.durable import digest_of


def digest_of_model(folder: Path, *, code: bool) -> str:
    """Hash weights, configs, tokenizer and chat template; ``code`` if it is run."""
    return digest_of_files(file for file in model_files(folder, code=code) if is_read(file))


def digest_of_files(files: Iterable[Path]) -> str:
    """Hash files by name and content; links, as a hub cache has them, are followed."""
    return combined(*(f"{file.name} {digest_of(file.resolve())[1]}" for file in sorted(files)))


def combined(*parts: str) -> str:
    """Hash several texts as one.

    >>> combined("a", "b") == combined("ab")
    False
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
