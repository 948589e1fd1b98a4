"""Rules on imports between packages, on heavy packages, and on the length of files and functions.

The map: launch -> align -> rewards -> rollouts. A failure names file:line and the rule. Read from
the syntax tree, so nothing is imported and a broken module is found too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

MAY_IMPORT: dict[str, set[str]] = {
    "rollouts": {"rollouts"},
    "rewards": {"rewards", "rollouts"},
    "align": {"align", "rewards", "rollouts"},
    "launch": {"launch", "align", "rewards", "rollouts"},
}
OURS = {*MAY_IMPORT, "configs", "tests", "benchmarks"}

LATE = {"vllm", "ray", "trl", "lm_eval", "peft", "datasets", "transformers"}
"""Imported inside functions only, so that `keel --help` answers at once."""

TORCH_AT_MODULE_LEVEL: set[str] = {
    "align/algorithms/divergences.py",
    "align/algorithms/micro_batch.py",
    "align/algorithms/outputs.py",
    "align/bank/bank.py",
    "align/bank/encoder.py",
    "align/bank/keys.py",
    "align/bank/mixing.py",
    "align/bank/router.py",
    "align/data/demo/base.py",
    "align/data/scenarios/base.py",
    "align/learner/bank/encoding.py",
    "align/learner/bank/policy_bank.py",
    "align/learner/bank/texts.py",
    "align/learner/batching.py",
    "align/learner/checkpoint.py",
    "align/learner/heads/critic.py",
    "align/learner/learner.py",
    "align/learner/sender.py",
    "align/learner/model/adapter.py",
    "align/learner/model/blend.py",
    "align/learner/model/linear.py",
    "align/learner/model/loading.py",
    "align/learner/model/low_rank.py",
    "align/learner/model/norm.py",
    "align/learner/model/policy.py",
    "align/learner/model/rotary.py",
    "align/learner/optimizer.py",
    "align/learner/attention.py",
    "align/learner/packing.py",
    "align/learner/quantized/moments.py",
    "align/learner/ranks/lanes.py",
    "align/learner/ranks/parts.py",
    "align/learner/ranks/sharding.py",
    "align/learner/references.py",
    "align/learner/heads/reward_model.py",
    "align/learner/teachers/moving_copy.py",
    "align/learner/training.py",
    "align/retention/adapters/inflora.py",
    "align/retention/adapters/o_lora.py",
    "align/retention/anchors/copr.py",
    "align/retention/anchors/following.py",
    "align/retention/anchors/kl_anchors.py",
    "align/retention/activations.py",
    "align/retention/artifact.py",
    "align/retention/bases.py",
    "align/retention/gradients/agem.py",
    "align/retention/gradients/directions.py",
    "align/retention/gradients/gpm.py",
    "align/retention/gradients/ogd.py",
    "align/retention/masks/migu.py",
    "align/retention/masks/mofo.py",
    "align/retention/mergers/base.py",
    "align/retention/mergers/dare.py",
    "align/retention/mergers/hma.py",
    "align/retention/mergers/lifealign.py",
    "align/retention/mergers/linear.py",
    "align/retention/mergers/merge.py",
    "align/retention/mergers/slerp.py",
    "align/retention/mergers/ties.py",
    "align/retention/mergers/warp.py",
    "align/retention/regularizers/cpo.py",
    "align/retention/regularizers/ewc.py",
    "align/retention/regularizers/fisher.py",
    "align/retention/regularizers/l2_sp.py",
    "align/retention/regularizers/mas.py",
    "align/retention/regularizers/quadratic.py",
    "align/retention/regularizers/si.py",
    "align/retention/samples.py",
    "align/retention/trust_region.py",
    "rollouts/engines/decoding/batch.py",
    "rollouts/engines/decoding/completions.py",
    "rollouts/engines/decoding/distribution.py",
    "rollouts/engines/decoding/gated.py",
    "rollouts/engines/decoding/reader.py",
    "rollouts/engines/decoding/weights.py",
}
"""The files that are only about tensors. What checks a campaign file imports none of them."""

NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Formats that run code when they are read."""

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One imported module, with where it happens."""

    module: str
    line: int
    late: bool
    """Inside a function, or for type checkers only: not run when the file is imported."""

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import below ``tree``; ``package`` resolves relative ones."""
    yield from _imports(tree, package, late=False)


