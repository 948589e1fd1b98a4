"""Values of secret variables in what is about to be sent: found however shell, YAML or JSON spell them.

A check against accidents. Whoever encodes a secret in another way is not found out.
"""

from __future__ import annotations

import json
import mmap
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rollouts.errors import UserError
from rollouts.machine.variables import secret_values

MOST_PARSED = 1 << 20
"""Bytes of a YAML file that is parsed; the bytes of every file are searched."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where libyaml is there; what it reads is only looked at."""
YAML_ENDINGS = (".yaml", ".yml", ".json")


def check_no_secrets(command: str, files: Iterable[Path], environ: Mapping[str, str]) -> None:
    """Refuse to send the value of a variable whose name says that it is secret.

    Args:
        command: as a shell reads it.
        files: and folders with all that is below them.
    """
    secrets = secret_values(environ)
    spoken = [command]
    for word in shlex.split(command):
        # Without its quotes, and what it says in YAML.
        spoken += [word, *_scalars(word.partition("=")[2])]
    for text in spoken:
        _refuse(_named_in(text, secrets), "the job's command")
    for path in files:
        for file in (path,) if path.is_file() else path.rglob("*"):
            if path.is_dir() and not file.resolve().is_relative_to(path.resolve()):
                raise UserError(
                    "the link leads out of the folder that is sent to the cluster",
                    where=str(file),
                    remedy="replace it by the file itself, or remove it",
                )
            if file.is_file():
                _refuse(_in_file(file, secrets), str(file))


def spellings(secret: str) -> set[str]:
    """Spell a text as files hold it: bare, or inside the quotes of JSON, YAML or a program."""
    quoted = {json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
    escaped = secret.replace("\\", "\\\\").replace("'", "\\'")
    return {secret, escaped, secret.replace("'", "''"), *quoted}


def _in_file(file: Path, secrets: Mapping[str, str]) -> str | None:
    if not file.stat().st_size:  # Nothing can be mapped.
        return None
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for value, name in secrets.items():
            # fsencode gives back the bytes that the environment had.
            if any(content.find(os.fsencode(text)) >= 0 for text in spellings(value)):
                return name
    if file.suffix not in YAML_ENDINGS or file.stat().st_size > MOST_PARSED:
        return None
    names = (_named_in(text, secrets) for text in _scalars(file.read_text(errors="replace")))
    return next((name for name in names if name is not None), None)


def _scalars(text: str) -> Iterator[str]:
    """Yield every key and value of a YAML text, up to where it is none."""
    try:
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.ScalarEvent):
                yield event.value
    except yaml.YAMLError:
        return


def _named_in(text: str, secrets: Mapping[str, str]) -> str | None:
    return next((name for value, name in secrets.items() if value in text), None)


def _refuse(name: str | None, where: str) -> None:
    if name is not None:
        raise UserError(
            f"holds the value of {name}, and would be sent to the cluster in the clear",
            where=where,
            remedy=f"take it out and name the variable instead: --env {name}",
        )
