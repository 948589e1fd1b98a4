"""Files that the code of a reward needs, found without running it: what a sandbox shows of a folder.

A reward's folder also holds a ``.env``, a repository and whatever else its author keeps there. So a sandbox
shows the file itself, the modules that it imports from beside it or from the path of modules, and theirs.
A name that is only put together when the code runs is not found; such files are declared.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from rollouts.errors import UserError

MOST_FILES = 500
"""Most files of code that are looked through; a reward that needs more is an installed package."""


def needed_files(file: Path, folder: Path) -> list[str]:
    """List a Python file and what it imports that no installation has, as absolute paths.

    Args:
        folder: the worker's current one, from which modules can be imported.
    """
    file = file.resolve()
    paths = (Path(entry or ".").resolve() for entry in sys.path)
    roots = [file.parent, folder.resolve(), *(path for path in paths if not is_installed(path))]
    shown, waiting, read = [file], [file], set[Path]()
    while waiting and len(read) < MOST_FILES:
        source = waiting.pop()
        if source in read or not source.is_file():
            continue
        read.add(source)
        for module in filter(None, (_module(name, roots) for name in sorted(_imported(source)))):
            is_package = module.is_dir()
            shown += package_parts(module) if is_package else [module]
            waiting += module.rglob("*.py") if is_package else [module]
    return list(dict.fromkeys(map(str, shown)))


def package_parts(folder: Path) -> list[Path]:
    """List the files of a package, its data among them, without anything hidden.

    A folder without hidden files stands for all that is in it.
    """
    parts: list[Path] = []
    is_whole = True
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            is_whole = False
        elif entry.is_dir() and not entry.is_symlink():
            below = package_parts(entry)
            is_whole = is_whole and below == [entry]
            parts += below
        elif entry.is_file():
            parts.append(entry)
    return [folder] if is_whole else parts


def declared_files(files: tuple[str, ...], folder: Path, where: str | None) -> list[str]:
    """Return the files and folders that a campaign declares for a sandbox, as absolute paths.

    Raises:
        UserError: there is no such file.
    """
    paths = [(folder / file).resolve() for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.exists():
            raise UserError(
                f"there is no file {file!r} that the sandbox could show",
                where=where,
                remedy="correct files, which are relative to the campaign file",
            )
    return [str(path) for path in paths]


def _imported(source: Path) -> set[str]:
    """Return the outermost names that a file imports; none of what Python cannot read."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _module(name: str, roots: list[Path]) -> Path | None:
    """Return the file of a module, or the folder of a package, in the first folder that has it."""
    for root in roots:
        if (package := root / name).is_dir() and any(package.glob("*.py")):
            return package.resolve()
        if (module := root / f"{name}.py").is_file():
            return module.resolve()
    return None


def is_installed(path: Path) -> bool:
    """Tell if a folder belongs to Python itself, which a sandbox shows as a whole."""
    prefixes = (Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    return any(path.is_relative_to(prefix) for prefix in prefixes)