def _imports(node: ast.AST, package: str, *, late: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module=alias.name, line=node.lineno, late=late)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield Import(module=module, line=node.lineno, late=late)
    elif isinstance(node, ast.If) and _is_type_checking(node.test):
        for child in node.body:
            yield from _imports(child, package, late=True)
        for child in node.orelse:
            yield from _imports(child, package, late=late)
    else:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, late=late or is_function)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def wrong_imports(path: str, source: str) -> list[str]:
    """``file:line: rule`` for each import that is forbidden in ``path``, relative to the root."""
    house = path.partition("/")[0]
    package = ".".join(path.split("/")[:-1])
    wrong = []
    for found in imports(ast.parse(source), package):
        if found.top in OURS and found.top not in MAY_IMPORT[house]:
            wrong.append(f"{path}:{found.line}: {house} may not import {found.top}")
        if found.top in LATE and not found.late:
            wrong.append(
                f"{path}:{found.line}: import {found.top} inside the function that uses it"
            )
        if found.top == "torch" and not found.late and path not in TORCH_AT_MODULE_LEVEL:
            wrong.append(f"{path}:{found.line}: import torch late, or list the file in this test")
        if found.top == "torch" and path == "rollouts/types.py":
            wrong.append(f"{path}:{found.line}: the carriers know no torch, not even as a type")
        if found.top in NEVER:
            wrong.append(f"{path}:{found.line}: {found.top} runs code when it reads a file")
    return wrong


def unsafe_loads(path: str, source: str) -> list[str]:
    """``torch.load`` without a literal ``weights_only=True``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"{path}:{call.lineno}: torch.load needs weights_only=True"
        for call in calls
        if ast.unparse(call.func) == "torch.load"
        and not any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in call.keywords
        )
    ]


def too_long(path: str, source: str) -> list[str]:
    """Files and functions over their limits, docstrings included."""
    wrong = []
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        wrong.append(f"{path}:1: {lines} lines, at most {MAX_FILE_LINES}: one noun per file")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
            continue
        if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
            wrong.append(
                f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
            )
    return wrong


def sources() -> list[tuple[str, str]]:
    """Path relative to the root, and text, of every Python file in the four packages."""
    files = [file for house in MAY_IMPORT for file in sorted((ROOT / house).rglob("*.py"))]
    return [(file.relative_to(ROOT).as_posix(), file.read_text()) for file in files]


def test_imports_follow_the_map() -> None:
    wrong = [line for path, source in sources() for line in wrong_imports(path, source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_command_line_imports_nothing_heavy() -> None:
    """The rule above is about single files; this one is about what they come to together."""
    code = "import sys, launch.cli, align.config.campaign; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(run.stdout.split()) & {*LATE, "torch"}


def test_torch_load_is_safe() -> None:
    wrong = [line for path, source in sources() for line in unsafe_loads(path, source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_files_and_functions_are_short() -> None:
    wrong = [line for path, source in sources() for line in too_long(path, source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_listed_torch_files_exist_and_import_torch() -> None:
    """A file that no longer needs its exemption loses it."""
    texts = dict(sources())
    for path in TORCH_AT_MODULE_LEVEL:
        found = imports(ast.parse(texts[path]), "")
        assert any(one.top == "torch" and not one.late for one in found), path


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("rollouts/pool/pool.py", "import os\nfrom rewards.base import X", ":2: rollouts may not"),
        (
            "rewards/library/text.py",
            "def f():\n    import align.config.campaign",
            ":2: rewards may not",
        ),
        ("align/a.py", "from tests.unit import x", ":1: align may not import tests"),
        ("launch/cli.py", "import configs", ":1: launch may not import configs"),
        ("align/a.py", "import ray.actor", ":1: import ray in"),
        ("align/a.py", "try:\n    import vllm\nexcept ImportError:\n    pass", ":2: import vllm"),
        ("align/a.py", "class A:\n    import trl", ":2: import trl in"),
        ("align/a.py", "from torch import Tensor", ":1: import torch late"),
        ("rollouts/types.py", "if TYPE_CHECKING:\n    import torch", ":2: the carriers"),
        ("rewards/a.py", "def f():\n    import pickle", ":2: pickle runs code"),
        ("rollouts/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import ray", ":4: import ray"),
    ],
)
def test_a_wrong_import_is_named(path: str, source: str, rule: str) -> None:
    assert [line for line in wrong_imports(path, source) if line.startswith(path + rule)]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("launch/cli.py", "from align.campaign import run\nimport rewards, rollouts.types"),
        ("align/a.py", "def f():\n    import ray, torch\n    from trl import X"),
        ("rewards/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("rewards/sandbox/a.py", "from . import limits\nfrom ..base import Score"),
        ("rewards/a.py", "import raytracer, aligned"),
    ],
)
def test_a_right_import_passes(path: str, source: str) -> None:
    assert wrong_imports(path, source) == []


def test_torch_load_is_only_safe_with_a_literal() -> None:
    assert unsafe_loads("a.py", "torch.load(f)\ntorch.load(f, weights_only=x)") == [
        "a.py:1: torch.load needs weights_only=True",
        "a.py:2: torch.load needs weights_only=True",
    ]
    assert unsafe_loads("a.py", "torch.load(f, weights_only=True)") == []


def test_lengths_are_counted_to_the_line() -> None:
    fits = "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert too_long("a.py", fits) == []
    assert too_long("a.py", fits + "    x = 1\n") == ["a.py:1: f has 61 lines, at most 60"]
    assert too_long("a.py", "x = 1\n" * MAX_FILE_LINES) == []
    assert len(too_long("a.py", "x = 1\n" * (MAX_FILE_LINES + 1))) == 1
