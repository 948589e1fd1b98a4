"""Reader of campaign files, which turns YAML and ``--set`` overrides into a `CampaignConfig`.

YAML is read by the rules of YAML 1.2: ``1e-4`` is a number and ``on`` is a word. Duplicate keys are
errors, and nothing in a file can run code. An invalid file gives one message that lists the problems.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from align.algorithms import Algorithm, algorithm_class, spelt_out
from align.config.campaign import CampaignConfig, filled
from align.config.learning import RetentionConfig, retention_class
from align.config.store import SQLITE
from align.config.watch import respelt, respelt_key
from align.settings import Places
from rollouts.errors import UserError, nearest

MAX_BYTES = 1 << 20
"""Largest file that is read; a larger one is a mistake or an attack on the parser."""
MAX_SHOWN = 5
"""Number of problems listed in one message."""
CAMPAIGN = "campaign"
"""Word for a campaign's file in messages."""

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans, refusing duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word, not a list or mapping", key_node.start_mark
                )
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignFile:
    """Validated campaign and the raw values it came from."""

    config: CampaignConfig
    raw: dict[str, Any]
    overridden: tuple[str, ...]
    """Keys that an override set, with positions instead of the names of rounds and suites."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on a valid campaign."""


def load_campaign(path: Path, overrides: Sequence[str] = ()) -> CampaignFile:
    """Read a campaign file, apply the overrides and validate it.

    Args:
        overrides: ``key.path=value`` as given to ``--set``; the value is YAML.

    Raises:
        UserError: the file is missing or invalid; lists the problems.
    """
    return parse_campaign(read_text(path), path, overrides)


def parse_campaign(text: str, path: Path, overrides: Sequence[str] = ()) -> CampaignFile:
    """Validate a text as the campaign file at ``path``, which need not exist yet."""
    file = validated(CampaignConfig, mapping_of(text, path), path, overrides)
    return CampaignFile(
        config=file.settings, raw=file.raw, overridden=file.overridden, notes=file.notes
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated(Generic[Model]):
    """Validated content of a file, and the raw values it came from."""

    settings: Model
    raw: dict[str, Any]
    overridden: tuple[str, ...]
    notes: tuple[str, ...]


def validated(
    model: type[Model],
    raw: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    what: str = CAMPAIGN,
    code_paths: Mapping[str, str] | None = None,
) -> Validated[Model]:
    """Apply the overrides to the content of a file and validate it.

    Args:
        what: word for such a file in messages.
        code_paths: paths of modules that were written for functions, see `Places`.

    Raises:
        UserError: the content is invalid; lists the problems, with the nearest key for a misspelt one.
    """
    overridden = tuple(respelt_key(_apply(raw, override)) for override in overrides)
    texts = frozenset(_override_texts(overrides))
    places = Places(folder=path.parent, overrides=texts, code_paths=code_paths or {})
    for note in respelt(raw):
        places.remark(note)
    try:
        settings = model.model_validate(raw, context=places)
    except ValidationError as error:
        raise UserError(_describe(error, model, raw, places, what), where=str(path)) from None
    return Validated(settings=settings, raw=raw, overridden=overridden, notes=tuple(places.notes))


def parse_value(text: str) -> Any:
    """Parse a YAML scalar, list or mapping."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def read_text(path: Path, what: str = CAMPAIGN) -> str:
    """Read a file that may be given on a command line.

    Raises:
        UserError: the file is missing, too large, or not text.
    """
    if not path.is_file():
        raise UserError(
            f"there is no such {what} file",
            where=str(path),
            remedy="give the path of a YAML file; configs/ holds examples",
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"the {what} file is larger than {MAX_BYTES:,} bytes",
            where=str(path),
            cause="it is probably another file",
        )
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"not readable as YAML: {error}", where=str(path)) from None


def mapping_of(text: str, path: Path, what: str = CAMPAIGN) -> dict[str, Any]:
    """Parse the text of a file that holds a mapping.

    Raises:
        UserError: the text is not YAML, or holds no mapping.
    """
    try:
        raw = parse_value(text)
    except yaml.YAMLError as error:
        raise UserError(f"not readable as YAML: {error}", where=str(path)) from None
    if not isinstance(raw, dict):
        raise UserError(
            f"a {what} file holds a mapping, and this one holds a {type(raw).__name__}",
            where=str(path),
            remedy="start from configs/quickstart.yaml",
        )
    return raw


def _apply(raw: dict[str, Any], override: str) -> str:
    """Write one override into the raw values; return its key, with positions instead of names."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"not of the form key.path=value: {override!r}",
            where="--set",
            remedy="--set rounds.0.steps=10",
        )
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"the value of {key!r} is not YAML: {text!r}",
            where="--set",
            cause=str(error),
            remedy="put a text with special characters in double quotes",
        ) from None
    *above, last = key.split(".")
    steps: list[Any] = []
    node: Any = raw
    for step in above:
        here = _position(node, step, key)
        below = node[here] if isinstance(node, list) else node.get(here)
        if here == "algorithm" and isinstance(below, str):
            below = node[here] = spelt_out(below)
        if not isinstance(below, dict | list):
            # The override replaces a word or a number by a mapping.
            below = node[here] = {}
        steps.append(here)
        node = below
    steps.append(_position(node, last, key))
    node[steps[-1]] = value
    return ".".join(map(str, steps))


