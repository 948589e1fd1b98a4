"""From a reward's name in a campaign file to its function, or to one clear message.

A name is one of `REWARDS`, ``pkg.mod:function``, or ``file.py:function`` relative to the current
folder. Everything that can be known without data is checked here, before anything starts.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards import reward_model, text, verifiable
from rewards.base import RewardFunction, RewardPart
from rewards.signature import arguments, check_signature, required_columns
from rollouts.errors import KeelError, UserError, nearest

REWARDS: dict[str, RewardFunction] = {
    "exact_match": verifiable.exact_match,
    "contains": verifiable.contains,
    "regex_match": verifiable.regex_match,
    "sentiment": text.sentiment,
    "dialogue": text.dialogue,
    "ends_within": text.ends_within,
    "short_sentences": text.short_sentences,
    "distinct_ngrams": text.distinct_ngrams,
    "length": text.length,
    "reward_model": reward_model.reward_model,
}


def load_reward(
    name: str, options: Mapping[str, Any] | None = None, where: str | None = None
) -> RewardFunction:
    """The function behind a name, checked against its options.

    Raises a `UserError` when it cannot be imported, does not exist, cannot be called by a rubric,
    or does not take an option. ``where`` names the place in the campaign file.
    """
    options = options or {}
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return _registered(name, options, where)
    function = _attribute(_module(place, name, where), attribute, name, where)
    check_signature(name, function, options, where)
    return function


def _registered(name: str, options: Mapping[str, Any], where: str | None) -> RewardFunction:
    if name not in REWARDS:
        known = nearest(name, list(REWARDS))
        raise UserError(
            f"unknown reward {name!r}",
            where=where,
            remedy=f"{known}; or write pkg.mod:function, or file.py:function",
        )
    function = REWARDS[name]
    check_signature(name, function, options, where)
    _try_empty(name, function, options, where)
    return function


def _try_empty(
    name: str, function: RewardFunction, options: Mapping[str, Any], where: str | None
) -> None:
    """Call one of our own rewards on no samples: shows wrong option values and missing packages."""
    part = RewardPart(name=name, weight=1.0, function=function, options=options)
    try:
        function(**arguments(part, [], {}), **{column: [] for column in required_columns(part)})
    except KeelError as error:
        raise UserError(
            f"reward {name!r}: {error.what}", where=where, cause=error.cause, remedy=error.remedy
        ) from error
    except Exception as error:  # whatever a wrong value of an option makes the function raise
        raise UserError(
            f"reward {name!r} cannot use the options {dict(options)}",
            where=where,
            cause=f"{type(error).__name__}: {error}",
        ) from error


def _module(place: str, name: str, where: str | None) -> ModuleType:
    """Import ``pkg.mod`` or ``file.py``; whatever its code raises becomes a message."""
    try:
        return (
            _file_module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except (Exception, SystemExit) as error:  # the user's own module code runs here
        raise UserError(
            f"reward {name!r}: cannot import {place!r}",
            where=where,
            cause=f"{type(error).__name__}: {error}",
            remedy="write pkg.mod:function, or file.py:function relative to the current folder",
        ) from error


def _file_module(path: Path) -> ModuleType:
    """Run a file as a module, once per content: two rewards of one file share their globals."""
    source = path.read_bytes()
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:12]
    module_name = f"keel_reward_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _attribute(module: ModuleType, attribute: str, name: str, where: str | None) -> RewardFunction:
    found = getattr(module, attribute, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(
            f"reward {name!r}: no {attribute!r} in it",
            where=where,
            remedy=nearest(attribute, public) if public else "define the function there",
        )
    if not callable(found) or isinstance(found, type):
        kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise UserError(
            f"reward {name!r} is {kind}, not a function",
            where=where,
            remedy="name a function, or an instance that can be called",
        )
    return found  # type: ignore[no-any-return]
