"""Base of every model that a campaign file may hold, and the paths in it.

A path in a campaign file is relative to the file, so that a campaign means the same from every folder; one
that ``--set`` gives is relative to the current folder, as everything on a command line. `load_campaign`
hands `Places` to the validation; without one, as in Python, paths are relative to the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from rewards.signatures.given import GivenCode, reference_to
from rollouts.errors import nearest

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Lower-case letters, digits, dot, dash, underscore: names become folders."""

FILE_SUFFIXES = {
    ".csv",
    ".gz",
    ".json",
    ".jsonl",
    ".parquet",
    ".py",
    ".tsv",
    ".txt",
    ".yaml",
    ".yml",
}
"""Endings of names of files; no name on a hub has one."""


class StatedPath(str):
    """A path that can be opened from the current folder, and what the campaign file states."""

    stated: str

    def __new__(cls, path: str, stated: str) -> StatedPath:
        path_text = super().__new__(cls, path)
        path_text.stated = stated
        return path_text

    def __reduce__(self) -> tuple[type[StatedPath], tuple[str, str]]:
        """Keep both through pickle and copy."""
        return StatedPath, (str(self), self.stated)


class GivenName(str):
    """Name of a function or class that was given as an object, until a campaign has written its code."""

    code: GivenCode | None
    """Module that is written for the object; None if it has one of its own."""

    @classmethod
    def of(cls, target: Any, noun: str = "reward") -> GivenName:
        """Return the name of an object.

        Raises:
            UserError: no other process could load it.
        """
        reference = reference_to(target, noun)
        code = None if isinstance(reference, str) else reference
        name = cls(f"{code.file}:{code.name}" if code else reference)
        name.code = code
        return name


def stated(value: Any) -> Any:
    """Return a value with the paths in it as the campaign file states them: the same in every folder."""
    match value:
        case StatedPath():
            return value.stated
        case dict():
            return {key: stated(below) for key, below in value.items()}
        case list() | tuple():
            return [stated(below) for below in value]
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Folders that a campaign's relative paths start from."""

    folder: Path
    """Folder of the campaign file."""
    overrides: frozenset[str] = frozenset()
    """Texts given by ``--set``, whose paths start from the current folder."""
    notes: list[str] = field(default_factory=list, compare=False)
    """Remarks for the user, each once."""
    code_paths: Mapping[str, str] = field(default_factory=dict)
    """Paths of modules that were written for functions given as objects, by the name of their file."""

    def input(self, text: str) -> str:
        """Return the path of what a campaign reads; a hub's id or an address stays as it is."""
        if not is_relative(text):
            return text
        if text in self.code_paths:
            return StatedPath(self.code_paths[text], text)
        path = self._below(text)
        if os.path.exists(path):
            return StatedPath(path, text)
        if text not in self.overrides and os.path.exists(text):
            self._remark(text, path)
            return StatedPath(text, text)
        is_file = text.startswith(".") or Path(text).suffix.lower() in FILE_SUFFIXES
        return StatedPath(path, text) if is_file else text

    def output(self, text: str) -> str:
        """Return the path of what a campaign writes; what an earlier version began stays in place."""
        if not is_relative(text):
            return text
        path = self._below(text)
        if text not in self.overrides and os.path.exists(text) and not os.path.exists(path):
            self._remark(text, path)
            return StatedPath(text, text)
        return StatedPath(path, text)

    def _below(self, text: str) -> str:
        """Join and normalise; relative to the current folder where it lies below."""
        folder = Path() if text in self.overrides else self.folder
        path = os.path.abspath(folder / text)
        here = os.path.relpath(path)
        return path if here.split(os.sep)[0] == os.pardir else here

    def _remark(self, text: str, path: str) -> None:
        better = os.path.relpath(text, self.folder)
        note = (
            f"{text} is taken from the current folder, and there is no {path}: paths are relative to the "
            f"campaign file, and the next version looks nowhere else; write {better}"
        )
        self.remark(note)

    def remark(self, note: str) -> None:
        """Add a remark for the user, once."""
        if note not in self.notes:
            self.notes.append(note)


