"""Program of a submitted job: ``python -m launch.cluster.jobs.entrypoint --env NAME -- run FILE --address
auto``.

A job's specification is no place for secrets, so it names variables. Their values are in the environment
of the head node already, or in files of their names below ``--env-dir``, as Kubernetes and Docker mount
secrets. They reach this process and what it starts, and are never printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from rollouts.errors import KeelError, UserError

DEFAULT_DIR = "~/.keel/env"


def fill(environ: MutableMapping[str, str], names: Sequence[str], folder: Path) -> None:
    """Set the named variables that are not set yet.

    Raises:
        UserError: one is nowhere, or its file can be read by others.
    """
    for name in names:
        if environ.get(name):
            continue
        file = folder / name
        if not file.is_file():
            raise UserError(
                f"{name} is not set on the cluster",
                where="--env",
                cause=f"neither the head node's environment nor {folder} has it",
                remedy="write the value to that file with mode 0600 on the head node, or start the node "
                "with the variable",
            )
        if file.stat().st_mode & 0o007:
            raise UserError(
                "others on the node can read this secret",
                where=str(file),
                remedy=f"chmod 600 {file}",
            )
        environ[name] = file.read_text().strip()


def parse(arguments: Sequence[str]) -> tuple[list[str], Path, list[str]]:
    """Split the words into names of variables, the folder of their values, and the command for
    ``keel``.

    >>> parse(["--env", "KEY", "--", "run", "x.yaml"])[::2]
    (['KEY'], ['run', 'x.yaml'])
    """
    separator = list(arguments).index("--")
    own_words, command = list(arguments[:separator]), list(arguments[separator + 1 :])
    options = list(zip(own_words[::2], own_words[1::2], strict=True))
    names = [value for option, value in options if option == "--env"]
    folders = [value for option, value in options if option == "--env-dir"]
    return names, Path(folders[-1] if folders else DEFAULT_DIR).expanduser(), command


def main() -> None:
    """Fill the environment, then run ``keel``."""
    names, folder, command = parse(sys.argv[1:])
    try:
        fill(os.environ, names, folder)
    except KeelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    from launch import cli

    sys.argv = ["keel", *command]
    cli.main()


if __name__ == "__main__":
    main()
