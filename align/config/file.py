"""Reader of campaign files, which turns YAML and ``--set`` overrides into a `CampaignConfig`.

YAML is read by the rules of YAML 1.2: ``1e-4`` is a number and ``on`` is a word. Duplicate keys are
errors, and nothing in a file can run code. An invalid file gives one message that lists the problems.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from align.algorithms import Algorithm, algorithm_class, spelt_out
from align.config.campaign import CampaignConfig, filled
from align.config.mergers import MERGERS
from align.config.mergers.settings import MergeConfig
from align.config.messages.mistakes import Mistake, Narrowed, mistakes_of
from align.config.messages.syntax import not_yaml
from align.config.messages.written import Lines
from align.config.replay.draws import DRAWS
from align.config.retention.methods import RetentionConfig
from align.config.retention.registry import RETENTION
from align.config.store import SQLITE
from align.config.watch import respelt, respelt_key
from align.settings import Places
from rollouts.errors import UserError, closest, nearest
from rollouts.machine.variables import holds_secret

MAX_BYTES = 1 << 20
"""Largest file that is read; a larger one is a mistake or an attack on the parser."""
MAX_SHOWN = 5
"""Number of mistakes listed in one message."""
CAMPAIGN = "campaign"
"""Word for a campaign's file in messages."""

MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key ``<<``."""

REGISTRIES: Mapping[type[BaseModel], Mapping[str, type[BaseModel]]] = {
    RetentionConfig: RETENTION,
    MergeConfig: MERGERS,
    **dict.fromkeys(DRAWS.values(), DRAWS),
}
"""Settings by name, for each base class whose place in a campaign file any of them takes."""

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
            if key_node.tag == MERGE:
                raise yaml.constructor.ConstructorError(
                    None, None, "<< merges mappings in YAML 1.1 only", key_node.start_mark
                )
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
    re.compile(
        r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
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
    # A line of a file that is not there yet leads nowhere.
    lines = text if path.exists() else ""
    file = validated(CampaignConfig, mapping_of(text, path), path, overrides, text=lines)
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
    text: str = "",
) -> Validated[Model]:
    """Apply the overrides to the content of a file and validate it.

    Args:
        what: word for such a file in messages.
        code_paths: paths of modules that were written for functions, see `Places`.
        text: the file's text, for the lines of mistakes; empty for settings that come from no file.

    Raises:
        UserError: the content is invalid; lists the mistakes, with the nearest key for a misspelt one.
    """
    overridden = tuple(respelt_key(_apply(raw, override)) for override in overrides)
    texts: set[str] = set()
    for override in overrides:
        for value in _texts_in(parse_value(override.partition("=")[2])):
            # A text such as f.py:name holds a path.
            parts = (value.removeprefix(SQLITE), value.rpartition(":")[0], value.partition(":")[2])
            texts |= {value, *parts}
    _refuse_secrets(raw, path)
    places = Places(folder=path.parent, overrides=frozenset(texts), code_paths=code_paths or {})
    for note in respelt(raw):
        places.remark(note)
    try:
        settings = model.model_validate(raw, context=places)
    except ValidationError as error:
        mistakes = mistakes_of(error, model, raw, filled(raw), _narrowed(places))
        lines = Lines(yaml.compose(text, Loader=_Loader) if text else None, overridden)
        raise _not_valid(mistakes, lines, path, what) from None
    return Validated(settings=settings, raw=raw, overridden=overridden, notes=tuple(places.notes))


def parse_value(text: str) -> Any:
    """Parse a YAML scalar, list or mapping."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def read_text(path: Path, what: str = CAMPAIGN) -> str:
    """Read a file that may be given on a command line.

    Raises:
        UserError: the file is missing, too large, or not text.
    """
    if path.is_dir():
        raise UserError(
            f"a folder, and no {what} file",
            where=str(path),
            remedy="give the path of a YAML file in it",
        )
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = closest(path.name, beside)
        raise UserError(
            f"there is no such {what} file",
            where=str(path),
            remedy=f"did you mean {str(path.with_name(close))!r}?"
            if close
            else f"give the path of a YAML file; {_beginning(what)}",
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"the {what} file is larger than {MAX_BYTES:,} bytes",
            where=str(path),
            cause="it is probably another file",
            remedy="give the path of a YAML file",
        )
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the {what} file cannot be read: {error.strerror}",
            where=str(path),
            remedy="give yourself the right to read it",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"not readable as YAML: byte {error.object[error.start]:#04x} is not UTF-8",
            where=f"{path}:{line}",
            cause="another encoding, or no text file",
            remedy="save the file as UTF-8",
        ) from None


