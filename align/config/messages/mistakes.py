"""Mistakes in the content of a file, one for each thing that the user has to change.

The validation reports a mistake once for every place that it reaches: for each alternative of a setting,
for ``defaults`` and every round that inherits them, and for a key that is misspelt and so missing. Here
each is told once, where it was written, with what is expected there and what was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from align.config.messages.expected import (
    advice,
    annotation_of,
    expectation,
    item_of,
    models_in,
    shown,
)
from align.config.messages.written import Path, as_written, dotted, is_written
from rollouts.errors import closest, nearest

Narrowed = Callable[[type[BaseModel], Any], type[BaseModel]]
"""Function from a base class of settings and the value given to the class that the value names."""

RULE = re.compile(r"((?:[a-z_]+|\d+)(?:\.(?:[a-z_]+|\d+))*): (?=\S)")
"""Setting that the message of a rule begins with."""
WORD = re.compile(r"[a-z]+(?:_[a-z]+)*(?:\.[a-z_]+)*")
"""Name of a setting in the message of a rule, among other words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One thing that the user has to change."""

    path: Path
    """Setting that is wrong, as it was written; a missing or unknown key is its last part."""
    text: str
    source: Path | None = None
    """Setting that a rule speaks of, if it lies elsewhere."""

    @property
    def line(self) -> str:
        """The mistake in one line."""
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spot:
    """Place of one problem, without the names of alternatives that the validation puts between keys."""

    problem: ErrorDetails
    path: Path
    types: tuple[Any, ...]
    """Types that the setting may have."""
    value: Any
    models: tuple[type[BaseModel], ...]
    """Sections that may have the last key."""
    alternatives: tuple[Path, ...]
    """Settings on the way of which one of several alternatives was tried."""

    @property
    def kind(self) -> str:
        """Kind of the problem."""
        return str(self.problem["type"])


def mistakes_of(
    error: ValidationError,
    model: type[BaseModel],
    raw: Any,
    filled: Any = None,
    narrowed: Narrowed = lambda model, value: model,
) -> list[Mistake]:
    """List the mistakes behind a failed validation, each once.

    Args:
        raw: content of the file.
        filled: content that was validated, in which rounds have what they inherit; None: ``raw``.
    """
    filled = raw if filled is None else filled
    problems = error.errors(include_url=False, include_context=False)
    spots = [_spot(problem, model, filled, narrowed) for problem in problems]
    mistakes: dict[tuple[Path, str], Mistake] = {}
    for spot in _without_echoes(spots):
        mistake = _mistake(spot, raw, filled, model)
        if spot.path[:1] != ("rounds",) or not _is_told(mistake, mistakes.values()):
            mistakes.setdefault((mistake.path, mistake.text), mistake)
    return _without_repeats(list(mistakes.values()))


def _is_told(inherited: Mistake, mistakes: Iterable[Mistake]) -> bool:
    """Tell if what a round inherits is wrong because of the defaults, which a mistake speaks of already."""
    path = inherited.path
    paths = [mistake.path for mistake in mistakes if len(mistake.path) > 1]
    is_unknown = inherited.text.startswith("unknown key")
    above = {path[:n] for n in range(2, len(path) + is_unknown)}
    return path[:1] == ("defaults",) and any(other in above for other in paths)


def _spot(problem: ErrorDetails, model: type[BaseModel], filled: Any, narrowed: Narrowed) -> _Spot:
    """Walk down the file and the types together to the place of a problem."""
    path: Path = ()
    types: list[Any] = [model]
    value = filled
    models: tuple[type[BaseModel], ...] = ()
    alternatives = []
    for part in problem["loc"]:
        sections = [narrowed(m, value) for kind in types for m in models_in(kind)]
        fields = [
            f for m in sections for name, f in m.model_fields.items() if part in (name, f.alias)
        ]
        is_last = part == problem["loc"][-1]
        has_key = isinstance(value, dict) and part in value
        if isinstance(part, int) and (items := [t for kind in types for t in item_of(kind, part)]):
            types = items
            if isinstance(value, list | tuple):
                value = value[part] if part < len(value) else None
        elif fields or has_key or (is_last and problem["type"] in ("extra_forbidden", "missing")):
            types = [annotation_of(f) for f in fields] or [t for k in types for t in item_of(k)]
            models = tuple(sections)
            if isinstance(value, dict):
                value = value.get(part)
        else:
            alternatives.append(path)
            continue
        path = (*path, part)
    return _Spot(
        problem=problem,
        path=path,
        types=tuple(types),
        value=value,
        models=models,
        alternatives=tuple(alternatives),
    )


def _without_echoes(spots: Sequence[_Spot]) -> Iterator[_Spot]:
    """Yield the problems that are none of another one's consequences."""
    inside = {spot.path[:n] for spot in spots for n in range(len(spot.path))}
    unknown = [spot for spot in spots if spot.kind == "extra_forbidden"]
    for spot in spots:
        if spot.path in inside and (spot.kind == "too_short" or spot.path in spot.alternatives):
            continue  # An entry of it is invalid, and that is the mistake.
        misspelt = [str(s.path[-1]) for s in unknown if s.path[:-1] == spot.path[:-1]]
        if spot.kind == "missing" and closest(str(spot.path[-1]), misspelt):
            continue  # It is there, with another spelling.
        yield spot


