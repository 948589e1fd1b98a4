"""Words for what a setting may hold, read from its type, and advice for a value that it cannot hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.settings import NAME_PATTERN
from rollouts.errors import closest

MAX_VALUE = 70
"""Characters of a value that a message shows."""
NAME_WORDS = (
    "a name of at most 64 lower-case letters, digits, dots, dashes and underscores that begins with a "
    "letter or digit"
)
WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    date: "a date such as 2026-01-31",
    dict: "a mapping of keys to values",
    NoneType: "null",
}
"""Words for plain types."""
BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
"""Limits of a number, by the attribute that holds each."""
STANDS_FOR = ((".+", "NAME"), ("[1-9][0-9]{0,8}", "N"))
"""Parts of a pattern of choices, and what a message writes for them."""
UNITS = (("_s", "seconds"), ("_mb", "MiB"), ("_gib", "GiB"), ("_tokens", "tokens"))
"""Units of numbers, by the end of their keys."""
UNIT_OR_PERCENT = re.compile(r"([-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([a-zA-Z%]+)")
"""A number with a unit behind it."""


def expectation(annotation: Any) -> str:
    """Describe the values that a type admits.

    >>> expectation(int | None), expectation(Literal["auto", "float32"])
    ('a whole number', 'auto or float32')
    """
    bare, metadata = _taken_apart(annotation)
    if words := choices(annotation):
        return _either([word or "''" for word in words])
    members = [member for member in _members(bare) if member is not NoneType]
    if len(members) > 1:
        if all("name" in getattr(member, "model_fields", ()) for member in members):
            return "a name, or a mapping with the key name and its settings"
        words = [c for m in members for c in choices(m) or [expectation(m)]]
        return _either(sorted(words, key=lambda word: " " in word))
    if len(members) == 1 and members != [bare]:
        return expectation(Annotated[members[0], *metadata] if metadata else members[0])
    if _origin(bare) in (tuple, list):
        return _list_words(bare, metadata)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        declared = bare.__annotations__
        fields = sorted(
            bare.model_fields.items(),
            key=lambda item: (not item[1].is_required(), item[0] not in declared),
        )
        keys = [field.alias or name for name, field in fields][:3]
        return f"a mapping with keys such as {' and '.join([', '.join(keys[:-1]), keys[-1]][-len(keys) :])}"
    words_of_type = WORDS.get(_origin(bare), "another value")
    limits = [
        f"{word} {limit:g}"
        for name, word in BOUNDS
        if (limit := _limit(metadata, name)) is not None and isinstance(limit, int | float)
    ]
    if _limit(metadata, "min_length") and bare is str:
        words_of_type = "a text that is not empty"
    if _limit(metadata, "pattern") == NAME_PATTERN:
        return NAME_WORDS
    of = "of " if limits and limits[0].startswith("at ") else ""
    return f"{words_of_type} {of}{' and '.join(limits)}".rstrip()


def choices(annotation: Any) -> list[str]:
    """List the words that a type admits, if it admits nothing else but null."""
    bare, metadata = _taken_apart(annotation)
    pattern = _limit(metadata, "pattern")
    if isinstance(pattern, str) and (match := re.fullmatch(r"\^\(([^()]*)\)\$", pattern)):
        text = match[1]
        for part, word in STANDS_FOR:
            text = text.replace(part, word)
        return text.split("|")
    members = [member for member in _members(bare) if member is not NoneType]
    if _origin(bare) is Literal:
        return [str(value) for value in get_args(bare)]
    return choices(members[0]) if len(members) == 1 and members != [bare] else []


def advice(value: Any, annotation: Any, key: str, *, is_required: bool = False) -> str:
    """Return what to write instead of a value that a type does not admit; empty if nothing is known.

    Args:
        is_required: the key cannot be left out.
    """
    bare, metadata = _taken_apart(annotation)
    members = [member for member in _members(bare) if member is not NoneType] or [bare]
    kinds = {_origin(_taken_apart(member)[0]) for member in members}
    if value is None:
        return f"write a value after {key}:" + ("" if is_required else ", or remove the key")
    if isinstance(value, str):
        return _advice_on_text(value, annotation, key)
    if kinds & {tuple, list} and isinstance(value, dict):
        is_by_name = all(isinstance(below, dict) for below in value.values()) and value
        first = next(iter(value), "")
        if is_by_name and "name" not in value:
            return f"write a list, with '- name: {first}' in place of '{first}:'"
        if _limit(metadata, "min_length") is None and "name" in value:
            return f"put it in brackets: {key}: [{{...}}]"
        return "write a list, whose entries begin with '- '"
    if any(get_args(member)[-1:] == (Ellipsis,) for member in members) and not isinstance(
        value, list
    ):
        return f"put it in brackets: {key}: [{shown(value)}]"
    if isinstance(value, list) and len(value) == 1 and not kinds & {tuple, list, dict}:
        if not any(models_in(member) for member in members):
            return f"take it out of the list: {key} has one value"
        is_entry = isinstance(value[0], dict)
        return f"remove the '-' or the brackets: {key} is one mapping" if is_entry else ""
    if value is True and any(_is_model(member) for member in members):
        return f"write {key}: {{}} for its defaults, or state its keys"
    if kinds == {str} and isinstance(value, int | float):
        return f"put it in quotes: {key}: '{value}'"
    return ""


def shown(value: Any) -> str:
    """Return a value as a message shows it: as YAML has it, and not longer than a line.

    >>> shown("many"), shown(True), shown([1, "a"])
    ("'many'", 'true', '[1, a]')
    """
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = repr(str(value))
    elif isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else f"{value}"
    else:
        try:
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        except yaml.YAMLError:
            text = repr(value)
    text = text.strip().removesuffix("...").strip()
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _advice_on_text(value: str, annotation: Any, key: str) -> str:
    members = [member for member in _members(annotation) if member is not NoneType]
    kinds = {_origin(member) for member in members}
    if value.startswith("$"):
        return "files read no environment variables; write the value, or give it with --set"
    if kinds <= {int, float} and (match := UNIT_OR_PERCENT.fullmatch(value.strip())):
        number = match[1].replace(",", "").replace("_", "")
        if match[2] == "%":
            return f"write {float(number) / 100:g}"
        unit = next((word for end, word in UNITS if key.endswith(end)), None)
        return f"write the number alone, {f'in {unit}' if unit else f'without {match[2]!r}'}"
    if words := [word for member in members for word in choices(member)] or choices(annotation):
        close = closest(value, words)
        if close is not None:
            return f"did you mean {close!r}?"
    entries = [entry for member in members for entry in item_of(member, 0)]
    if entries and all(value in choices(entry) or not choices(entry) for entry in entries):
        return f"put it in brackets: [{value}]"
    entry_meant = closest(value, [word for entry in entries for word in choices(entry)])
    if entry_meant is not None:
        return f"did you mean [{entry_meant}]?"
    models = [bare for member in members if _is_model(bare := _taken_apart(member)[0])]
    keys = (_key_for(model, value) for model in models)
    return next((f"write {{{name}: {value}}}" for name in keys if name is not None), "")


def _key_for(model: type[BaseModel], value: str) -> str | None:
    """Return the key of a section that a bare text is meant for: one that admits it, or is required."""
    admits = (name for name, f in model.model_fields.items() if value in choices(annotation_of(f)))
    texts = (
        name
        for name, field in model.model_fields.items()
        if field.is_required() and str in map(_origin, _members(field.annotation))
    )
    return next(admits, None) or next(texts, None)


def annotation_of(field: FieldInfo) -> Any:
    """Return the type of a field with its limits."""
    if not field.metadata:
        return field.annotation
    return Annotated[field.annotation, *field.metadata]


def item_of(annotation: Any, index: int | None = None) -> list[Any]:
    """List the types of entries of a list type, or of the values of a mapping type (index None)."""
    types = []
    for member in _members(_taken_apart(annotation)[0]):
        bare = _taken_apart(member)[0]
        arguments = get_args(bare)
        if index is None and _origin(bare) is dict and len(arguments) == 2:
            types.append(arguments[1])
        if index is None or _origin(bare) not in (tuple, list) or not arguments:
            continue
        repeated = arguments[-1] is Ellipsis or _origin(bare) is list
        if repeated or index < len(arguments):
            types.append(arguments[0 if repeated else index])
    return types


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """List the sections that a type admits, entries of lists not included."""
    members = [_taken_apart(member)[0] for member in _members(_taken_apart(annotation)[0])]
    return [member for member in members if _is_model(member)]


def _is_model(bare: Any) -> bool:
    return isinstance(bare, type) and issubclass(bare, BaseModel)


def _list_words(bare: Any, metadata: Sequence[Any]) -> str:
    arguments = get_args(bare)
    if arguments and arguments[-1] is not Ellipsis and _origin(bare) is tuple:
        return f"a list of {len(arguments)} entries, each {expectation(arguments[0])}"
    least = _limit(metadata, "min_length")
    entry = expectation(arguments[0]) if arguments else "a value"
    many = f" with at least {least} entr{'y' if least == 1 else 'ies'}" if least else ""
    return f"a list{many}, each entry {entry}"


def _members(annotation: Any) -> list[Any]:
    """List the members of a union; of anything else, itself."""
    bare = _taken_apart(annotation)[0]
    if get_origin(bare) not in (Union, UnionType):
        return [annotation]
    return [inner for member in get_args(bare) for inner in _members(member)]


def _taken_apart(annotation: Any) -> tuple[Any, list[Any]]:
    """Return a type without its annotations, and these in one list."""
    metadata: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for entry in more:
            metadata += entry.metadata if isinstance(entry, FieldInfo) else [entry]
    return annotation, metadata


def _origin(annotation: Any) -> Any:
    bare = _taken_apart(annotation)[0]
    return get_origin(bare) or bare


def _limit(metadata: Sequence[Any], name: str) -> Any:
    return next(
        (limit for entry in metadata if (limit := getattr(entry, name, None)) is not None), None
    )


def _either(words: Sequence[str]) -> str:
    """Join words as alternatives.

    >>> _either(["a", "b", "c"]), _either(["all", "a number"])
    ('a, b or c', 'all, or a number')
    """
    comma = "," if len(words) > 1 and any(" " in word for word in words) else ""
    return f"{comma} or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
