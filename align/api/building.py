"""Campaigns from Python objects: the same settings, checks and paths as a campaign file has.

Objects are taken apart into what a file would state, so that a round overlays the defaults with the
settings it was given and no others. A function becomes the name of a file: it is stored and compared as
``file.py:function`` is, by its source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from align.algorithms import ALGORITHMS, Algorithm
from align.config.campaign import CampaignConfig
from align.config.file import Validated, validated
from align.config.messages.mistakes import mistakes_of
from align.config.rewards import RewardConfig
from align.settings import GivenName
from rewards.signatures.given import GivenCode
from rollouts.errors import UserError


def Reward(function: Any, **settings: Any) -> RewardConfig:
    """Describe a reward by its function or name.

    Args:
        function: function or class with the signature of a reward, or a name as in a campaign file.
        settings: fields of `RewardConfig`, such as ``weight``, ``options`` and ``isolation``.

    Raises:
        UserError: the function cannot be loaded by another process, as a lambda; or a setting is wrong.
    """
    try:
        return RewardConfig(name=function, **settings)
    except ValidationError as error:
        mistakes = mistakes_of(error, RewardConfig, {"name": function, **settings})
        raise UserError("; ".join(mistake.line for mistake in mistakes), where="Reward") from None


def build_campaign(settings: Mapping[str, Any], folder: Path) -> Validated[CampaignConfig]:
    """Validate a campaign that is given by objects.

    Args:
        settings: keys of a campaign file; values are plain, or models of `align.config`.
        folder: folder that relative paths start from.

    Raises:
        UserError: the settings are not valid, or two functions of one name differ.
    """
    values = raw_of(settings)
    paths = written_code(values)
    stated = as_stated(values, folder)
    return validated(CampaignConfig, stated, folder / "campaign", code_paths=paths)


def raw_of(value: Any) -> Any:
    """Return what a campaign file would state for an object: no more than was given to it."""
    if isinstance(value, Algorithm):
        registered = (name for name, kind in ALGORITHMS.items() if kind is type(value))
        name = next(registered, None) or GivenName.of(type(value), "algorithm")
        return {**_stated_fields(value), "name": name}
    if isinstance(value, BaseModel):
        return _stated_fields(value)
    if isinstance(value, Mapping):
        return {str(key): raw_of(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [raw_of(below) for below in value]
    if isinstance(value, Path):
        return str(value)
    return GivenName.of(value) if callable(value) else value


def _stated_fields(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a model that were given, and its name, which says what the others mean."""
    fields = type(model).model_fields
    names = [name for name in fields if name in model.model_fields_set or name == "name"]
    return {name: raw_of(getattr(model, name)) for name in names}


def written_code(values: Any) -> dict[str, str]:
    """Write a module for every function that was given as an object; return their paths by file name.

    Raises:
        UserError: two different functions have one name.
    """
    codes: dict[str, GivenCode] = {}
    for code in _codes(values):
        if codes.setdefault(code.file, code).text != code.text:
            raise UserError(
                f"two different functions are named {code.name!r}",
                where="rewards",
                cause="a store tells functions apart by their names, and their versions by their source",
                remedy="give one of them another name",
            )
    folder = code_folder()
    try:
        return {file: str(code.save(folder)) for file, code in codes.items()}
    except OSError as error:
        raise UserError(
            "the code of a function cannot be written",
            where=str(folder),
            cause=str(error),
            remedy="set XDG_CACHE_HOME to a folder of yours",
        ) from error


def code_folder() -> Path:
    """Return the folder of modules that are written for functions: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser().absolute() / "keel" / "given"


def _codes(value: Any) -> Iterator[GivenCode]:
    if isinstance(value, GivenName) and value.code is not None:
        yield value.code
    elif isinstance(value, dict):
        for below in value.values():
            yield from _codes(below)
    elif isinstance(value, list):
        for below in value:
            yield from _codes(below)


def as_stated(value: Any, folder: Path) -> Any:
    """Return raw values in which objects are named as in a file: paths of code start from the folder."""
    if isinstance(value, GivenName):
        file, colon, name = value.rpartition(":")
        is_path = value.code is None and file.endswith(".py")
        return f"{os.path.relpath(file, folder)}{colon}{name}" if is_path else str(value)
    if isinstance(value, dict):
        return {key: as_stated(below, folder) for key, below in value.items()}
    if isinstance(value, list):
        return [as_stated(below, folder) for below in value]
    return value
