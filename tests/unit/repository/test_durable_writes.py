"""Files of a store are written by `align.store.durable`; every other writer is listed with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from benchmarks.house import ROOT, Source, read_sources

DURABLE = "align/store/durable.py"
OS_CALLS = {"rename", "renames", "replace", "link", "truncate", "copy", "move"}
METHODS = {"write_text", "write_bytes", "rename", "hardlink_to"}
"""Methods of paths that write or name a file."""
FUNCTIONS = {"save_file", "write_table", "savez", "to_parquet", "copyfile", "copytree", "copy2"}
"""Functions of libraries that write a file, by names that nothing else here has."""
CREATES = {"O_CREAT", "O_WRONLY", "O_RDWR"}

STAGED = "the folder is brought to the disk before it gets its name"
REPLACING = "the file gets its name from `durable.replacing`"
LOCK = "a lock has no content"
REMADE = "it is made again, or compared, before anything reads it"
TEMPORARY = "its folder is one of temporary files"
LOG = "what a process prints or a step measured; a line that was cut short is left out"
OUTPUT = "a person asked for it, beside no store"
KERNEL = "the file is the kernel's"
ALLOWED = {
    "align/bank/bank.py:Bank.write": STAGED,
    "align/bank/bank.py:write_keys": STAGED,
    "align/data/demo/base.py:build": OUTPUT,
    "align/data/demo/smollm.py:convert_smollm": OUTPUT,
    "align/data/retrieval/index.py:DocumentIndex.write": STAGED,
    "align/data/scenarios/folder.py:write": OUTPUT,
    "align/data/scenarios/folder.py:write_files": OUTPUT,
    "align/gate/measurement/results.py:ItemResults.save": REPLACING,
    "align/learner/checkpoint.py:save_checkpoint": STAGED,
    "align/learner/heads/critic.py:Critic.save": REPLACING,
    "align/learner/model/adapter.py:save_adapter": STAGED,
    "align/learner/model/loading.py:state_precision": STAGED,
    "align/learner/ranks/file_transfer.py:FileTransfer._collect_file": STAGED,
    "align/learner/ranks/group.py:LearnerGroup._launch": "the file only shows who sees this disk",
    "align/learner/ranks/node_folder.py:NodeFolder.append": TEMPORARY,
    "align/learner/ranks/parts.py:write_parts": STAGED,
    "align/learner/ranks/parts.py:_write_index": STAGED,
    "align/learner/training.py:Training.write_artifacts": "one without a hash on record is not read, "
    "and the record brings it to the disk first",
    "align/report/export/answering.py:write_generation_config": STAGED,
    "align/report/export/answering.py:write_answering": STAGED,
    "align/report/export/export.py:_write": STAGED,
    "align/report/export/export.py:_write_copy": STAGED,
    "align/report/forecast/prediction.py:_write_holes": TEMPORARY,
    "align/round/external/process.py:run_command": LOG,
    "align/round/external/round.py:train": REMADE,
    "align/round/external/round.py:publish.write": STAGED,
    "align/round/rollout_table.py:save_records": "the table is a buffer, which `write_atomic` writes",
    "align/round/session.py:Session.write_step": LOG,
    "align/schedule/inbox/drop.py:alone": LOCK,
    "align/store/backups/ledger_backups.py:_private": "the empty file is one that SQLite fills; the copy "
    "is brought to the disk before it gets its name",
    "align/store/backups/restore.py:_move": "both folders are brought to the disk; "
    "`durable.replace` does not move to another disk",
    "align/store/backups/whole.py:_copy_listed": STAGED,
    "align/store/backups/whole.py:_copy": REPLACING,
    "align/store/snapshots/contained.py:copy_contained": STAGED,
    "align/store/snapshots/packed.py:pack": STAGED,
    "align/store/snapshots/packed.py:unpack": STAGED,
    "align/store/snapshots/published.py:fetch": STAGED,
    "align/store/snapshots/snapshots.py:SnapshotStore.publish": STAGED,
    "align/store/snapshots/snapshots.py:SnapshotStore._install": "a folder that is there must not be "
    "replaced; its files and both folders are brought to the disk",
    "align/store/snapshots/snapshots.py:_copy_files": STAGED,
    "align/store/snapshots/staging.py:_locked": LOCK,
    "align/store/snapshots/staging.py:_cleared": LOCK,
    "launch/cluster/cluster.py:_write_once": "Ray's token belongs to a user and to no store",
    "launch/feedback/token.py:_make": "a token that is there must not be replaced; it and its folder are "
    "brought to the disk",
    "align/store/database/private.py:close_to_others": "the empty file is one that SQLite fills",
    "launch/serving/server_files.py:_in_use": LOCK,
    "launch/starter.py:write_campaign": OUTPUT,
    "rewards/environments/cluster/code.py:TravellingCode.write": TEMPORARY,
    "rewards/isolation/sandbox/limits.py:end_first": KERNEL,
    "rewards/isolation/sandbox/namespaces.py:_map_ids": KERNEL,
    "rewards/library/code/candidate.py:run_program": TEMPORARY,
    "rewards/signatures/given.py:GivenCode.save": REMADE,
    "rewards/signatures/skeleton.py:write_skeleton": OUTPUT,
    "rollouts/episodes/parsers/vllm_worker.py:main": "its file is a pipe",
    "rollouts/engines/vllm_bank.py:write_increment": TEMPORARY,
}
"""Functions that write a file past `align.store.durable`, and why a power cut takes nothing of theirs."""


def writers(source: Source) -> Iterator[tuple[str, int]]:
    """Yield each call that writes or names a file: its function as ``file:name``, and its line."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil")
        for alias in node.names
    }

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call) and _writes(node, imported):
            yield f"{source.path}:{name}", node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child, name)

    yield from walk(source.tree, "")


