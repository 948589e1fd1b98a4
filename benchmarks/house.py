"""Measurements of the four packages as a reader meets them: sizes, names, sentences and rooms.

Nothing runs and nothing is imported: every figure is read from the syntax trees of ``align``, ``rollouts``,
``rewards`` and ``launch``. ``--list`` prints where each finding stands, one per line as ``file:line``.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Literal

from benchmarks.common import parser, save, show

ROOT = Path(__file__).parents[1]
PACKAGES = ("align", "rollouts", "rewards", "launch")

FRAGMENT_OPENINGS: frozenset[str] = frozenset({
    "And", "As", "At", "By", "For", "From", "How", "If", "In", "It", "Its", "None", "Not",
    "Of", "On", "That", "Those", "To", "Under", "Until", "What", "When", "Where", "Whether",
    "Which", "Who", "Whom", "Whose", "Why", "With",
})  # fmt: skip
"""First words of docstrings that are no sentence of their own: they lean on the line above."""
VERBS: frozenset[str] = frozenset({
    "Accept", "Adapt", "Add", "Adjust", "Advance", "Allow", "Annotate", "Answer", "Append", "Apply",
    "Ask", "Assert", "Assign", "Attach", "Begin", "Bill", "Bind", "Block", "Bound", "Bring",
    "Build", "Call", "Cancel", "Change", "Check", "Choose", "Claim", "Clear", "Clip", "Close",
    "Collect", "Combine", "Compare", "Compile", "Complete", "Compose", "Compute", "Confirm",
    "Connect", "Continue", "Convert", "Copy", "Correct", "Count", "Cover", "Create", "Cut",
    "Deal", "Decide", "Decode", "Delete", "Derive", "Describe", "Detect", "Discard", "Divert",
    "Divide", "Do", "Download", "Drain", "Draw", "Drop", "Dump", "Echo", "Empty", "Encode",
    "End", "Ensure", "Enter", "Escape", "Estimate", "Evaluate", "Exclude", "Execute", "Exit",
    "Expand", "Explain", "Export", "Extend", "Fail", "Fetch", "Fill", "Filter", "Find",
    "Finish", "Fit", "Fix", "Flush", "Follow", "Forecast", "Forget", "Format", "Free",
    "Freeze", "Gather", "Generate", "Get", "Give", "Go", "Group", "Guard", "Hand", "Handle",
    "Hash", "Hide", "Hold", "Ignore", "Import", "Index", "Initialise", "Insert", "Install",
    "Interpolate", "Invert", "Join", "Judge", "Keep", "Kill", "Label", "Launch", "Lay",
    "Learn", "Leave", "Let", "Limit", "Link", "List", "Listen", "Live", "Load", "Lock", "Log",
    "Look", "Lower", "Make", "Map", "Mark", "Mask", "Match", "Measure", "Merge", "Mirror",
    "Mount", "Move", "Name", "Normalise", "Note", "Number", "Open", "Order", "Override",
    "Pack", "Pad", "Pair", "Parse", "Pass", "Pick", "Place", "Plan", "Poll", "Predict", "Prepare",
    "Print", "Promise", "Propose", "Prove", "Publish", "Pull", "Purge", "Push", "Put",
    "Queue", "Raise", "Rank", "Rate", "Read", "Rebuild", "Receive", "Recompute", "Record", "Recover",
    "Redraw", "Reduce", "Refuse", "Register", "Reject", "Release", "Reload", "Remember", "Remove",
    "Rename", "Render", "Reorder", "Repack", "Repair", "Repeat", "Replace", "Reply", "Report",
    "Request", "Require", "Reserve", "Reset", "Resolve", "Respond", "Restart", "Restate",
    "Restore", "Resume", "Retrieve", "Retry", "Return", "Reuse", "Revoke", "Rewrite",
    "Rotate", "Round", "Route", "Run", "Sample", "Save", "Say", "Scale", "Score", "Seal",
    "See", "Select", "Send", "Serve", "Set", "Settle", "Shorten", "Show", "Shuffle", "Shut",
    "Sign", "Signal", "Size", "Skip", "Sleep", "Sort", "Spawn", "Spell", "Spend", "Split",
    "Spread", "Start", "State", "Step", "Stop", "Store", "Stream", "Strip", "Submit",
    "Subtract", "Sum", "Summarise", "Survey", "Swap", "Sweep", "Switch", "Take", "Tell",
    "Terminate", "Test", "Thin", "Time", "Tokenize", "Track", "Train", "Transform", "Translate",
    "Trust", "Try", "Turn", "Undo", "Unload", "Unpack", "Update", "Use", "Validate", "Verify",
    "Wait", "Wake", "Walk", "Warn", "Watch", "Weigh", "Weight", "Withdraw", "Wrap", "Write",
    "Yield",
})  # fmt: skip
"""First words of a function's docstring. A verb that is missing here is a line to add."""
EMPTY_LOCALS: frozenset[str] = frozenset({
    "asked", "found", "given", "got", "held", "it", "kept", "made", "mine",
    "named", "one", "ours", "own", "place", "said", "seen", "some", "stuff",
    "taken", "theirs", "them", "thing", "things", "told",
})  # fmt: skip
"""Names of variables that tell how a value came about, or nothing, instead of what it is."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Owner = ast.Module | ast.ClassDef | Function
Kind = Literal["module", "class", "field", "function", "property"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A parsed Python file."""

    path: str
    """Path relative to the root of the repository, with forward slashes."""
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        """Parse the text of a file."""
        return cls(path=path, text=text, tree=ast.parse(text))

    @property
    def num_lines(self) -> int:
        """Number of physical lines, blank ones and comments included."""
        return len(self.text.splitlines())


