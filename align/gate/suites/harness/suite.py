"""A harness task as a suite of the gate: found in its folder, checked, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.gate import HarnessConfig, SuiteConfig
from align.gate.suites.harness.confined import ConfinedTask
from align.gate.suites.harness.documents import TaskProvider
from align.gate.suites.harness.loaded import LoadedTask
from align.gate.suites.harness.package import quietly, require_lm_eval
from align.gate.suites.harness.task import HarnessTask, build_task
from align.gate.suites.harness.task_file import (
    Function,
    TaskFile,
    changes_of,
    code_of,
    forbid_code,
    forbid_network,
    read_task_file,
)
from rollouts.errors import UserError, nearest

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

SHIPPED = Path(__file__).parent / "tasks"
"""Tasks that come with Keel; what code they run is ours."""


def load_harness(
    suite: SuiteConfig, where: str, encoder: PromptEncoder, context: int | None
) -> HarnessTask:
    """Load the suite's task with its items.

    Args:
        where: the suite in the campaign file.
        context: prompt plus completion that engines hold, in tokens.

    Raises:
        UserError: lm_eval is not installed, or the task is unknown, needs the network, runs code that was
            not allowed, has too few documents, or lacks the metric.
    """
    spec = suite.harness
    assert spec is not None, "the check of the kind"
    require_lm_eval(f"{where}.harness")
    changes = changes_of(spec, suite.max_tokens)
    file = read_task_file(find_task(spec, where), changes, f"{where}.harness.task")
    if spec.include_path is not None and not spec.allow_code:
        forbid_code(file, f"{where}.harness.allow_code")
    forbid_network(file, f"{where}.harness.task")
    _forbid_fetched_metrics(file, f"{where}.harness.task")
    task = _loaded(file, changes, spec, f"{where}.harness")
    return build_task(task, file, spec, suite.items, encoder, context, where)


def find_task(spec: HarnessConfig, where: str) -> Path:
    """Find the file of a task below ``include_path``."""
    from lm_eval.tasks import TaskManager

    folder = SHIPPED if spec.include_path is None else Path(spec.include_path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {spec.include_path!r}",
            where=f"{where}.harness.include_path",
            remedy="give the folder that holds the task's YAML file",
        )
    with quietly():
        index = TaskManager(include_path=str(folder), include_defaults=False).task_index
    entry = index.get(spec.task)
    if entry is None:
        raise UserError(
            f"{spec.include_path or 'Keel'} holds no task {spec.task!r}",
            where=f"{where}.harness.task",
            cause=_unreadable(folder),
            remedy=nearest(spec.task, sorted(index))
            if index
            else "give the folder of the task files",
        )
    if entry.kind.name in ("GROUP", "TAG") or entry.yaml_path is None:
        raise UserError(
            f"{spec.task!r} is a group of tasks, and a suite is one",
            where=f"{where}.harness.task",
            remedy="name one of its tasks, and make a suite of each that counts",
        )
    return Path(entry.yaml_path)


def _unreadable(folder: Path) -> str | None:
    """Name the first file that cannot be read; lm_eval passes over those."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            read_task_file(path, {}, str(folder))
        except UserError as error:
            return error.what
    return None


def _forbid_fetched_metrics(file: TaskFile, where: str) -> None:
    """Refuse metrics that lm_eval does not know, and would look up on the Hugging Face hub."""
    from lm_eval.api.registry import metric_registry

    if file.config.get("process_results"):
        return
    for metric in file.config.get("metric_list") or ():
        name = metric.get("metric")
        if isinstance(name, Function):
            continue
        if metric.get("hf_evaluate") or name not in metric_registry:
            raise UserError(
                f"the metric {name!r} is fetched from the network",
                where=where,
                cause=f"lm_eval has no such metric of its own; {file.path} names it",
                remedy=nearest(str(name), sorted(metric_registry)),
            )


def _loaded(
    file: TaskFile, changes: Mapping[str, Any], spec: HarnessConfig, where: str
) -> TaskProvider:
    """Load a task: here, or in a process of its own if its files run code that is not Keel's."""
    if spec.include_path is None or not code_of(file):
        return LoadedTask(file.path, changes, where)
    return ConfinedTask(file.path, changes, where, name=spec.task, deadline_s=spec.deadline_s)