def _writes(call: ast.Call, imported: set[str]) -> bool:
    name, owner = _called(call)
    if (owner, name) == ("os", "open"):
        flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        return bool(flags & CREATES)
    if name in ("open", "fdopen"):
        return any(set(mode) & {*"wax+"} for mode in _modes(call))
    if owner in ("os", "shutil") or (not owner and name in imported):
        return name in OS_CALLS | FUNCTIONS
    if owner == "durable":
        return False
    if name == "replace":  # Of a path; that of a text has two arguments, that of a time names them.
        return owner != "" and len(call.args) == 1 and not call.keywords
    return (name in METHODS and bool(call.args)) or name in FUNCTIONS


def _called(call: ast.Call) -> tuple[str, str]:
    """Return the name of what is called, and of what it belongs to; empty for a plain name."""
    if isinstance(call.func, ast.Name):
        return call.func.id, ""
    if not isinstance(call.func, ast.Attribute):
        return "", ""
    owner = call.func.value
    return call.func.attr, owner.id if isinstance(owner, ast.Name) else "?"


def _modes(call: ast.Call) -> Iterator[str]:
    """Yield the arguments of a call that can be a mode to open a file in."""
    for value in (*call.args, *(keyword.value for keyword in call.keywords)):
        text = value.value if isinstance(value, ast.Constant) else None
        if isinstance(text, str) and text and not set(text) - {*"rwaxbt+"}:
            yield text


def test_files_of_a_store_are_written_durably() -> None:
    sources = [source for source in read_sources(ROOT) if source.path != DURABLE]
    lines = [(name, line) for source in sources for name, line in writers(source)]
    wrong = [f"{name} (line {line})" for name, line in lines if name not in ALLOWED]
    assert not wrong, "write with align.store.durable, or add a reason:\n" + "\n".join(wrong)
    assert not (stale := ALLOWED.keys() - {name for name, _ in lines}), stale


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.replace(a, b)",
        "from os import rename\nrename(a, b)",
        "staged.replace(path)",
        "staged.rename(path)",
        "path.write_text('x')",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('x', encoding='utf-8')",
        "os.fdopen(descriptor, 'wb')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "shutil.copy(a, b)",
        "save_file(tensors, path)",
        "pq.write_table(table, path)",
    ],
)
def test_a_writer_is_found_however_it_writes(code: str) -> None:
    assert [name for name, _ in writers(Source.parse("a.py", code))] == ["a.py:"]


@pytest.mark.parametrize(
    "code",
    [
        "text.replace('a', 'b')",
        "replace(record, step=1)",
        "now.replace(tzinfo=UTC)",
        "open(path)",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "frame.rename(columns=names)",
        "snapshots.open(name)",
        "write_atomic(path, content)",
        "durable.replace(staged, path)",
        "values.copy()",
    ],
)
def test_what_writes_no_file_is_left_alone(code: str) -> None:
    assert not [*writers(Source.parse("a.py", code))]


def test_a_function_is_named_with_its_class() -> None:
    code = "class A:\n    def save(self):\n        self.path.write_bytes(b'')"
    assert [*writers(Source.parse("a.py", code))] == [("a.py:A.save", 3)]