def is_relative(text: str) -> bool:
    """Tell if a text may be a relative path."""
    return bool(text) and "://" not in text and not text.startswith(("/", "~")) and len(text) < 1024


def _as_function(
    value: Any,
    validate: ValidatorFunctionWrapHandler,
    info: ValidationInfo,
    noun: str = "reward",
) -> str:
    """Return ``file.py:function`` with the file's path, the name of an object; other names as they are."""
    if isinstance(value, GivenName):
        return value
    if callable(value):
        return GivenName.of(value, noun)
    text: str = validate(value)
    file, colon, function = text.rpartition(":")
    if not (isinstance(info.context, Places) and colon and file.endswith(".py")):
        return text
    return StatedPath(f"{info.context.input(file)}:{function}", text)


def _as_teacher(text: str, info: ValidationInfo) -> str:
    """Return ``model:FOLDER`` with the folder's path; names of snapshots as they are."""
    kind, colon, folder = text.partition(":")
    if not (isinstance(info.context, Places) and colon and kind == "model"):
        return text
    return StatedPath(f"model:{info.context.input(folder)}", text)


def _as_options(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Return options with the paths of texts that name an existing file; other texts are unchanged."""
    places = info.context
    if not isinstance(places, Places):
        return options

    def located(value: Any) -> Any:
        if isinstance(value, str) and is_relative(value) and ("/" in value or Path(value).suffix):
            path = places.input(value)
            return path if os.path.exists(path) else value
        return value

    return {name: located(value) for name, value in options.items()}


_AS_STATED = PlainSerializer(stated, when_used="json")

InputPath = Annotated[
    str,
    AfterValidator(
        lambda text, info: info.context.input(text) if isinstance(info.context, Places) else text
    ),
    _AS_STATED,
]
"""A file or folder that the campaign reads, an address such as ``demo://rev``, or a hub's id."""
FunctionPath = Annotated[str, WrapValidator(_as_function), _AS_STATED]
"""A registered name, ``package.module:function`` or ``file.py:function``; in Python also an object."""
ToolPath = Annotated[str, WrapValidator(partial(_as_function, noun="tool")), _AS_STATED]
"""``package.module:function`` or ``file.py:function`` of a tool; in Python also the function."""
EnvironmentPath = Annotated[
    str, WrapValidator(partial(_as_function, noun="environment")), _AS_STATED
]
"""``package.module:Class``, ``file.py:Class`` or ``scheme://NAME`` of an environment; in Python also the
class."""
TeacherPath = Annotated[
    str,
    Field(pattern=r"^(parent|base|round:.+|model:.+)$"),
    AfterValidator(_as_teacher),
    _AS_STATED,
]
"""A snapshot's name, or ``model:FOLDER``."""
OptionPaths = Annotated[dict[str, Any], AfterValidator(_as_options), _AS_STATED]
"""Keyword arguments, some of which may be paths."""


class Settings(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected, which would count as 1 and 0."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            kinds = set(get_args(annotation)) or {annotation}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"expected a number, got {str(value).lower()}")
        return value

    def changed(self, *names: str) -> str | None:
        """Return the first of these fields whose value is not its default; None if there is none.

        By value, not by what was written: a campaign that is read back from its ledger states all of it.
        """
        fields = type(self).model_fields
        return next((n for n in names if getattr(self, n) != fields[n].get_default()), None)


def without_unset(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Leave out these settings of a dump where they are None or empty: older stores have no such keys."""
    return {k: v for k, v in values.items() if v or k not in names}


def settings_from(value: Any, registry: Mapping[str, type[Settings]], kind: str) -> Any:
    """Return settings that a registry has by name, from ``ewc`` or ``{name: ewc, lambda: 100}``.

    Args:
        kind: word for what is registered, for messages.

    Raises:
        ValueError: the value has no name, or one that is not registered.
    """
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"no {kind} is named; add name: {', '.join(registry)}")
    name = value["name"]
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"no {kind} {name!r}; {nearest(str(name), list(registry))}")
    return registry[name].model_validate(value)