def _mistake(spot: _Spot, raw: Any, filled: Any, root: type[BaseModel]) -> Mistake:
    """Describe one problem."""
    path, kind = spot.path, spot.kind
    if kind in ("value_error", "assertion_error"):
        return _broken_rule(spot, raw)
    if kind == "missing" and isinstance(path[-1], int):  # A list that is too short.
        return _wrong_value(replace(spot, path=path[:-1]), raw, root, filled)
    if kind == "missing":
        return Mistake(
            path=as_written(raw, path, is_missing=True), text="is missing and has no default"
        )
    if kind == "extra_forbidden":
        return Mistake(path=as_written(raw, path), text=_unknown_key(spot, root))
    if kind == "invalid_key":
        key = {"None": "null"}.get(str(spot.problem["loc"][-1]), spot.problem["loc"][-1])
        text = f"the key {key} is no word; put it in quotes, or remove it"
        return Mistake(path=path[:-1], text=text, source=(*path[:-1], key))
    return _wrong_value(spot, raw, root, filled)


def _wrong_value(spot: _Spot, raw: Any, root: type[BaseModel], filled: Any) -> Mistake:
    """Describe a value that its setting does not admit."""
    path, value = spot.path, spot.value
    types = spot.types
    if spot.kind == "missing":
        problem: ErrorDetails = {**spot.problem, "loc": path, "type": "list_type"}
        parent = _spot(problem, root, filled, lambda model, _: model)
        value, types = parent.value, parent.types
    annotation = types[0] if types else Any
    last = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    words = expectation(annotation)
    if spot.kind == "finite_number":
        words = words.replace("a number", "a finite number")
    text = f"expected {words}, got {shown(value)}"
    fields = [m.model_fields.get(last) for m in spot.models]
    is_required = any(field is not None and field.is_required() for field in fields)
    remedy = advice(value, annotation, last, is_required=is_required)
    return Mistake(path=as_written(raw, path), text=f"{text}; {remedy}" if remedy else text)