def _override_texts(overrides: Sequence[str]) -> Iterator[str]:
    """Yield every text in the values of overrides, and the file paths within texts such as
    ``f.py:name``."""
    for override in overrides:
        for text in _texts_in(parse_value(override.partition("=")[2])):
            yield text
            yield text.removeprefix(SQLITE)
            yield text.rpartition(":")[0]
            yield text.partition(":")[2]


def _texts_in(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for below in value.values():
                yield from _texts_in(below)
        case list():
            for below in value:
                yield from _texts_in(below)


def _position(node: Any, step: str, key: str) -> Any:
    """Return the key of a mapping, or the position in a list that a number or a name stands for."""
    if not isinstance(node, list):
        return step
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if step in names:
        return names.index(step)
    if step.isdigit() and int(step) < len(node):
        return int(step)
    known = [*map(str, range(len(node))), *(n for n in names if isinstance(n, str))]
    raise UserError(f"no entry {step!r} in {key!r}", where="--set", remedy=nearest(step, known))


def _describe(
    error: ValidationError, model: type[BaseModel], raw: dict[str, Any], places: Places, what: str
) -> str:
    """Describe each problem in one line: key, value, rule; a misspelt key gets the nearest known one."""
    lines: list[str] = []
    problems = error.errors(include_url=False)
    inside = {problem["loc"][:n] for problem in problems for n in range(len(problem["loc"]))}
    for problem in problems:
        if problem["type"] == "too_short" and problem["loc"] in inside:
            continue  # The list is too short only because an entry of it is invalid.
        key = ".".join(str(part) for part in problem["loc"])
        shared = re.sub(r"^rounds\.\d+\.", "defaults.", key)
        if any(line.startswith(f"{shared}:") for line in lines):
            continue
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"], raw, places)
            lines.append(f"{key}: unknown key; {nearest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "value_error":
            text = str(problem["msg"]).removeprefix("Value error, ")
            lines.append(f"{key}: {text}" if key else text)
        elif problem["type"] == "missing":
            lines.append(f"{key}: is missing and has no default")
        else:
            lines.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    more = [f"... and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return "\n  ".join([f"the {what} is not valid", *lines[:MAX_SHOWN], *more])


def _known_keys(
    root: type[BaseModel], location: tuple[int | str, ...], raw: dict[str, Any], places: Places
) -> list[str]:
    """List the fields of the model that has an unknown key.

    Args:
        location: path of the unknown key.
        raw: content of the file.
    """
    models: list[type[BaseModel]] = [root]
    node: Any = filled(raw)
    for part in location[:-1]:
        fields = [
            m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields
        ]
        if isinstance(node, list):
            node = node[part] if isinstance(part, int) else None
        elif not isinstance(node, dict):
            node = None
        elif isinstance(part, str):  # A mapping may stand for a list of one, and is then its entry.
            node = node.get(part)
        nested_models = [m for f in fields for m in _models_in(f.annotation)]
        models = [_named(m, node, places) for m in nested_models or models]
    return sorted(
        {field.alias or name for model in models for name, field in model.model_fields.items()}
    )


def _named(model: type[BaseModel], value: Any, places: Places) -> type[BaseModel]:
    """Return the class of the algorithm or retention method that a value names; else the model."""
    if model is RetentionConfig:
        return retention_class(value["name"]) if isinstance(value, dict) else model
    return algorithm_class(spelt_out(value)["name"], places) if model is Algorithm else model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