@dataclass(frozen=True, kw_only=True, slots=True)
class Docstring:
    """A docstring, or the string literal below a field."""

    path: str
    line: int
    kind: Kind
    name: str
    text: str

    @property
    def opening(self) -> str:
        """First word, as it is written."""
        words = self.text.split()
        return words[0].rstrip(".,:;") if words else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A place in the source that a rule speaks of."""

    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A function on the way from the command to the loss."""

    path: str
    function: str
    """Name of the function, with its class before a dot where it is a method."""
    calls: str
    """Name by which the function's body reaches the next function of the list; empty for the last."""


COMMAND_TO_LOSS = (
    Call(path="launch/cli.py", function="run", calls="run_campaign"),
    Call(path="align/campaign.py", function="run_campaign", calls="runner_of"),
    Call(path="align/round/round.py", function="run_round", calls="train"),
    Call(path="align/round/round.py", function="train", calls="update"),
    Call(path="align/learner/training.py", function="Training.update", calls="_step_on"),
    Call(path="align/learner/training.py", function="Training._step_on", calls="measure"),
    Call(path="align/learner/training.py", function="Objective.measure", calls="objective"),
    Call(path="align/algorithms/base.py", function="PolicyGradient.objective", calls="loss"),
    Call(path="align/algorithms/policy_gradient/grpo.py", function="GRPO.loss", calls=""),
)
"""Functions from ``keel run`` to the loss of GRPO, in the order in which each calls the next."""


