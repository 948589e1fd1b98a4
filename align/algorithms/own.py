"""User-defined algorithms, named ``file.py:Class`` or ``pkg.mod:Class`` instead of a registered name.

A campaign that names a file asks for its code to run. The class is a subclass of a family of
`align.algorithms`, and its fields are the options that a campaign may set. The sha256 of its file is part
of the campaign. The code itself is sent to learner ranks, which may lack the file.
"""

from __future__ import annotations

import ast
import copyreg
import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import create_model

from align.algorithms.base import Algorithm, PolicyGradient
from align.algorithms.preference.preference import Preference
from align.settings import FunctionPath, Places
from rewards.patience import importing
from rollouts.errors import nearest

PREFIX = "keel_algorithm_"
"""Prefix of the names of modules that were made from a file."""
CODE = "code_sha256"
"""Field of every user-defined algorithm that holds the sha256 of its class's file."""
FAMILIES: tuple[tuple[type[Algorithm], tuple[str, ...]], ...] = (
    (PolicyGradient, ("advantages", "loss")),
    (Preference, ("pair_loss",)),
    (Algorithm, ("rows", "objective")),
)
"""Methods that a subclass has to define, by family; the first family that fits counts."""

_CLASSES: dict[tuple[str, str], type[Algorithm]] = {}
"""Classes made in this process, by sha256 of the code and class name, so that each is made once."""


def is_own(name: object) -> bool:
    """Tell if a name is a path to code; registered names have no colon."""
    return isinstance(name, str) and ":" in name


def load_own(name: str, context: object = None) -> type[Algorithm]:
    """Return the class behind ``file.py:Class`` or ``pkg.mod:Class``, validated like any algorithm.

    Args:
        context: `Places` that relative paths start from; None: the current folder.

    Raises:
        ValueError: the code cannot be imported, or the class is no complete algorithm.
    """
    location, _, attribute = name.rpartition(":")
    if location.endswith(".py"):
        path = Path(context.input(location) if isinstance(context, Places) else location)
        if not path.is_file():
            raise ValueError(f"algorithm {name!r}: there is no file {path}")
        source = path.read_bytes()
        module = _from_source(source, str(path.resolve()), name)
    else:
        module = _imported(location, name)
        file = getattr(module, "__file__", None)
        source = Path(file).read_bytes() if file else location.encode()
    algorithm = _registered(module, attribute, source, name)
    _check_described(source, attribute, name)
    return algorithm


def rebuilt(
    source: bytes, path: str, module: str, attribute: str, values: dict[str, Any]
) -> Algorithm:
    """Rebuild an algorithm in another process, from its code and its settings."""
    loaded = sys.modules.get(module)
    if loaded is None:
        from_file = module.startswith(PREFIX)
        loaded = (
            _from_source(source, path, attribute, module)
            if from_file
            else _imported(module, attribute)
        )
    return _registered(loaded, attribute, source, attribute).model_validate(values)


def _registered(module: ModuleType, attribute: str, source: bytes, name: str) -> type[Algorithm]:
    """Make the campaign's class from the user's, with the sha256 of its code, once per process.

    It is pickled as its code and settings, so another process can rebuild it without the file.
    """
    digest = hashlib.sha256(source).hexdigest()
    known = _CLASSES.get((digest, attribute))
    if known is not None:
        return known
    base = _checked(module, attribute, name)
    fields: dict[str, Any] = {"name": (FunctionPath, ...), CODE: (str, digest)}
    algorithm = create_model(base.__name__, __base__=base, __module__=base.__module__, **fields)
    path = str(getattr(module, "__file__", "") or "")

    def reduced(instance: Algorithm) -> tuple[Any, ...]:
        return rebuilt, (source, path, module.__name__, attribute, dict(instance))

    copyreg.pickle(algorithm, reduced)
    _CLASSES[digest, attribute] = algorithm
    return algorithm


def _checked(module: ModuleType, attribute: str, name: str) -> type[Algorithm]:
    """Return the class, or refuse one that is no subclass of a family or lacks its methods."""
    algorithm = getattr(module, attribute, None)
    if algorithm is None:
        classes = [
            k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Algorithm)
        ]
        hint = nearest(attribute, classes) if classes else "define the class there"
        raise ValueError(f"algorithm {name!r}: no {attribute!r} in it; {hint}")
    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm)):
        raise ValueError(
            f"algorithm {name!r} is no subclass of Algorithm; derive it from a family, such as "
            "align.algorithms.PolicyGradient or GRPO"
        )
    family, methods = next((f, m) for f, m in FAMILIES if issubclass(algorithm, f))
    missing = [each for each in methods if getattr(algorithm, each) is getattr(family, each)]
    if missing:
        raise ValueError(
            f"algorithm {name!r}: a subclass of {family.__name__} defines {' and '.join(methods)}, and "
            f"this one lacks {' and '.join(missing)}"
        )
    return algorithm


def _check_described(source: bytes, attribute: str, name: str) -> None:
    """Check that a description, a string below the field, documents each option of the class."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.ClassDef) and node.name == attribute):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            text = below.value if isinstance(below, ast.Expr) else None
            described = isinstance(text, ast.Constant) and isinstance(text.value, str)
            is_option = field.target.id != "name" and "ClassVar" not in ast.unparse(
                field.annotation
            )
            if is_option and not described:
                raise ValueError(
                    f"algorithm {name!r}: the option {field.target.id!r} has no description; put a string "
                    "below the field"
                )


def _from_source(source: bytes, path: str, name: str, module_name: str = "") -> ModuleType:
    """Run a file as a module, once per content.

    Args:
        module_name: name of the module in the process that sent it; empty for one made of the file's
            name and content.
    """
    digest = hashlib.sha256(path.encode() + b"\0" + source).hexdigest()[:12]
    module_name = module_name or f"{PREFIX}{Path(path).stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = ModuleType(module_name)
    module.__file__ = path
    sys.modules[module_name] = module  # pydantic looks annotations up there.
    try:
        with importing(path):
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # the user's own module code runs here
        del sys.modules[module_name]
        raise ValueError(
            f"algorithm {name!r}: its file cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _imported(location: str, name: str) -> ModuleType:
    try:
        with importing(location):
            return importlib.import_module(location)
    except (Exception, SystemExit) as error:  # another package's module code runs here
        raise ValueError(
            f"algorithm {name!r}: cannot import {location!r}: {type(error).__name__}: {error}; write "
            "pkg.mod:Class, or file.py:Class relative to the campaign file"
        ) from error
