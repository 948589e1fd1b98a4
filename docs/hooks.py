"""The reference pages, written from the code while the site is built: nothing of them lies in a file."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import cache
from html import unescape
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

import align
from align.algorithms import ALGORITHMS, Algorithm
from align.config.campaign import CampaignConfig, RoundSettings
from align.config.file import REGISTRIES
from align.config.schedule import spell_duration
from launch.cli import app
from rewards.registry import REWARDS
from rewards.signatures.info import read_info

DOCS = Path(__file__).parent


def on_files(files: Any, config: Any) -> Any:
    """Called by the site builder: add the generated pages."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        name = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook_page(notebook)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Called by the site builder: equations become MathML, which browsers draw without a script."""
    return EQUATION.sub(_mathml, html)


EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.+?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    if found["tag"] == "span":
        return str(convert(unescape(found["latex"]), "inline"))
    return f'<div class="equation">{convert(unescape(found["latex"]), "block")}</div>'


def notebook_page(notebook: Path) -> str:
    """A notebook as a page: its texts, its code, and a link to the notebook itself."""
    cells = [
        "".join(cell["source"])
        if cell["cell_type"] == "markdown"
        else f"```python\n{''.join(cell['source'])}\n```"
        for cell in json.loads(notebook.read_text())["cells"]
    ]
    title, *others = cells
    return "\n\n".join((title, f"[The notebook]({notebook.name})", *others)) + "\n"


def python_page() -> str:
    """Every public name of ``import align``, with what its docstrings say."""
    sections = ["# Python", "Names of `import align`. A name is loaded when it is first used."]
    for title, names in PYTHON_NAMES.items():
        sections += [f"## {title}", *(_python_name(name) for name in names)]
    listed = {name for names in PYTHON_NAMES.values() for name in names}
    settings = sorted(set(align.__all__) - listed)
    sections += [
        "## Settings",
        "Keyword arguments are the keys of the block: see [the campaign file](campaign.md). "
        + ", ".join(f"`{name}`" for name in settings),
    ]
    return "\n\n".join(sections) + "\n"


PYTHON_NAMES = {
    "Campaigns": ("Campaign", "load_campaign", "Reward", "run"),
    "Results": ("StoredCampaign", "load_policy", "open_store"),
    "Events": ("NoteEvent", "StepEvent", "MeasuringEvent", "VerdictEvent", "Event"),
    "Errors": ("KeelError", "UserError", "RunError"),
}
"""Public names by section; all others are settings."""


def _python_name(name: str) -> str:
    """A public name: signature, docstring, fields, and the methods of its own."""
    value = getattr(align, name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        kinds = ", ".join(f"`{kind.__name__}`" for kind in get_args(value))
        return f"### `{name}`\n\nAny of {kinds}."
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    parts = [f"### `{name}`", "" if is_error else _signature(name, value), _verbatim(value)]
    if inspect.isclass(value):
        parts += [_method(value, method) for method in vars(value) if method[0] != "_"]
    return "\n\n".join(part for part in parts if part)


def _method(owner: type, name: str) -> str:
    """A method or property of a class; nothing for other attributes, which the class describes."""
    value = inspect.getattr_static(owner, name)
    if isinstance(value, property):
        return f"#### `{name}`\n\n{_verbatim(value)}"
    if not inspect.isfunction(value) and not isinstance(value, classmethod):
        return ""
    function = getattr(owner, name)
    return f"#### `{name}`\n\n{_signature(name, function)}\n\n{_verbatim(function)}"


class _Annotation(str):
    """An annotation as it stands in the code, without quotes."""

    __repr__ = str.__str__


def _signature(name: str, function: Any) -> str:
    """The call of a function as code, without ``self``."""
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=_Annotation(each.annotation))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    answer = "" if inspect.isclass(function) else f" -> {signature.return_annotation}"
    return f"```python\n{name}{inspect.Signature(parameters)}{answer}\n```"


def _verbatim(value: Any) -> str:
    """A docstring; its sections become lists."""
    text, *sections = re.split(r"\n\n(?=\w+:\n)", inspect.getdoc(value) or "")
    parts = [text]
    for section in sections:
        title, _, entries = section.partition("\n")
        lines = re.sub(r"\n {8}", " ", entries)
        parts += [title, re.sub(r"^ {4}(\*{0,2}\w+): ", r"- `\1`: ", lines, flags=re.MULTILINE)]
    return "\n\n".join(parts).replace("``", "`")


