"""Environments of a round as a campaign file names them, and the limits that they run under."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from rewards.environments.cluster.code import TravellingCode
from rewards.imports import code_digest
from rewards.isolation.process import Plan
from rewards.isolation.sandbox import sandbox
from rollouts.pool.placement import Bundle, told
from rollouts.types import Prompt

SINGLE = ""
"""Name of an environment that has none, since it is the only one."""
COLUMN = "environment"
"""Column of a row that names its environment, where a campaign has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentLimits:
    """Limits of environments and of the processes that they live in."""

    call_s: float = 10.0
    """Seconds for one call of a tool."""
    episode_s: float = 120.0
    """Seconds for ``reset`` with the construction before it, and for ``get_reward``."""
    observation_chars: int = 8000
    """Characters of one result that a policy is shown."""
    isolation: Literal["process", "sandbox"] = "process"
    workers: int = 1
    """Processes that share the episodes; each has an own child for every episode."""
    memory_gib: float | None = 4.0
    """Address space of one process; None: no limit."""
    variables: tuple[str, ...] = ()
    """Names of environment variables that the processes see besides the harmless ones."""
    bundle: Bundle | None = None
    """Resources that each worker reserves on a node of the Ray cluster; None: workers are on this
    machine."""

    def line(self, name: str) -> str:
        """Describe the limits in the line that a run prints at its start."""
        words = [
            f"{self.workers} worker{'s' if self.workers > 1 else ''}",
            f"{self.call_s:g} s a call",
            f"{self.episode_s:g} s an episode",
            "any memory" if self.memory_gib is None else f"{self.memory_gib:g} GiB",
        ]
        if self.variables:
            words.append("sees " + ", ".join(self.variables))
        if self.bundle is not None:
            words.append(f"on nodes of the cluster, {told(self.bundle)} each")
        return f"environment {name}: {self.isolation} ({', '.join(words)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentsPlan:
    """Tools and environments of one round or suite."""

    tools: tuple[str, ...] = ()
    """Functions that every prompt has as tools: ``file.py:function`` or ``pkg.mod:function``."""
    environments: Mapping[str, str] = field(default_factory=dict)
    """Classes by the name that a row's column ``environment`` chooses one by; under `SINGLE` the only
    one."""
    limits: EnvironmentLimits = EnvironmentLimits()
    files: tuple[str, ...] = ()
    """Files and folders besides those of the code that it reads."""
    where: str = ""
    """Place in the campaign file, ``rounds.0``; empty: none."""
    code: TravellingCode | None = None
    """All files, where they were sent to this machine; None: names lead to files that are here."""

    @property
    def chooses(self) -> bool:
        """True if each row names its environment."""
        return bool(self.environments) and SINGLE not in self.environments

    def name_for(self, prompt: Prompt) -> str:
        """Return the name of the environment of a prompt."""
        return str(prompt.columns.get(COLUMN)) if self.chooses else SINGLE

    def row(self, prompt: Prompt) -> dict[str, Any]:
        """Return the keyword arguments of ``reset`` for a prompt: its whole row, as in TRL."""
        if prompt.messages is None:
            shown: Any = prompt.text
        else:
            shown = [dict(message) for message in prompt.messages]
        columns = {key: v for key, v in prompt.columns.items() if not self.chooses or key != COLUMN}
        return {"prompt": shown, **columns}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all functions and classes."""
        return (*self.tools, *self.environments.values())

    def place(self, key: str) -> str:
        """Return the place of a setting in the campaign file."""
        return f"{self.where}.{key}" if self.where else key

    def place_of(self, name: str) -> str:
        """Return the place of an environment in the campaign file."""
        return self.place(f"environment.{name}" if name else "environment")

    def worker_plan(self, *, describes: bool = False) -> Plan:
        """Return the plan of one worker.

        Args:
            describes: the worker reads signatures, with no limit on the memory of what it imports.

        Raises:
            UserError: this machine has no sandbox.
        """
        limits = self.limits
        root, folder = (None, Path.cwd()) if self.code is None else self.code.write()
        is_sandboxed = limits.isolation == "sandbox"
        shown = self.names if is_sandboxed else ()
        visible = [path for name in shown for path in sandbox.visible(name, folder)]
        visible += [os.path.abspath(folder / file) for file in self.files]
        return Plan(
            reward=", ".join(self.names),
            options={
                "tools": [[name, self.place(f"tools.{i}")] for i, name in enumerate(self.tools)],
                "environments": [
                    [name, target, self.place_of(name)]
                    for name, target in self.environments.items()
                ],
                "observation_chars": limits.observation_chars,
            },
            where=self.where or None,
            folder=str(folder),
            memory_gib=None if describes else limits.memory_gib,
            sample_deadline_s=None,
            environment=limits.variables,
            provider=sandbox.provider(self.place("episode")) if is_sandboxed else None,
            visible=tuple(dict.fromkeys(visible)) if is_sandboxed else (),
            serves="rewards.environments.worker:serve_environments",
            temporary=None if root is None else str(root),
        )

    def travelling(self) -> Self:
        """Return the plan of one worker on another machine, with all files.

        Raises:
            UserError: a file does not exist, or they are too large together.
        """

        def moved(name: str) -> str:
            file, colon, attribute = name.rpartition(":")
            return f"{os.path.relpath(file)}{colon}{attribute}" if file.endswith(".py") else name

        sources = [file for n in self.names if (file := n.rpartition(":")[0]).endswith(".py")]
        return replace(
            self,
            tools=tuple(map(moved, self.tools)),
            environments={name: moved(target) for name, target in self.environments.items()},
            limits=replace(self.limits, workers=1, bundle=None),
            files=tuple(map(os.path.relpath, self.files)),
            code=TravellingCode.read([*sources, *self.files], self.place("episode.files")),
        )

    def digest(self) -> str:
        """Return a hash of the names and of their code, which may change."""
        code = [code_digest(name) for name in self.names]
        names = (self.tools, dict(self.environments))
        words = repr((*names, self.limits, self.files, self.where, os.getcwd(), code))
        return hashlib.sha256(words.encode()).hexdigest()
