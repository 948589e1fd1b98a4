"""A campaign's base: copied into the store once, and compared with its folder whenever inputs are loaded.

The base's manifest holds the hash of every file. Where the folder's tensors are written anew on the way, as
engines would stumble over tensors that the model has no place for or names that it does not use, its
provenance holds the hashes of the files that they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from shutil import copyfile

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
from align.store.snapshots.manifest import HELD_OUT, Manifest, Provenance
from align.store.snapshots.snapshots import Snapshot, SnapshotStore

SOURCE = "source"
"""Key of the provenance's extra values: sha256 of the files that a base was made of, by name."""
SHOWN = 5
"""Most files listed in a message."""


def take_base(
    source: Path, policy: PolicyConfig, store: SnapshotStore, config_hash: str
) -> Snapshot:
    """Publish a model folder as the first snapshot; it is named by its content from here on.

    Files are copied as they are. Where transformers reads them with more tolerance than engines do, they
    are written anew as the learner reads them.
    """
    extra: dict[str, Mapping[str, str]] = {}
    files = model_files(source, code=policy.trust_remote_code)
    if _is_for_transformers_only(source, policy):
        extra = {SOURCE: {file.name: _sha256(file) for file in files}}

    def write(folder: Path) -> None:
        if extra:
            _write_anew(source, policy, folder)
        for file in files:
            if not (extra and (file.suffix == ".safetensors" or file.name in READ[:1])):
                copyfile(file, folder / file.name)

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
    """Refuse to go on if the folder is not what the campaign began with.

    Raises:
        StoreError: names the files that differ.
    """
    changes = changed_files(source, base, code=policy.trust_remote_code)
    if not changes:
        return
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    raise StoreError(
        f"the model folder {str(source)!r} is not what the campaign began with: "
        f"{', '.join(changes[:SHOWN])}{more}",
        where="policy.model",
        cause="it was trained, downloaded or edited again, and verdicts rest on the model as it was",
        remedy=f"restore the files (the store {str(store)!r} has them as the base's snapshot), set "
        "policy.revision for a model of the hub, or set store to another folder for a campaign from the "
        "new model",
    )


def changed_files(source: Path, base: Manifest, *, code: bool) -> list[str]:
    """List what differs between a folder and the base that was made of it, as ``NAME has changed``."""
    known: Mapping[str, str] = base.provenance.extra.get(SOURCE) or {
        entry.path: entry.sha256 for entry in base.files
    }
    present = {file.name: file for file in model_files(source, code=code) if is_read(file)}
    changes = [
        f"{name} {'has changed' if (source / name).is_file() else 'is gone'}"
        for name in sorted(known)
        if is_read(Path(name)) and not _has(source / name, known[name])
    ]
    return changes + [f"{name} is new" for name in sorted(present.keys() - known.keys())]


def _is_for_transformers_only(source: Path, policy: PolicyConfig) -> bool:
    """Tell whether an engine would stumble where transformers does not.

    Tensors beyond the model's, names without the prefix that the model's own have, and a config that names
    another class than transformers builds, or none.
    """
    shell = load_shell(source, policy)
    if shell.unexpected:
        return True
    model = shell.model
    folder = ModelFolder(path=source, policy=policy, device="cpu")
    own_code = policy.trust_remote_code and folder.raw.get("auto_map")
    if folder.raw.get("architectures") != [type(model).__name__] and not own_code:
        return True
    own = stored_form(model, dict(model.named_parameters())).keys()
    prefix = f"{model.base_model_prefix}."
    names = {name for file in weight_files(source) for name in names_in(file)}
    return any(prefix + name in own for name in names - own)


def _write_anew(source: Path, policy: PolicyConfig, folder: Path) -> None:
    """Write the model's own tensors, in the precision they have."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype="auto",
        local_files_only=True,
        trust_remote_code=policy.trust_remote_code,
        use_safetensors=True,
    )
    model.save_pretrained(folder)


def _has(file: Path, sha256: str) -> bool:
    return file.is_file() and _sha256(file) == sha256


def _sha256(file: Path) -> str:
    """Hash a file's content, once per process and state of it; a hub cache links to its blobs."""
    target = file.resolve()
    state = target.stat()
    return _sha256_of(target, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, *state: int) -> str:
    return digest_of(file)[1]