def campaign_page() -> str:
    """Every block of a campaign file, the file itself first."""
    sections = [
        f"## {_title(model)}\n\n{_prose(model)}\n\n{_where(places)}{_fields(model)}"
        for model, places in blocks().items()
    ]
    return (
        "# Campaign file\n\nUnknown keys are errors. Whatever a round leaves out comes from "
        "`defaults`; what those leave out has the default here. `keel config show FILE --resolved` "
        "prints every value with where it is from.\n\n" + "\n\n".join(sections) + "\n"
    )


def algorithms_page() -> str:
    """Every algorithm: its module's equations and its settings."""
    sections = []
    for name, algorithm in ALGORITHMS.items():
        about = _prose(inspect.getmodule(algorithm))
        sections.append(f"## `{name}`\n\n{about}\n\n{_fields(algorithm)}")
    return (
        "# Algorithms\n\nA round names its algorithm, `algorithm: dpo`, or gives it settings too, "
        "`algorithm: {name: dpo, beta: 0.2}`. Anchors and replay are the same under all of them.\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


def rewards_page() -> str:
    """Every shipped reward: what it says, options, columns."""
    sections = []
    for name, spec in sorted(REWARDS.items()):
        found = read_info(name, "keel", spec.function)
        options = [
            (f"`{o.name}`", _cell(o.type), "needed" if o.required else f"`{o.default!r}`")
            for o in found.options
        ]
        columns = ", ".join(f"`{column}`" for column in found.columns) or "none"
        values = "" if spec.range is None else "Values: {:g} to {:g}. ".format(*spec.range)
        sections.append(
            f"## `{name}`\n\n{found.summary.replace('``', '`')}\n\n"
            f"{values}Columns it needs: {columns}. Isolation: {spec.isolation}.\n\n"
            + (_table(("option", "type", "default"), options) if options else "")
        )
    return "# Rewards\n\n" + "\n\n".join(sections) + "\n"


def commands_page() -> str:
    """Every command with its arguments and options."""
    sections = []
    for path, command in _commands(typer.main.get_command(app), "keel"):
        rows = [
            (_cell(_spelt(p)), _option_default(p), _cell(getattr(p, "help", None) or ""))
            for p in command.params
            if p.name != "help"
        ]
        table = _table(("argument or option", "default", "meaning"), rows) if rows else ""
        sections.append(f"## `{path}`\n\n{inspect.cleandoc(command.help or '')}\n\n{table}")
    ends = _table(
        ("exit code", "meaning"), [(f"`{code}`", text) for code, text in EXIT_CODES.items()]
    )
    return "# Commands\n\n" + f"{ends}\n\n" + "\n\n".join(sections) + "\n"


EXIT_CODES = {
    0: "done",
    1: "a run failed",
    2: "the input is wrong; nothing was started",
    3: "with `--strict`: the gate rejected a round",
    4: "`keel schedule`: nothing is due",
    130: "interrupted; the same command goes on from there",
}

PAGES: dict[str, Callable[[], str]] = {
    "campaign": campaign_page,
    "algorithms": algorithms_page,
    "rewards": rewards_page,
    "commands": commands_page,
    "python": python_page,
}


def blocks() -> dict[type[BaseModel], list[str]]:
    """The models a campaign file is made of with the keys they stand at, breadth first.

    Algorithms have a page of their own, and what a round has is not told again for ``defaults``.
    """
    found: dict[type[BaseModel], list[str]] = {CampaignConfig: []}
    queue: list[tuple[type[BaseModel], str]] = [(CampaignConfig, "")]
    for model, path in queue:
        for name, field in model.model_fields.items():
            many = "[]" if get_origin(_bare(field.annotation)) in (tuple, list) else ""
            for inner in _named(_models(field.annotation)):
                if issubclass(inner, Algorithm):
                    continue
                if inner not in found:
                    queue.append((inner, f"{path}{name}{many}."))
                place = f"{path}{name}"
                if place not in found.setdefault(inner, []) and not _twice(path, name):
                    found[inner].append(place)
    return found


def _named(models: Iterator[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Put the settings of every retention method or merger where a field takes any of them."""
    for model in models:
        yield from REGISTRIES[model].values() if model in REGISTRIES else (model,)


def _twice(path: str, name: str) -> bool:
    return path == "rounds[]." and name in RoundSettings.model_fields


def _bare(annotation: Any) -> Any:
    """Without the None of what may be left out, and without constraints."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) in (Union, UnionType) and len(kinds) == 1:
        return _bare(kinds[0])
    return annotation


def _where(places: list[str]) -> str:
    return f"At {', '.join(f'`{place}`' for place in places)}.\n\n" if places else ""


def _title(model: type[BaseModel]) -> str:
    """``RoundSuiteConfig`` as ``Round suite``."""
    name = model.__name__.removesuffix("Config")
    return re.sub(r"(?<!^)([A-Z])", lambda found: f" {found[1].lower()}", name)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    inner: dict[str, click.Command] = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, child in sorted(inner.items()):
        yield from _commands(child, f"{path} {name}")


def _prose(documented: Any) -> str:
    """A docstring as Markdown: equations, which are indented, are code in both."""
    return (inspect.getdoc(documented) or "").replace("``", "`")


def _fields(model: type[BaseModel]) -> str:
    rows = [
        (
            f"`{field.alias or name}`",
            _cell(_type(field.annotation)),
            _default(field),
            _cell(_meaning(model, name)),
        )
        for name, field in model.model_fields.items()
        if not (issubclass(model, Algorithm) and name == "name")
    ]
    return _table(("key", "type", "default", "meaning"), rows) if rows else "No settings."


def _meaning(model: type[BaseModel], name: str) -> str:
    """Return the field's own words, or the first sentence of the block that it holds."""
    if words := _field_docstrings(model).get(name):
        return words
    block = next(_models(model.model_fields[name].annotation), None)
    return "" if block is None else " ".join(_prose(block).split()).split(". ")[0].rstrip(".") + "."


@cache
def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Read the strings that follow fields in the source, those of base classes too.

    Pydantic would read them while the classes are built, which every command would wait for.
    """
    words: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (definition,) = ast.parse(dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(text))
                ):
                    words[name] = inspect.cleandoc(text)
    return words


WORDS = {
    str: "text", int: "integer", float: "number", bool: "true or false",
    Any: "anything", JsonValue: "anything",
}  # fmt: skip


def _type(annotation: Any) -> str:
    """An annotation as somebody who writes YAML reads it; None, which leaves a key out, is not told."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(kind) for kind in inner if kind is not type(None))
    if origin is tuple and inner[1:] != (Ellipsis,):
        return f"list of {len(inner)}: {', '.join(map(_type, inner))}"
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping to {_type(inner[1])}"
    if annotation in WORDS:
        return WORDS[annotation]
    if annotation is date:
        return "date, as `2024-07-26`"
    if annotation is timedelta:
        return "duration, as `6h`"
    if issubclass(annotation, Algorithm):
        return "[algorithm](algorithms.md)"
    title = _title(annotation)
    return f"[{title}](campaign.md#{title.lower().replace(' ', '-')})"


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "needed" if field.default_factory is None else "empty"
    return _value(field.default)


def _value(default: Any) -> str:
    """A default as YAML has it; what blocks hold stands in their own tables."""
    if isinstance(default, Algorithm):
        return f"`{default.name}`"  # type: ignore[attr-defined]
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, timedelta):
        return f"`{spell_duration(default)}`"
    if default in ((), ""):
        return "empty"
    if default is None or isinstance(default, bool):
        return "none" if default is None else f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return ", ".join(
            f"`{{{', '.join(f'{k}: {v}' for k, v in one.model_dump(exclude_unset=True).items())}}}`"
            if isinstance(one, BaseModel)
            else f"`{one}`"
            for one in default
        )
    return f"`{_cell(str(default))}`"


def _option_default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "needed"
    default = parameter.default
    if default is None or default is False or default == () or callable(default):
        return ""
    return f"`{default}`"


def _spelt(parameter: click.Parameter) -> str:
    if parameter.param_type_name == "option":
        return " ".join(f"`{name}`" for name in parameter.opts)
    return f"`{(parameter.name or '').upper()}`"


def _cell(text: str) -> str:
    """One line, without what would end a cell; docstrings quote code with two backticks."""
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
