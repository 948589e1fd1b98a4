"""Fenced blocks of Markdown, and their commands, compared with the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from launch.cli import app

FENCE = re.compile(
    r'^(?P<indent> *)```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^(?P=indent)```$',
    flags=re.MULTILINE | re.DOTALL,
)
SHELL_ENDS = ("|", ">", "&", "&&", ";")
"""Words that end a command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One fenced block."""

    kind: str
    """Language of the block, such as ``sh``."""
    title: str | None
    """The file that a reader saves it as."""
    text: str


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a text, in order."""
    return [
        Block(kind=found["kind"], title=found["title"], text=found["text"])
        for found in FENCE.finditer(markdown)
    ]


def shell_lines(markdown: str) -> list[str]:
    """The commands of all ``sh`` blocks, one a line, without comments."""
    return [line for b in blocks(markdown) if b.kind == "sh" for line in commands(b)]


def commands(block: Block) -> list[str]:
    """The commands of one block.

    >>> commands(Block(kind="sh", title=None, text="make a  # what for\\nb \\\\\\n  --c\\n"))
    ['make a', 'b --c']
    """
    lines = re.sub(r" *\\\n *", " ", block.text).splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line[:1] not in "#"]


def keel_words(line: str) -> list[str] | None:
    """The words after ``keel`` up to a pipe or the like; None for another command.

    >>> keel_words(".venv/bin/keel k8s render a.yaml | kubectl apply -f -")
    ['k8s', 'render', 'a.yaml']
    """
    first, *words = program_words(line)
    return words if Path(first).name == "keel" else None


def program_words(line: str) -> list[str]:
    """A command and its words up to a pipe or the like.

    >>> program_words("ray get-auth-token --generate > /dev/null")
    ['ray', 'get-auth-token', '--generate']
    """
    words = shlex.split(line)
    ends = [i for i, word in enumerate(words) if word in SHELL_ENDS]
    return words[: ends[0]] if ends else words


def command_of(words: list[str], *, whole: bool = True) -> tuple[str, Any, list[str]]:
    """The command that words name, as ``gate plan``, with the words that are left for it.

    Args:
        whole: a group's name alone is no command.
    """
    command, left = _command_tree(), list(words)
    while (inner := getattr(command, "commands", {})) and (left or whole):
        assert left and left[0] in inner, f"keel {' '.join(words)}: no such command"
        command = inner[left.pop(0)]
    return " ".join(words[: len(words) - len(left)]), command, left


@cache
def _command_tree() -> Any:
    """Build the commands, which takes typer .05 s."""
    return typer.main.get_command(app)


def assert_parses(words: list[str]) -> None:
    """The command exists and takes these options and arguments; what is in brackets is optional."""
    bare = [word.strip("[]") for word in words]
    name, command, left = command_of([word for word in bare if word not in ("", "...")])
    try:
        command.make_context(name, left)
    except Exception as error:
        raise AssertionError(f"keel {' '.join(words)}: {error}") from error


def walk(
    markdown: str,
    folder: Path,
    *,
    run: Callable[[list[str]], str],
    change: Callable[[str], str] = lambda text: text,
) -> None:
    """Do what a reader does, from top to bottom: save the blocks with a title, run the commands.

    Args:
        run: is given the words after ``keel`` and returns what was printed, which a line may keep in a
            file; other programs are left out.
        change: of a block's text before it is saved.
    """
    for block in blocks(markdown):
        if block.title is not None:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(change(block.text))
        for line in commands(block) if block.kind == "sh" else ():
            if (words := keel_words(line)) is not None:
                printed = run(words)
                if kept := re.search(r" > ([\w.-]+)$", line):
                    (folder / kept[1]).write_text(printed)
