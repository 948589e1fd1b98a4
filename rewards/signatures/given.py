"""Functions and classes that are given as Python objects, as code that another process can load.

A worker process and a store know code by its file. An object of an importable module is named by that
module. For an object that a notebook or a script defines, `reference_to` writes a module: the source of the
object, and the imports, constants, functions and classes that the source uses. Objects that live only in
this process, such as a loaded model, cannot be written down and are refused by name.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib.util
import inspect
import linecache
import re
import symtable
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from rollouts.errors import UserError

MOST_CONSTANT = 1 << 20
"""Characters that one constant may take in a module that is written."""
HEAD = "from __future__ import annotations\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenCode:
    """Module that is written for one object."""

    name: str
    """Name of the object in it."""
    text: str
    """Python source."""

    @property
    def file(self) -> str:
        """Name of the file that a store knows the object by; its content may change from run to run."""
        return f"{self.name}.py"

    @property
    def digest(self) -> str:
        """sha256 of the source."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def save(self, folder: Path) -> Path:
        """Write the module into a folder of its own content; return its path.

        A file that is there and holds anything else, such as half of it, is replaced.
        """
        path = folder / self.digest[:16] / self.file
        if not path.is_file() or path.read_bytes() != self.text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{self.file}.{id(self):x}")
            partial.write_text(self.text, encoding="utf-8")
            partial.replace(path)
        return path


def reference_to(target: Any, noun: str = "reward") -> str | GivenCode:
    """Return ``pkg.mod:name`` or ``file.py:name`` of an importable object, else a module for it.

    Args:
        noun: kind of the object in messages.

    Raises:
        UserError: it cannot be loaded by another process; says what stands in the way.
    """
    _refuse_live(target, noun)
    if (name := _named(target)) is not None:
        return name
    module = _Module(root=f"the {noun} {target.__name__!r}")
    module.define(target)
    imports = [*dict.fromkeys(module.imports)]
    parts = ["\n".join(imports), "\n".join(module.constants), *module.definitions]
    text = HEAD + "\n" + "\n\n\n".join(part for part in parts if part) + "\n"
    return GivenCode(name=target.__name__, text=text)


def _refuse_live(target: Any, noun: str) -> None:
    """Refuse what has no source of its own, each with its remedy."""
    code = getattr(target, "__code__", None)
    kinds: list[tuple[bool, str, str]] = [
        (
            isinstance(target, functools.partial),
            "a functools.partial",
            "give the function itself, and the fixed arguments as options",
        ),
        (
            isinstance(target, MethodType),
            f"a method of an object of type {type(getattr(target, '__self__', None)).__name__}",
            "write a function, or give a class with __init__ and __call__",
        ),
        (
            getattr(code, "co_name", "") == "<lambda>",
            "a lambda, which has no name that a store could record",
            "write it as a function: def my_reward(completions, **columns): ...",
        ),
        (
            inspect.isbuiltin(target),
            f"the built-in function {getattr(target, '__name__', '')!r}, which has no source",
            "write a function that calls it",
        ),
        (
            not isinstance(target, FunctionType | type),
            f"an object of type {type(target).__name__}",
            "give a function, or the class itself with the arguments of its construction as options",
        ),
    ]
    for is_kind, kind, remedy in kinds:
        if is_kind:
            raise UserError(f"a {noun} cannot be {kind}", remedy=remedy)


def _named(target: Any) -> str | None:
    """Return the name of an object that another process finds by import; None for any other."""
    module = sys.modules.get(target.__module__)
    file = getattr(module, "__file__", None)
    name: str = target.__qualname__
    is_reachable = name.isidentifier() and getattr(module, name, None) is target
    if module is None or file is None or module.__name__ == "__main__" or not is_reachable:
        return None
    path = Path(file)
    if "." not in module.__name__ and path.suffix == ".py" and path.name != "__init__.py":
        return f"{path.resolve()}:{name}"
    origin = None
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(module.__name__)
        origin = None if spec is None else spec.origin
    is_importable = origin is not None and Path(origin) == path
    return f"{module.__name__}:{name}" if is_importable else None