def mapping_of(text: str, path: Path, what: str = CAMPAIGN) -> dict[str, Any]:
    """Parse the text of a file that holds a mapping.

    Raises:
        UserError: the text is not YAML, or holds no mapping.
    """
    try:
        raw = parse_value(text)
    except yaml.YAMLError as error:
        raise not_yaml(error, path, text) from None
    if not isinstance(raw, dict):
        content = {type(None): "nothing", list: "a list", str: "a text"}.get(type(raw), "a value")
        raise UserError(
            f"a {what} file holds a mapping, and this one holds {content}",
            where=str(path),
            cause="a key needs a colon and a space after it" if isinstance(raw, str) else None,
            remedy=_beginning(what),
        )
    return raw


def _beginning(what: str) -> str:
    """Say how a file of this kind is begun."""
    if what == CAMPAIGN:
        return "keel init FILE writes a campaign to start from"
    return f"begin the file with the line '{what}:' and a list below it"


def _apply(raw: dict[str, Any], override: str) -> str:
    """Write one override into the raw values; return its key, with positions instead of names."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or "[" in key or "" in key.split("."):
        raise UserError(
            f"not of the form key.path=value: {override!r}",
            where="--set",
            cause="entries of lists are named or numbered after a dot" if "[" in key else None,
            remedy="write --set rounds.0.steps=10, say",
        )
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"the value of {key!r} is not YAML: {text!r}",
            where="--set",
            cause=not_yaml(error, "--set", text).cause,
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


def _refuse_secrets(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse tokens and passwords: the ledger, the report and every snapshot's hash would keep them."""
    for key, value in raw.items():
        # Both have rules of their own, which say what to write instead.
        if key not in ("store", "ledger") and any(map(holds_secret, _texts_in(value))):
            raise UserError(
                "there is a token, a key or a URL with a password in it",
                where=f"{path}: {key}",
                cause="the ledger and the report keep what a campaign says",
                remedy="set an environment variable, and name it in environment: of whatever needs it",
            )


def _texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
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


def _not_valid(mistakes: Sequence[Mistake], lines: Lines, path: Path, what: str) -> UserError:
    """Return the error that lists mistakes, each with its line in the file."""
    numbers = [lines.number(mistake.path, mistake.source) for mistake in mistakes]
    if len(mistakes) == 1:
        where = str(path) if numbers[0] is None else f"{path}:{numbers[0]}"
        return UserError(f"the {what} is not valid\n  {mistakes[0].line}", where=where)
    shown = [
        mistake.line if number is None else f"{mistake.line} (line {number})"
        for mistake, number in zip(mistakes[:MAX_SHOWN], numbers, strict=False)
    ]
    more = [f"... and {len(mistakes) - MAX_SHOWN} more"] if len(mistakes) > MAX_SHOWN else []
    return UserError("\n  ".join([f"the {what} is not valid", *shown, *more]), where=str(path))


def _narrowed(places: Places) -> Narrowed:
    """Return the function that finds the class of the algorithm, retention method, merger or draw that a
    value names."""

    def narrowed(model: type[BaseModel], value: Any) -> type[BaseModel]:
        if not isinstance(value, dict | str):
            return model
        name = value if isinstance(value, str) else value.get("name")
        if model in REGISTRIES:
            return REGISTRIES[model].get(str(name), model)
        try:
            return algorithm_class(name, places) if model is Algorithm else model
        except ValueError:
            return model

    return narrowed
