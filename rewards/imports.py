"""Import by ``pkg.mod:name`` and ``file.py:name``, the latter relative to the current folder.

The code behind a name has a digest, by which results of other code are told apart.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.patience import importing
from rollouts.errors import UserError, nearest


def import_reward(name: str, where: str | None) -> Any:
    """Return the reward behind ``pkg.mod:name`` or ``file.py:name``; see `import_target`."""
    return import_target(name, where, "reward", "function")


def import_target(name: str, where: str | None, noun: str, kind: str) -> Any:
    """Return the object behind ``pkg.mod:name`` or ``file.py:name``.

    Args:
        noun: word of messages for what the name stands for, such as ``reward``.
        kind: ``function`` or ``class``.

    Raises:
        UserError: its code raised, or there is nothing callable of that name.
    """
    origin, _, attribute = name.rpartition(":")
    if not origin or not attribute:
        raise UserError(
            f"{noun} {name!r} names no {kind}",
            where=where,
            remedy=f"write pkg.mod:{kind} or file.py:{kind}",
        )
    try:
        with importing(origin):
            is_file = origin.endswith(".py")
            module = _file_module(Path(origin)) if is_file else importlib.import_module(origin)
    except (Exception, SystemExit) as error:  # the user's own module code runs here
        raise UserError(
            f"{noun} {name!r}: cannot import {origin!r}",
            where=where,
            cause=f"{type(error).__name__}: {error}",
            remedy=f"write pkg.mod:{kind}, or file.py:{kind} with the path from the campaign file's "
            "folder (on a command line: from the current folder)",
        ) from error
    target: Any = getattr(module, attribute, None)
    if target is None:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(
            f"{noun} {name!r}: no {attribute!r} in it",
            where=where,
            remedy=nearest(attribute, public) if public else f"define the {kind} there",
        )
    if not callable(target):
        raise UserError(
            f"{noun} {name!r} is of type {type(target).__name__}, not a {kind}",
            where=where,
            remedy="name a function, a class, or an instance that can be called",
        )
    return target


def _file_module(path: Path) -> ModuleType:
    """Run a file as a module, once per content: two rewards of one file share their globals.

    The source that was hashed is what runs. Python's own loader would take compiled code from
    ``__pycache__``, which knows a file by its size and second: an edit within the second is missed.
    """
    source = path.read_bytes()
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:12]
    module_name = f"keel_reward_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = ModuleType(module_name)
    module.__file__ = str(path.absolute())  # A worker leaves its folder after the import.
    sys.modules[module_name] = module  # dataclasses look a class's module up there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def code_digest(name: str, folder: Path | None = None) -> str | None:
    """Return what tells the code behind ``file.py:name`` or ``pkg.mod:name`` from other code.

    That is the sha256 of the file or of the module's source, and ``NAME==VERSION`` for a module of an
    installed distribution. Nothing is imported.

    Args:
        folder: folder that files and modules are looked up in; None: the current one.

    Returns:
        None for a name that leads to no code: that of a shipped reward, or an address.
    """
    origin, folder = name.rpartition(":")[0], folder or Path.cwd()
    if origin.endswith(".py"):
        file = folder / origin
        return _file_digest(file) if file.is_file() else None
    if not all(part.isidentifier() for part in origin.split(".")):
        return None
    spec = _module_spec(origin, folder)
    source = (
        Path(spec.origin).resolve()
        if spec is not None and spec.has_location and spec.origin
        else None
    )
    if source is None:
        return None
    if any(source.is_relative_to(installed) for installed in _installed_folders()):
        return _release(origin.partition(".")[0]) or _file_digest(source)
    return _file_digest(source)


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _module_spec(module: str, folder: Path) -> ModuleSpec | None:
    """Find a module without importing it or what it lies in."""
    importlib.invalidate_caches()
    first, *others = module.split(".")
    try:
        # The finders know editable installations, and the folder comes before all of them.
        spec = PathFinder.find_spec(first, [str(folder)]) or find_spec(first)
    except (ImportError, ValueError):  # ValueError: a module without a spec, such as __main__
        return None
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its last name alone: a full one would ask for its package among those that are imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _installed_folders() -> set[Path]:
    return {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}


@cache
def _release(package: str) -> str | None:
    """Return the distributions of an installed package with their versions; None where none is known."""
    names = sorted(set(metadata.packages_distributions().get(package, ())))
    return ", ".join(f"{name}=={metadata.version(name)}" for name in names) or None
