"""The reference pages, written from the code while the site is built: nothing of them lies in a file."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

from align.config import CampaignConfig
from align.learner.losses import ALGORITHMS, Algorithm
from launch.cli import app
from rewards.info import read_info
from rewards.registry import REWARDS


def on_files(files: Any, config: Any) -> Any:
    """Called by the site builder: add the generated pages."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Called by the site builder: equations become MathML, which browsers draw without a script."""
    return EQUATION.sub(_mathml, html)


EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.+?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return convert(unescape(found["latex"]), "inline" if found["tag"] == "span" else "block")


def campaign_page() -> str:
    """Every block of a campaign file, the file itself first."""
    sections = [
        f"## `{model.__name__}`\n\n{_intro(model)}\n\n{_fields(model)}" for model in blocks()
    ]
    return "# Campaign file\n\nUnknown keys are errors.\n\n" + "\n\n".join(sections) + "\n"


def algorithms_page() -> str:
    """Every algorithm: its module's equations and its settings."""
    sections = []
    for name, algorithm in ALGORITHMS.items():
        about = inspect.getdoc(inspect.getmodule(algorithm)) or ""
        sections.append(f"## `{name}`\n\n```text\n{about}\n```\n\n{_fields(algorithm)}")
    return "# Algorithms\n\n" + "\n\n".join(sections) + "\n"


def rewards_page() -> str:
    """Every shipped reward: what it says, options, columns."""
    sections = []
    for name, target in sorted(REWARDS.items()):
        found = read_info(name, "keel", target)
        options = [
            (f"`{o.name}`", _cell(o.type), "needed" if o.required else f"`{o.default!r}`")
            for o in found.options
        ]
        columns = ", ".join(f"`{column}`" for column in found.columns) or "none"
        sections.append(
            f"## `{name}`\n\n{found.summary.replace('``', '`')}\n\nColumns it needs: {columns}.\n\n"
            + (_table(("option", "type", "default"), options) if options else "")
        )
    return "# Rewards\n\n" + "\n\n".join(sections) + "\n"


def commands_page() -> str:
    """Every command with its arguments and options."""
    sections = []
    for path, command in _commands(typer.main.get_command(app), "keel"):
        rows = [
            (_cell(_spelt(p)), _cell(getattr(p, "help", None) or ""))
            for p in command.params
            if p.name != "help"
        ]
        about = inspect.cleandoc(command.help or "")
        sections.append(f"## `{path}`\n\n{about}\n\n{_table(('', ''), rows) if rows else ''}")
    return "# Commands\n\n" + "\n\n".join(sections) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "campaign": campaign_page,
    "algorithms": algorithms_page,
    "rewards": rewards_page,
    "commands": commands_page,
}


def blocks() -> list[type[BaseModel]]:
    """The models a campaign file is made of, breadth first; algorithms have a page of their own."""
    found: list[type[BaseModel]] = [CampaignConfig]
    for model in found:
        for field in model.model_fields.values():
            for inner in _models(field.annotation):
                if inner not in found and not issubclass(inner, Algorithm):
                    found.append(inner)
    return found


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


def _intro(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("``", "`")


def _fields(model: type[BaseModel]) -> str:
    rows = [
        (
            f"`{name}`",
            _cell(_type(field.annotation)),
            _default(field),
            _cell(field.description or ""),
        )
        for name, field in model.model_fields.items()
    ]
    return _table(("key", "type", "default", "meaning"), rows)


def _type(annotation: Any) -> str:
    """An annotation as one reads it: without modules and constraints, alternatives with bars."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(repr(value) for value in inner)
    if origin in (Union, UnionType):
        return " | ".join(_type(kind) for kind in inner)
    if annotation in (None, type(None)):
        return "None"
    name = getattr(annotation, "__name__", str(annotation))
    kinds = ", ".join("..." if kind is Ellipsis else _type(kind) for kind in inner)
    return f"{name}[{kinds}]" if inner else name


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "needed" if field.default_factory is None else "empty"
    if isinstance(field.default, BaseModel):
        return "the block's own"
    return f"`{_cell(repr(field.default))}`"


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
