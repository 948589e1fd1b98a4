"""Registry of rewards: resolves a name in a campaign file to its function, or to one clear message.

A name is one of `REWARDS`, the name of an entry point of another distribution (`rewards.plugins`),
``pkg.mod:name``, or ``file.py:name`` relative to the current folder. It leads to a function for batches,
to a one-sample function or to a class with set-up (`rewards.signatures.adapters`). Everything that can be
known
without data is checked here, before anything starts.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.base import RewardFunction, RewardPart
from rewards.library import (
    language,
    layout,
    maths,
    naive_bayes,
    preference_model,
    refusal,
    reward_model,
    similarity,
    text,
    verifiable,
)
from rewards.library.agreement import Agreement
from rewards.library.code.reward import code_tests
from rewards.library.ifeval.reward import ifeval
from rewards.library.judge.pairwise import PairwiseJudge
from rewards.library.judge.score import LLMJudge
from rewards.patience import importing
from rewards.plugins import load_plugin, origin, plugins
from rewards.signatures.adapters import check_options, per_sample, takes_one_sample, with_set_up
from rewards.signatures.info import SHIPPED, RewardInfo, read_info
from rewards.signatures.signature import arguments, check_signature, required_columns
from rollouts.errors import KeelError, UserError, nearest

REWARDS: dict[str, RewardFunction] = {
    "exact_match": verifiable.exact_match,
    "normalised_match": verifiable.normalised_match,
    "contains": verifiable.contains,
    "regex_match": verifiable.regex_match,
    "multiple_choice": verifiable.multiple_choice,
    "math_answer": maths.math_answer,
    "code_tests": code_tests,
    "tag_format": layout.tag_format,
    "json_schema": layout.json_schema,
    "ifeval": ifeval,
    "language": language.language,
    "sentiment": text.sentiment,
    "dialogue": text.dialogue,
    "ends_within": text.ends_within,
    "short_sentences": text.short_sentences,
    "distinct_ngrams": text.distinct_ngrams,
    "length": text.length,
    "soft_overlong": text.soft_overlong,
    "refusal": refusal.refusal,
    "naive_bayes": naive_bayes.NaiveBayes,
    "similarity": similarity.similarity,
    "reward_model": reward_model.reward_model,
    "preference_model": preference_model.preference_model,
    "llm_judge": LLMJudge,
    "pairwise_judge": PairwiseJudge,
    "agreement": Agreement,
}


def load_reward(
    name: str, options: Mapping[str, Any] | None = None, where: str | None = None
) -> RewardFunction:
    """Load the function behind a name, checked against its options.

    Raises a `UserError` when it cannot be imported, does not exist, cannot be called by a rubric,
    or does not take an option. ``where`` names the place in the campaign file.
    """
    options = options or {}
    target, from_ = _find(name, where)
    if from_ == SHIPPED:
        return _shipped(name, target, options, where)
    if isinstance(target, type):
        return with_set_up(name, target, options, where)
    function = per_sample(target, options) if takes_one_sample(target) else target
    check_signature(name, function, options, where)
    return function


def describe(name: str) -> RewardInfo:
    """Describe a reward without calling it.

    Raises:
        UserError: there is no such reward, or it cannot be imported.
    """
    target, from_ = _find(name, None)
    try:
        return read_info(name, from_, target)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name!r} has no readable signature", cause=str(error)) from error


def known_rewards() -> list[RewardInfo]:
    """List every reward that has a name, ours first. One that cannot be used says so in ``problem``."""
    points = plugins()
    return [
        _described(name) for name in (*REWARDS, *(name for name in points if name not in REWARDS))
    ]


def _described(name: str) -> RewardInfo:
    try:
        return describe(name)
    except UserError as error:
        origins = ", ".join(_origins(name))
        return RewardInfo(name=name, origin=origins, problem=str(error))


def _find(name: str, where: str | None) -> tuple[Any, str]:
    """Find the object behind a name, and where it is from."""
    origin, colon, attribute = name.rpartition(":")
    if colon:
        return _attribute(_module(origin, name, where), attribute, name, where), origin
    origins = _origins(name)
    if len(origins) > 1:
        raise UserError(
            f"{len(origins)} rewards are named {name!r}",
            where=where,
            cause="; ".join(origins),
            remedy="uninstall one of them, or write pkg.mod:name",
        )
    if name in REWARDS:
        return REWARDS[name], SHIPPED
    points = plugins()
    if name not in points:
        raise UserError(
            f"unknown reward {name!r}",
            where=where,
            remedy=f"{nearest(name, [*REWARDS, *points])}; or write pkg.mod:function, or file.py:function",
        )
    (point,) = points[name]
    return load_plugin(point, where), origins[0]


def _origins(name: str) -> list[str]:
    """List the origins of all rewards that claim a name."""
    shipped = [SHIPPED] if name in REWARDS else []
    return [*shipped, *(origin(point) for point in plugins().get(name, []))]


def _shipped(
    name: str, target: RewardFunction, options: Mapping[str, Any], where: str | None
) -> RewardFunction:
    """Make one of our own rewards and try it without samples: its set-up is cheap and its options say
    all."""
    if not isinstance(target, type):
        check_signature(name, target, options, where)
        _try(name, options, where, lambda: _ask_nothing(name, target, options))
        return target
    check_options(name, target, options, where)
    function: RewardFunction = _try(name, options, where, lambda: target(**options))
    return function


def _ask_nothing(name: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    part = RewardPart(name=name, weight=1.0, function=function, options=options)
    function(**arguments(part, [], {}), **{column: [] for column in required_columns(part)})


def _try(
    name: str, options: Mapping[str, Any], where: str | None, attempt: Callable[[], Any]
) -> Any:
    """Try to make a reward; turn wrong option values and missing packages into one message."""
    try:
        return attempt()
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


def _module(origin: str, name: str, where: str | None) -> ModuleType:
    """Import ``pkg.mod`` or ``file.py``; whatever its code raises becomes a message."""
    try:
        with importing(origin):
            if origin.endswith(".py"):
                return _file_module(Path(origin))
            return importlib.import_module(origin)
    except (Exception, SystemExit) as error:  # the user's own module code runs here
        raise UserError(
            f"reward {name!r}: cannot import {origin!r}",
            where=where,
            cause=f"{type(error).__name__}: {error}",
            remedy="write pkg.mod:function, or file.py:function relative to the current folder",
        ) from error


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
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look a class's module up there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _attribute(module: ModuleType, attribute: str, name: str, where: str | None) -> Any:
    target: Any = getattr(module, attribute, None)
    if target is None:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(
            f"reward {name!r}: no {attribute!r} in it",
            where=where,
            remedy=nearest(attribute, public) if public else "define the function there",
        )
    if not callable(target):
        raise UserError(
            f"reward {name!r} is of type {type(target).__name__}, not a function",
            where=where,
            remedy="name a function, a class, or an instance that can be called",
        )
    return target