@dataclass(kw_only=True)
class _Module:
    """Module under construction: what it imports, its constants, its functions and classes."""

    root: str
    """Object that the module is for, as messages call it."""
    imports: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    _values: dict[str, Any] = field(default_factory=dict)

    def define(self, target: Any) -> None:
        """Add a function or class after everything that it uses."""
        inner = inspect.unwrap(target)
        source = source_of(inner)
        self._values[target.__name__] = target
        values = _globals(inner)
        # Names that it uses when it runs, and those that its annotations use too.
        needed, hinted = (
            set(_referenced(symtable.symtable(text, "given", "exec"), top=True))
            for text in (HEAD + source, source)
        )
        for name in sorted(needed - vars(builtins).keys() - {"__name__", "__file__"}):
            if name not in values:
                raise self._refused(
                    name,
                    "is not defined",
                    "define it before the campaign is built, beside its user",
                )
            self._use(name, values[name], inner)
        for name in sorted((hinted - needed) & values.keys()):
            # Only an annotation names it: nothing fails without it.
            before = (list(self.imports), list(self.constants), list(self.definitions))
            try:
                self._use(name, values[name], inner)
            except UserError:
                self.imports, self.constants, self.definitions = before
        self.definitions.append(source.rstrip())

    def _use(self, name: str, value: Any, user: Any) -> None:
        """Make a name mean in the module what it means where the object was defined."""
        if name in self._values:
            known = self._values[name]
            if known is value or (_is_plain(known) and _is_plain(value) and known == value):
                return
            raise self._refused(
                name, "stands for two different values in what it calls", "rename one"
            )
        self._values[name] = value
        is_code = isinstance(value, FunctionType | type)
        if isinstance(value, ModuleType):
            if value.__name__ == "__main__":
                why = "is the running program itself"
                raise self._refused(name, why, "import what it needs by name")
            alias = "" if value.__name__ == name else f" as {name}"
            self.imports.append(f"import {value.__name__}{alias}")
        elif is_code and value.__module__ in (user.__module__, "__main__"):
            self._define_helper(name, value)
        elif (line := _import_line(name, value)) is not None:
            self.imports.append(line)
        elif isinstance(value, re.Pattern):
            self.imports.append("import re as _re")
            self.constants.append(f"{name} = _re.compile({value.pattern!r}, {value.flags})")
        elif _is_plain(value):
            self._add_constant(name, value)
        else:
            raise self._refused(
                name,
                f"is an object of type {type(value).__name__} that lives only in this process",
                "make it inside the function, or in __init__ of a reward class, from plain options",
            )

    def _define_helper(self, name: str, value: Any) -> None:
        if value.__name__ == "<lambda>":
            raise self._refused(name, "is a lambda", "write it as a function with def")
        if value.__name__ != name:
            raise self._refused(
                name,
                f"is another name of {value.__name__!r}",
                f"call {value.__name__!r} by its own",
            )
        self.define(value)

    def _add_constant(self, name: str, value: Any) -> None:
        text = _spelt(value)
        if len(text) > MOST_CONSTANT:
            raise self._refused(
                name,
                f"takes {len(text):,} characters",
                "put it into a file, or a column of the prompts",
            )
        self.constants.append(f"{name} = {text}")

    def _refused(self, name: str, why: str, remedy: str) -> UserError:
        return UserError(
            f"{self.root} uses {name!r}, which {why}",
            cause="it is loaded from its source, in another process and again when a run goes on",
            remedy=remedy,
        )


def _globals(target: Any) -> dict[str, Any]:
    """Return what the free names in an object's source stand for; a closure's variables are among them."""
    if not isinstance(target, type):
        values = dict(target.__globals__)
        for name, cell in zip(target.__code__.co_freevars, target.__closure__ or (), strict=True):
            with suppress(ValueError):  # A variable that is assigned later on.
                values[name] = cell.cell_contents
        return values
    values = dict(vars(sys.modules.get(target.__module__, builtins)))
    for method in vars(target).values():
        if isinstance(method, FunctionType):
            values |= _globals(inspect.unwrap(method))
    return values


def source_of(target: Any) -> str:
    """Return the source of a function or class, without indentation.

    Raises:
        UserError: it cannot be read, as of what was typed into an interactive prompt.
    """
    try:
        text = textwrap.dedent(
            _class_source(target) if isinstance(target, type) else inspect.getsource(target)
        )
        (node,) = ast.parse(text).body
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise _unreadable(target, error) from error
    if getattr(node, "name", None) != target.__name__:
        raise _unreadable(target, None)
    return text


def _unreadable(target: Any, error: Exception | None) -> UserError:
    return UserError(
        f"the source of {target.__name__!r} cannot be read",
        cause=str(error) if error else "its file has changed since it was loaded",
        remedy="define it in a cell of a notebook or in a file, with def or class",
    )


def _class_source(target: type) -> str:
    """Return the source of a class; in a notebook it is found through one of the class's functions."""
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        functions = [value for value in vars(target).values() if isinstance(value, FunctionType)]
        if not functions:
            raise
    lines = linecache.getlines(functions[0].__code__.co_filename)
    first = functions[0].__code__.co_firstlineno
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.ClassDef) and node.name == target.__name__:
            start = min(node.lineno, *(d.lineno for d in node.decorator_list), node.lineno)
            if start <= first <= (node.end_lineno or start):
                return "".join(lines[start - 1 : node.end_lineno])
    raise OSError(f"no class {target.__name__} in {functions[0].__code__.co_filename}")


def _referenced(table: symtable.SymbolTable, *, top: bool = False) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _referenced(child)


def _import_line(name: str, value: Any) -> str | None:
    """Return the import of an object that a module defines; None if no module has it under a name."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ in ("__main__", "builtins"):
        return None
    for known in (getattr(value, "__name__", None), getattr(value, "_name", None), name):
        if isinstance(known, str) and getattr(module, known, None) is value:
            alias = "" if known == name else f" as {name}"
            return f"from {module.__name__} import {known}{alias}"
    return None


_PLAIN = (bool, int, float, str, bytes, type(None))


def _is_plain(value: Any) -> bool:
    """Tell if a value is data that Python source can spell, through and through."""
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(_is_plain(key) and _is_plain(below) for key, below in value.items())
    return type(value) in _PLAIN


def _spelt(value: Any) -> str:
    """Spell plain data, the same for equal values: sets in order, numbers that are not finite by name.

    >>> _spelt({"a": {3, 1, 2}, "b": float("inf")})
    "{'a': {1, 2, 3}, 'b': float('inf')}"
    """
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return f"float({str(value)!r})"
        case set() | frozenset():
            inner = ", ".join(sorted(map(_spelt, value)))
            braces = f"{{{inner}}}" if inner else "set()"
            return braces if isinstance(value, set) else f"frozenset({braces})"
        case dict():
            return "{" + ", ".join(f"{_spelt(k)}: {_spelt(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_spelt, value)) + "]"
        case tuple():
            return "(" + "".join(f"{_spelt(each)}, " for each in value).rstrip(" ") + ")"
    return repr(value)
