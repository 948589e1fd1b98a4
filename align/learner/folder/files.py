"""Checks of a model folder's files: all present, whole, inside the folder, and without unwanted code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from align.learner.folder.folder import (
    INDEX,
    WEIGHTS,
    ModelFolder,
    is_read,
    model_files,
    names_in,
    weight_files,
)
from align.store.snapshots.contained import home_of, refuse_foreign
from rollouts.errors import UserError

SHOWN = 3
"""Largest number of names listed in a message."""


def is_model_folder(folder: ModelFolder) -> None:
    """Refuse a folder that is empty, or has an adapter or GGUF weights instead of a model."""
    path = folder.path
    if not path.is_dir():
        return  # has_the_usual_files refuses it.
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise _refused(path, "the model folder is empty", "save a model into it")
    adapter = "adapter_config.json" in names
    if adapter and "config.json" not in names:
        raise _refused(
            path,
            "the folder holds a PEFT adapter, not a model",
            "merge it into its base (PeftModel.from_pretrained(...).merge_and_unload()) and give the "
            "folder of the whole model",
        )
    if adapter:
        raise _refused(
            path,
            "the folder holds a PEFT adapter beside the model",
            "merge it into the model, or remove adapter_config.json",
            cause="transformers would add it to the model without a word, and engines would not",
        )
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf and not any(name.endswith(".safetensors") for name in names):
        raise _refused(
            path,
            f"the weights are in GGUF only ({gguf[0]})",
            "give the folder of the original model, or convert it to safetensors with save_pretrained",
        )


def is_its_own(folder: ModelFolder) -> None:
    """Refuse special files and links to files outside the folder; a hub cache may link to its own blobs."""
    home = home_of(folder.path)
    for file in sorted(folder.path.iterdir()):
        target = Path(os.path.realpath(file))  # This returns even for a link to itself.
        if file.is_symlink() and not target.exists():
            raise _refused(
                file,
                "the file that the link points to does not exist",
                "download the model again, or remove the link",
            )
        if file.is_symlink() or not file.is_dir():
            refuse_foreign(file, target.stat(), target, home)


def weights_are_whole(folder: ModelFolder) -> None:
    """Refuse weights that are missing, truncated, or other than their index says."""
    path = folder.path
    index = path / INDEX
    if not (path / WEIGHTS).exists() and not index.exists():
        present = sorted(file.name for file in path.glob("*.safetensors"))
        raise _refused(
            path,
            f"there is neither {WEIGHTS} nor {INDEX}, only {', '.join(present[:SHOWN])}",
            "save the model again with save_pretrained, or restore the index",
        )
    if not (path / WEIGHTS).exists():
        _check_index(index)
    for file in weight_files(path):
        _names_in(file)


def configs_are_json(folder: ModelFolder) -> None:
    """Refuse ``.json`` files that are not JSON, since transformers ignores some of them silently.

    Files with other names, such as a trainer's notes, are not read and may have any content.
    """
    for file in model_files(folder.path, code=False):
        if file.suffix != ".json" or not is_read(file):
            continue
        try:
            json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise _refused(
                file,
                f"{file.name} is not JSON: {error}",
                "download or save it again",
                cause="it was truncated, or edited by hand",
            ) from error


def _check_index(index: Path) -> None:
    """Refuse an index unless each of its files exists and has the tensors that the index lists for it."""
    try:
        places: dict[str, Any] = dict(json.loads(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(
            index, f"the index of the weights cannot be read: {error!r}", "save the model again"
        ) from error
    if not places or not all(isinstance(file, str) and file for file in places.values()):
        what = "a value that is no file's name" if places else "nothing"
        raise _refused(
            index, f"the index of the weights has {what} in its weight_map", "save the model again"
        )
    outside = sorted({file for file in places.values() if Path(file).name != file})
    if outside:
        raise _refused(
            index,
            f"the index names a file outside the folder: {outside[0]}",
            "put all shards into the folder itself",
        )
    absent = sorted({file for file in places.values() if not (index.parent / file).is_file()})
    if absent:
        raise _refused(
            index,
            f"the index names {len(absent)} file(s) that are not there: {', '.join(absent[:SHOWN])}",
            "download or copy the missing shards",
            cause="a download or a copy was cut short",
        )
    stored_names = {file: _names_in(index.parent / file) for file in sorted(set(places.values()))}
    wrong = sorted(name for name, file in places.items() if name not in stored_names[file])
    if wrong:
        raise _refused(
            index,
            f"{places[wrong[0]]} lacks {wrong[0]!r}, which the index lists for it",
            "download the model again: index and shards are of different versions",
        )


def _names_in(file: Path) -> set[str]:
    """Return the names of a file's tensors; refuse a file that is truncated."""
    from safetensors import SafetensorError

    try:
        return names_in(file)
    except (SafetensorError, OSError) as error:
        raise _refused(
            file,
            f"the file cannot be read as safetensors: {error}",
            "download or copy it again",
            cause="it was truncated, or is a pointer of Git LFS instead of the file",
        ) from error


def code_is_wanted(folder: ModelFolder) -> None:
    """Refuse a model that needs its own code unless that is allowed, and code outside the folder."""
    from transformers import CONFIG_MAPPING

    auto_map = folder.raw.get("auto_map")
    references: list[str] = []
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        # A tokenizer may have two.
        references += [item for item in (value if isinstance(value, list) else [value]) if item]
    references.sort()
    native = folder.raw.get("model_type") in CONFIG_MAPPING
    if not references or (native and not folder.policy.trust_remote_code):
        return
    config = folder.path / "config.json"
    if not folder.policy.trust_remote_code:
        raise _refused(
            config,
            f"the model brings code of its own ({', '.join(references[:SHOWN])})",
            "read the Python files of the folder, then set policy.trust_remote_code: true; or choose a "
            "model that transformers knows",
            cause=f"transformers has no model type {folder.raw.get('model_type')!r}",
        )
    present = {file.stem for file in model_files(folder.path, code=True) if file.suffix == ".py"}
    for reference in references:
        if "--" in reference or reference.partition(".")[0] not in present:
            raise _refused(
                config,
                f"the code of {reference!r} is not in the folder",
                "download the model with its Python files, and let auto_map name them without a repository",
                cause="a snapshot includes the code, verified by hash",
            )


def _refused(where: Path, what: str, remedy: str, cause: str | None = None) -> UserError:
    return UserError(what, where=str(where), cause=cause, remedy=remedy)