def _unknown_key(spot: _Spot, root: type[BaseModel]) -> str:
    """Say where an unknown key belongs, or which key is meant."""
    key = str(spot.path[-1])
    known = sorted({f.alias or name for m in spot.models for name, f in m.model_fields.items()})
    if spot.path[0] == "defaults" and len(spot.path) == 2 and "rounds" in root.model_fields:
        rounds = item_of(root.model_fields["rounds"].annotation, 0)
        if any(key in model.model_fields for entry in rounds for model in models_in(entry)):
            return f"unknown key; each round states {key} itself: move it to the rounds"
    if key_paths := [key_path for m in spot.models for key_path in _places_of(key, m)]:
        section, _, _ = key_paths[0].rpartition(".")
        return f"unknown key; {key} is a key of {section}: write {section}: {{{key}: ...}}"
    of_a_round = spot.path[:-1] == ("defaults",) or spot.path[:-2] == ("rounds",)
    if of_a_round and "rounds" in root.model_fields:
        if key in root.model_fields:
            return (
                f"unknown key; {key} belongs to the whole campaign: move it to the top of the file"
            )
        if key_path := next(_places_of(key, root, depth=1), None):
            section, _, _ = key_path.rpartition(".")
            return (
                f"unknown key; {key} is a key of {section}, at the top of the file: move it there"
            )
    return f"unknown key; {nearest(key, known)}"


def _places_of(key: str, model: type[BaseModel], above: str = "", depth: int = 2) -> Iterator[str]:
    """Yield the dotted paths of a key below a section, the nearest first."""
    sections = [
        (name, section)
        for name, field in model.model_fields.items()
        for section in models_in(field.annotation)
    ]
    for name, section in sections:
        if key in section.model_fields and key != "name":
            yield f"{above}{name}.{key}"
    for name, section in sections if depth > 1 else ():
        yield from _places_of(key, section, f"{above}{name}.", depth - 1)


def _broken_rule(spot: _Spot, raw: Any) -> Mistake:
    """Describe a rule between settings that the file breaks."""
    text = str(spot.problem["msg"])
    text = text.partition(", ")[2] if text.startswith(("Value error, ", "Assertion ")) else text
    path = spot.path
    if match := RULE.match(text):
        below = tuple(int(p) if p.isdigit() else p for p in match[1].split("."))
        fields = {name for kind in spot.types for m in models_in(kind) for name in m.model_fields}
        if below[0] in fields:
            path, text = (*path, *below), text[match.end() :]
    path = as_written(raw, path)
    return Mistake(path=path, text=text, source=_spoken_of(text, path, raw))


def _spoken_of(text: str, path: Path, raw: Any) -> Path | None:
    """Return the first setting that a rule names and that is written below a path, or inherited there."""
    roots = [path]
    if len(path) == 2 and path[0] == "rounds":
        roots.append(("defaults",))
    for word in WORD.findall(text):
        below = tuple(word.split("."))
        for root in roots:
            if (written := _find(raw, root, below)) is not None:
                return written
    return None


def _find(raw: Any, root: Path, below: Path) -> Path | None:
    """Return the path of a setting of this name in a section, or in a section of it."""
    if is_written(raw, (*root, *below)) and isinstance(_value_at(raw, (*root, *below[:-1])), dict):
        return (*root, *below)
    section = _value_at(raw, root)
    for name in section if isinstance(section, dict) else ():
        inner = (*root, name, *below)
        if isinstance(_value_at(raw, inner[:-1]), dict) and is_written(raw, inner):
            return inner
    return None


def _value_at(raw: Any, path: Path) -> Any:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _without_repeats(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Merge a rule that several rounds break by what they share."""
    merged: list[Mistake] = []
    for mistake in mistakes:
        same = [m for m in merged if m.text == mistake.text and _is_shared(m, mistake)]
        if not same:
            merged.append(mistake)
        elif same[0].path[0] == "rounds":
            source = same[0].source
            path = source if source is not None and source[0] == "defaults" else ("defaults",)
            merged[merged.index(same[0])] = replace(same[0], path=path)
    return merged


def _is_shared(first: Mistake, second: Mistake) -> bool:
    """Tell if two equal texts speak of a setting that rounds inherit."""
    heads = {m.path[0] for m in (first, second) if m.path}
    if not (first.path and second.path and heads <= {"rounds", "defaults"}):
        return False
    if (first.source or ("",))[0] == "defaults":
        return True
    # Two settings may be wrong in the same words.
    keys, others = (m.path[1 if m.path[0] == "defaults" else 2 :] for m in (first, second))
    return "defaults" in heads and keys == others
