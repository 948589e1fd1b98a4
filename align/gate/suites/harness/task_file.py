"""A task's YAML file, read as data: what it would load and run is known before any of it happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from align.config.gate import HarnessConfig
from rollouts.errors import UserError

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""Readers of `datasets` by the ending of a file; none of them needs the network."""
CODE_KEYS = ("class", "unsafe_code", "custom_dataset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """The function that ``!function name`` stands for, not imported."""

    name: str
    file: Path | None
    """File that it lies in beside the task; None: in an installed package."""

    def __str__(self) -> str:
        return f"!function {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFile:
    """A task as its file and those it includes say it, with what the suite changes."""

    path: Path
    config: Mapping[str, Any]
    imported: tuple[Function, ...] = ()
    """Functions that the files name anywhere, also where another file or the suite replaces them: lm_eval
    imports each as it reads it."""

    @property
    def functions(self) -> list[Function]:
        return list(_functions(self.config))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a value besides the items themselves: not where the data lies."""
        places = {"dataset_path", "dataset_name", "dataset_kwargs", "metadata", "tag", "task_alias"}
        files = {f.file for f in self.functions if f.file is not None}
        return {
            "config": {key: value for key, value in self.config.items() if key not in places},
            "code": sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files),
        }


def read_task_file(path: Path, changes: Mapping[str, Any], where: str) -> TaskFile:
    """Read a task, its includes first.

    Args:
        changes: keys that the suite sets.

    Raises:
        UserError: a file cannot be read, is no mapping, or includes itself.
    """
    imported: list[Function] = []
    config = with_changes(_read(path, where, (), imported), changes)
    return TaskFile(path=path, config=config, imported=tuple(imported))


def changes_of(spec: HarnessConfig, max_tokens: int | None) -> dict[str, Any]:
    """Return the keys that a suite changes in a task's configuration."""
    changes: dict[str, Any] = {}
    if spec.num_fewshot is not None:
        changes["num_fewshot"] = spec.num_fewshot
    if max_tokens is not None:
        changes["generation_kwargs"] = {"max_gen_toks": max_tokens}
    if spec.data_files:
        first = next(iter(_paths(spec.data_files)))
        changes |= {
            "dataset_path": BUILDERS.get(Path(first).suffix, "json"),
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {
                    split: files if isinstance(files, str) else list(files)
                    for split, files in spec.data_files.items()
                }
            },
        }
    return changes


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with keys replaced; of ``generation_kwargs`` only those named."""
    merged = {**config, **changes}
    if "generation_kwargs" in changes:
        before = dict(config.get("generation_kwargs") or {})
        merged["generation_kwargs"] = {**before, **changes["generation_kwargs"]}
    return merged


def code_of(task: TaskFile) -> list[str]:
    """List the functions and keys by which a task runs code of its own."""
    names = [str(function) for function in task.imported]
    names += [key for key in CODE_KEYS if task.config.get(key, False) is not False]
    return list(dict.fromkeys(names))


def forbid_code(task: TaskFile, where: str) -> None:
    """Raise a `UserError` for a task that runs code of its own."""
    if names := code_of(task):
        raise UserError(
            f"the task {task.config.get('task')!r} runs code: {', '.join(names)}",
            where=where,
            cause=str(task.path),
            remedy="read that code, then set harness.allow_code: true",
        )


def forbid_network(task: TaskFile, where: str) -> None:
    """Raise a `UserError` for a task whose data is not on this machine, or not there at all."""
    if isinstance(task.config.get("custom_dataset"), Function):
        return
    source, options = task.config.get("dataset_path"), task.config.get("dataset_kwargs") or {}
    if address := next((text for text in _texts(options) if "://" in text), None):
        raise _from_network(task, address, where)
    if source not in set(BUILDERS.values()):
        if not isinstance(source, str) or not Path(source).is_dir():
            raise _from_network(task, f"the data set {source!r}", where)
        return
    files = _paths(options.get("data_files") or {})
    if not files:
        raise UserError(
            f"the task {task.config.get('task')!r} names no data_files",
            where=where,
            remedy="name them in the suite: harness.data_files: {test: FILE}",
        )
    for file in files:
        if not glob(file):
            raise UserError(
                f"the task {task.config.get('task')!r} reads {file!r}, which does not exist",
                where=where,
                remedy="name the file in the suite: harness.data_files: {test: FILE}",
            )


def _from_network(task: TaskFile, source: str, where: str) -> UserError:
    return UserError(
        f"the task {task.config.get('task')!r} reads {source} from the network",
        where=where,
        cause=f"{task.path} names it, and it is no local file or folder",
        remedy="download it before, and name the files: harness.data_files: {test: FILE}",
    )


def _paths(data_files: Any) -> list[str]:
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, Mapping):
        return [path for files in data_files.values() for path in _paths(files)]
    return [str(path) for path in data_files]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _read(
    path: Path, where: str, including: tuple[Path, ...], imported: list[Function]
) -> dict[str, Any]:
    path = path.resolve()
    if path in including:
        raise UserError(f"the task file {path} includes itself", where=where)
    try:
        config = _loader(path.parent, imported)(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the task file {path} cannot be read: {error}", where=where) from error
    if not isinstance(config, dict):
        raise UserError(f"the task file {path} is no mapping", where=where)
    included = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _read(path.parent / name, where, (*including, path), imported)
    return {**merged, **config}


def _loader(folder: Path, imported: list[Function]) -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        """Plain data; a function stays a name."""

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Function:
        name = str(loader.construct_scalar(node))
        file = folder / f"{name.rpartition('.')[0].replace('.', '/')}.py"
        imported.append(Function(name=name, file=file if file.is_file() else None))
        return imported[-1]

    Loader.add_constructor("!function", function)
    return Loader


def _functions(value: Any) -> Iterator[Function]:
    if isinstance(value, Function):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _functions(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _functions(entry)
