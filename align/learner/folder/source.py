"""Base model of a campaign, copied into the store once and compared with its folder at every start.

The manifest of the base has the hash of every file. If engines could not read the folder, because it has
tensors without a parameter or with unused names, the weights are written again by transformers; the
provenance of the base then has the hashes of the original files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from align.config.policy import PolicyConfig
from align.errors import StoreError
from align.learner.folder.folder import (
    READ,
    ModelFolder,
    is_read,
    load_shell,
    model_files,
    names_in,
    weight_files,
)
from align.learner.model.mapping import stored_form
from align.store.durable import digest_of
from align.store.snapshots.contained import copy_contained
from align.store.snapshots.manifest import HELD_OUT, Manifest, Provenance
from align.store.snapshots.snapshots import Snapshot, SnapshotStore

SOURCE = "source"
"""Key in the provenance's extra values for the sha256 of the base's original files, by name."""
SHOWN = 5
"""Largest number of files listed in a message."""


def take_base(
    source: Path, policy: PolicyConfig, store: SnapshotStore, config_hash: str
) -> Snapshot:
    """Publish a model folder as the first snapshot, which is named by its content.

    Files are copied unchanged. Weights and config that only transformers can read, and engines cannot, are
    written again as the learner reads them.
    """
    extra: dict[str, Mapping[str, str]] = {}
    files = model_files(source, code=policy.trust_remote_code)
    if _is_for_transformers_only(source, policy):
        extra = {SOURCE: {file.name: _sha256(file) for file in files}}

    def write(folder: Path) -> None:
        if extra:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=policy.trust_remote_code,
                use_safetensors=True,
            )
            model.save_pretrained(folder)
        for file in files:
            if not (extra and (file.suffix == ".safetensors" or file.name in READ[:1])):
                copy_contained(file, folder / file.name)

    origin = Provenance(
        kind="model",
        base=Path(policy.model).name,
        config_hash=config_hash,
        extra={**extra, HELD_OUT: "documents"},
    )
    return store.publish(write, origin, code=policy.trust_remote_code)


def left_behind(source: Path, policy: PolicyConfig) -> list[str]:
    """List tensors that the model has no parameter for, and weight files that it does not read."""
    read = set(weight_files(source))
    files = [file.name for file in source.glob("*.safetensors") if file not in read]
    return [*load_shell(source, policy).unexpected, *sorted(files)]


def check_unchanged(source: Path, policy: PolicyConfig, base: Manifest, store: Path) -> None:
    """Check that the model folder is the one that the campaign began with.

    Raises:
        StoreError: files differ; names them.
    """
    changes = changed_files(source, base, code=policy.trust_remote_code)
    if not changes:
        return
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    raise StoreError(
        f"the model folder {str(source)!r} has changed since the campaign began: "
        f"{', '.join(changes[:SHOWN])}{more}",
        where="policy.model",
        cause="it was trained, downloaded or edited again, and verdicts rest on the model as it was",
        remedy=f"restore the files (the store {str(store)!r} has them as the base's snapshot), set "
        "policy.revision for a model of the hub, or set store to another folder for a campaign from the "
        "new model",
    )


def changed_files(source: Path, base: Manifest, *, code: bool) -> list[str]:
    """List the differences between a folder and the base that was made of it, as ``NAME has changed``."""
    known: Mapping[str, str] = base.provenance.extra.get(SOURCE) or {
        entry.path: entry.sha256 for entry in base.files
    }
    present = {file.name: file for file in model_files(source, code=code) if is_read(file)}
    changes = [
        f"{name} {'has changed' if (source / name).is_file() else 'is gone'}"
        for name in sorted(known)
        if is_read(Path(name))
        and not ((source / name).is_file() and _sha256(source / name) == known[name])
    ]
    return changes + [f"{name} is new" for name in sorted(present.keys() - known.keys())]


def _is_for_transformers_only(source: Path, policy: PolicyConfig) -> bool:
    """Tell if transformers can read a folder that engines cannot.

    Such a folder has tensors without a parameter, tensor names without the prefix of the model's own, or a
    config that does not name the class that transformers builds.
    """
    shell = load_shell(source, policy)
    if shell.unexpected:
        return True
    model = shell.model
    folder = ModelFolder(path=source, policy=policy, device="cpu")
    own_code = policy.trust_remote_code and folder.raw.get("auto_map")
    if folder.raw.get("architectures") != [type(model).__name__] and not own_code:
        return True
    stored_names = stored_form(model, dict(model.named_parameters())).keys()
    prefix = f"{model.base_model_prefix}."
    names = {name for file in weight_files(source) for name in names_in(file)}
    return any(prefix + name in stored_names for name in names - stored_names)


def _sha256(file: Path) -> str:
    """Hash a file's content, once per process and state of the file; links are followed."""
    target = file.resolve()
    state = target.stat()
    return _sha256_of(target, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, *state: int) -> str:
    return digest_of(file)[1]
