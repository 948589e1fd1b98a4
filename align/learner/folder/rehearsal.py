"""Trial write of a model folder before anything starts, so that no round fails when it publishes.

All files of a snapshot are written to a temporary folder, except the weights, of which only names and
shapes are converted to the form of a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align.learner.folder.folder import ModelFolder
from align.learner.model.mapping import stored_form
from align.store.snapshots.snapshots import SUFFIXES
from rollouts.errors import UserError

REMEDIES = {
    "generation_config.json": "mend that file: with do_sample: false leave out temperature, top_p and "
    "top_k, or set do_sample: true",
    "config.json": "save the model again with save_pretrained",
    "weights": "report the model's type and transformers' version",
    "tokenizer": "save the tokenizer again with tokenizer.save_pretrained",
}
"""Remedies by the part of the folder that cannot be written."""


def can_be_written(folder: ModelFolder) -> None:
    """Refuse a folder with a part that cannot be written into a snapshot."""
    model = folder.shell.model
    with TemporaryDirectory(prefix="keel-rehearsal-") as name:
        target = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "config.json": lambda: model.config.save_pretrained(target),
            "generation_config.json": lambda: (
                model.generation_config.save_pretrained(target) if model.can_generate() else None
            ),
            "weights": lambda: stored_form(model, dict(model.named_parameters())),
            "tokenizer": lambda: folder.tokenizer.save_pretrained(target),
        }
        for part, write in parts.items():
            try:
                write()
            except Exception as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise UserError(
                    f"the {part} can be read but not written: {' '.join(lines[:2]) or repr(error)}",
                    where=str(folder.path),
                    cause="every round writes the model as a snapshot, and would fail at its end",
                    remedy=REMEDIES[part],
                ) from error
        allowed = SUFFIXES | ({".py"} if folder.policy.trust_remote_code else set())
        for file in sorted(target.rglob("*")):
            if file.is_file() and file.suffix not in allowed:
                raise UserError(
                    f"its tokenizer writes {file.name!r}, which may not be in a snapshot",
                    where=str(folder.path),
                    cause=f"a snapshot holds {', '.join(sorted(allowed))}",
                    remedy="save a fast tokenizer (tokenizer.json) into the folder",
                )