def read_sources(root: Path, packages: Sequence[str] = PACKAGES) -> list[Source]:
    """Read and parse every Python file of the packages."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    return [
        Source.parse(file.relative_to(root).as_posix(), file.read_text("utf-8")) for file in files
    ]


def docstrings(source: Source) -> Iterator[Docstring]:
    """Yield every docstring of a file, and every string literal that stands below a field."""
    for owner in ast.walk(source.tree):
        if not isinstance(owner, Owner) or not owner.body:
            continue
        name = "" if isinstance(owner, ast.Module) else owner.name
        if (literal := _literal(owner.body[0])) is not None:
            yield _docstring(source, literal, _kind(owner), name)
        if isinstance(owner, Function):
            continue
        for field, below in pairwise(owner.body):
            if isinstance(field, ast.Assign | ast.AnnAssign) and (text := _literal(below)):
                target = field.targets[0] if isinstance(field, ast.Assign) else field.target
                yield _docstring(source, text, "field", ast.unparse(target))


def fragments(source: Source) -> list[Finding]:
    """Find docstrings that open as fragments: with a word that needs the line above."""
    return [
        Finding(
            path=doc.path, line=doc.line, name=f"{doc.kind} {doc.name}: {_first_line(doc.text)}"
        )
        for doc in docstrings(source)
        if doc.opening in FRAGMENT_OPENINGS or doc.text.startswith("In place")
    ]


def verbless(source: Source) -> list[Finding]:
    """Find functions, properties apart, whose docstring does not open with one of `VERBS`."""
    return [
        Finding(
            path=doc.path, line=doc.line, name=f"{doc.kind} {doc.name}: {_first_line(doc.text)}"
        )
        for doc in docstrings(source)
        if doc.kind == "function" and doc.opening not in VERBS
    ]


def empty_locals(source: Source, names: frozenset[str] = EMPTY_LOCALS) -> list[Finding]:
    """Find bindings of variables and parameters to one of the empty ``names``, in the order of lines.

    Fields of a class are none: what they hold is documented below them.
    """
    fields = {
        id(statement.target)
        for owner in ast.walk(source.tree)
        if isinstance(owner, ast.ClassDef)
        for statement in owner.body
        if isinstance(statement, ast.AnnAssign)
    }
    bindings = [
        (node.lineno, node.id)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields
    ]
    bindings += [(n.lineno, n.arg) for n in ast.walk(source.tree) if isinstance(n, ast.arg)]
    return [
        Finding(path=source.path, line=line, name=name)
        for line, name in sorted(bindings)
        if name in names
    ]


def helpers_used_once(source: Source) -> list[Finding]:
    """Find private functions and methods that their file mentions exactly once outside their definition."""
    nodes = list(ast.walk(source.tree))
    mentions = Counter(n.id for n in nodes if isinstance(n, ast.Name))
    mentions += Counter(n.attr for n in nodes if isinstance(n, ast.Attribute))
    return [
        Finding(path=source.path, line=node.lineno, name=node.name)
        for node in nodes
        if isinstance(node, Function) and _is_private(node.name) and mentions[node.name] == 1
    ]


def shared_class_names(sources: Iterable[Source]) -> dict[str, list[Finding]]:
    """Find public classes that share their name with another one, by name."""
    by_name: defaultdict[str, list[Finding]] = defaultdict(list)
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                by_name[node.name].append(
                    Finding(path=source.path, line=node.lineno, name=node.name)
                )
    return {name: classes for name, classes in sorted(by_name.items()) if len(classes) > 1}


def folder_widths(sources: Iterable[Source]) -> Counter[str]:
    """Count the modules of each folder, ``__init__.py`` left out."""
    paths = [Path(source.path) for source in sources]
    return Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py")


def function_lengths(source: Source) -> list[int]:
    """Count the lines of each function, from its ``def`` to its end."""
    nodes = [node for node in ast.walk(source.tree) if isinstance(node, Function)]
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes]


def typed_parameters(source: Source) -> tuple[int, int]:
    """Count the annotated parameters, and all of them, without ``self`` and ``cls``."""
    parameters = [
        parameter
        for node in ast.walk(source.tree)
        if isinstance(node, Function)
        for parameter in _parameters(node.args)
        if parameter.arg not in {"self", "cls"}
    ]
    return sum(p.annotation is not None for p in parameters), len(parameters)


def broken_calls(calls: Sequence[Call], sources: Iterable[Source]) -> list[str]:
    """Find entries of a list of calls that the source does not bear out; return a sentence for each."""
    functions = {
        (source.path, name): node
        for source in sources
        for name, node in _functions(source.tree, prefix="")
    }
    broken = []
    for call in calls:
        node = functions.get((call.path, call.function))
        if node is None:
            broken.append(f"{call.path} has no function {call.function}")
        elif call.calls and call.calls not in _mentioned(node):
            broken.append(f"{call.path}: {call.function} does not mention {call.calls}")
    return broken


def table(root: Path) -> list[tuple[str, str]]:
    """Measure a repository; return the rows of the table, each a title and a value."""
    sources = read_sources(root)
    num_lines = sum(source.num_lines for source in sources)
    per_file = [source.num_lines for source in sources]
    lengths = [length for source in sources for length in function_lengths(source)]
    typed, parameters = map(sum, zip(*map(typed_parameters, sources), strict=True))
    tests = sum(len(f.read_text("utf-8").splitlines()) for f in (root / "tests").rglob("*.py"))
    documented = sum(1 for source in sources for _ in docstrings(source))
    num_fragments = sum(len(fragments(source)) for source in sources)
    num_empty = sum(len(empty_locals(source)) for source in sources)
    num_once = sum(len(helpers_used_once(source)) for source in sources)
    shared = shared_class_names(sources)
    (widest, width), *_ = folder_widths(sources).most_common(1)
    longest = sum(length > 100 for length in lengths)
    p90 = quantiles(per_file, n=10)[-1]
    way = {call.path for call in COMMAND_TO_LOSS}
    return [
        ("files / lines", f"{len(sources)} / {num_lines:,}"),
        ("file median / p90 / max", f"{median(per_file):.0f} / {p90:.0f} / {max(per_file)}"),
        (
            "function median / max, over 100 lines",
            f"{median(lengths):.0f} / {max(lengths)}, {longest}",
        ),
        ("typed parameters", f"{typed / parameters:.0%}"),
        ("test lines / source lines", f"{tests / num_lines:.2f}"),
        (
            "docstrings that open as fragments",
            f"{num_fragments / documented:.1%} of {documented:,}",
        ),
        ("empty locals per 1,000 lines", f"{1000 * num_empty / num_lines:.1f}"),
        ("private helpers used once per 1,000 lines", f"{1000 * num_once / num_lines:.1f}"),
        ("public class names that several classes share", f"{len(shared)}"),
        ("modules in the widest folder", f"{width} ({widest}/)"),
        ("README bytes", f"{(root / 'README.md').stat().st_size:,}"),
        ("calls from the command to the loss", f"{len(COMMAND_TO_LOSS) - 1} in {len(way)} files"),
    ]


def listing(what: str, sources: Sequence[Source]) -> list[str]:
    """List where the findings of one kind stand."""
    if what == "names":
        return [str(cls) for classes in shared_class_names(sources).values() for cls in classes]
    if what == "folders":
        return [f"{folder}/: {width}" for folder, width in folder_widths(sources).most_common()]
    if what == "calls":
        return [f"{call.path}: {call.function}" for call in COMMAND_TO_LOSS]
    return [str(finding) for source in sources for finding in FINDERS[what](source)]


FINDERS = {
    "fragments": fragments,
    "verbless": verbless,
    "locals": empty_locals,
    "helpers": helpers_used_once,
}
"""Rules that look at one file at a time, by the word for ``--list``."""
LISTS = (*FINDERS, "names", "folders", "calls")


def main() -> None:
    """Print the table, or the list that was asked for."""
    options = parser(__doc__ or "")
    options.add_argument("--list", choices=LISTS, help="print where these stand instead")
    options.add_argument("--root", type=Path, default=ROOT, help="another checkout to measure")
    arguments = options.parse_args()
    if arguments.list:
        print("\n".join(listing(arguments.list, read_sources(arguments.root))))
        return
    rows = table(arguments.root)
    broken = broken_calls(COMMAND_TO_LOSS, read_sources(arguments.root))
    show("The house", ["", "Keel"], [list(row) for row in rows], *broken)
    save(arguments.json, "house", arguments, dict(rows))


def _docstring(source: Source, literal: ast.Constant, kind: Kind, name: str) -> Docstring:
    return Docstring(
        path=source.path, line=literal.lineno, kind=kind, name=name, text=literal.value
    )


def _literal(statement: ast.stmt) -> ast.Constant | None:
    value = statement.value if isinstance(statement, ast.Expr) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return value if is_text and isinstance(value, ast.Constant) else None


def _kind(owner: Owner) -> Kind:
    if isinstance(owner, ast.Module):
        return "module"
    if isinstance(owner, ast.ClassDef):
        return "class"
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in owner.decorator_list}
    return "property" if decorators & {"property", "cached_property"} else "function"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    optional = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *optional]


def _functions(owner: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in owner.body:
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, prefix=f"{prefix}{node.name}.")


def _mentioned(node: Function) -> set[str]:
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    return names | {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}


if __name__ == "__main__":
    main()
