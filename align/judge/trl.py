"""`JudgeCallback`: judges the checkpoints of a run of TRL or transformers while it goes on.

    from align.judge.trl import JudgeCallback

    trainer = SFTTrainer(..., callbacks=[JudgeCallback(against="base-model", suites="suites.yaml")])

Each checkpoint that the trainer saves is judged as ``keel judge`` does, in a process of its own: sampler
and trainer never share one. The verdict lies in the checkpoint as ``keel-verdict.json`` and in the
trainer's log history.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from align.store.durable import write_atomic
from rollouts.errors import KeelError, RunError, UserError
from rollouts.machine.variables import passed_on

logger = logging.getLogger(__name__)

VERDICT = "keel-verdict.json"
"""File in a checkpoint with the judgement, as ``keel judge --json`` prints it."""
COMMAND = (sys.executable, "-c", "from launch.cli import main; main()")
"""The command line of this installation of Keel."""
JUDGED = (0, 1, 3)
"""Exit codes of a judgement; any other is an error."""
LOST = ("rejected", "void")
"""Outcomes of a candidate that lost something."""

JudgeCheckpoint = Callable[[Path], Mapping[str, Any]]
"""Judges the model in a folder; returns what ``keel judge --json`` prints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeProcess:
    """``keel judge`` in a process of its own."""

    against: str
    suites: str | Path
    options: Sequence[str] = ()
    """Further words of the command line, such as ``("--cache", "judged")``."""
    environment: Sequence[str] = ()
    """Names of variables granted besides those without secrets, such as the key of a judge."""

    def command(self, candidate: str, *more: str) -> list[str]:
        """Return the command for one candidate."""
        words = ("judge", candidate, "--against", self.against, "--suites", str(self.suites))
        return [*COMMAND, *words, *self.options, *more]

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        """Judge a folder.

        Raises:
            UserError: the suites, the incumbent or the folder cannot be used.
            RunError: the judgement failed.
        """
        done = self._run(self.command(str(folder), "--json"))
        if done.returncode in JUDGED and done.stdout.strip():
            judgement: dict[str, Any] = json.loads(done.stdout)
            return judgement
        raise self._error(done, str(folder))

    def check(self) -> None:
        """Check suites and incumbent against itself, so that a run does not train for nothing.

        Raises:
            UserError: they cannot be used.
        """
        done = self._run(self.command(self.against, "--dry-run"))
        if done.returncode != 0:
            raise self._error(done, self.against)

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        # A trainer's own launcher would make the judge one of its ranks.
        variables = {k: v for k, v in os.environ.items() if k not in RANKS}
        granted = passed_on(variables, self.environment)
        return subprocess.run(command, capture_output=True, text=True, env=granted, check=False)

    def _error(self, done: subprocess.CompletedProcess[str], what: str) -> RunError | UserError:
        stderr = done.stderr.strip()[-2000:]
        kind = UserError if done.returncode == UserError.exit_code else RunError
        return kind(f"keel judge could not judge {what}", cause=stderr or None)


RANKS = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "GROUP_RANK",
    }
)
"""Variables with which a launcher tells a process that it is one of several."""


def __getattr__(name: str) -> Any:
    """Make `JudgeCallback` when it is asked for: its base class is transformers' own."""
    if name == "JudgeCallback":
        return callback_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CheckpointJudge:
    """Judges every checkpoint that a trainer saves.

    Args:
        against: the incumbent, named as for ``keel judge``.
        suites: file of suites and gate.
        every: judge every so many checkpoints.
        stop: outcome that ends the training. ``rejected``: a checkpoint lost something; ``accepted``:
            one passed; None: it goes on whatever the verdict.
        options: further words of the command line.
        environment: names of variables that the judgement sees besides those without secrets.
        judge: judges a folder, in place of ``keel judge``.

    Attributes:
        judgements: by step, what ``keel judge --json`` said.
        failed: by step, why a checkpoint could not be judged.
        best: folder of the last accepted checkpoint; None: none was.
    """

    def __init__(
        self,
        against: str = "",
        suites: str | Path = "",
        *,
        every: int = 1,
        stop: Literal["rejected", "accepted"] | None = None,
        options: Sequence[str] = (),
        environment: Sequence[str] = (),
        judge: JudgeCheckpoint | None = None,
    ) -> None:
        if every < 1:
            raise UserError(f"every is {every}", where="every", remedy="give 1 or more")
        if judge is None:
            judge = JudgeProcess(
                against=str(against), suites=suites, options=options, environment=environment
            )
        self.judge, self.every, self.stop = judge, every, stop
        self.judgements: dict[int, Mapping[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self.best: Path | None = None
        self._saved = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check suites and incumbent before the first step."""
        if state.is_world_process_zero and isinstance(self.judge, JudgeProcess):
            self.judge.check()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge the checkpoint that was just written."""
        self._saved += 1
        if not state.is_world_process_zero or self._saved % self.every:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            judgement = self.judge(folder)
        except KeelError as error:
            # Suites and incumbent were fine when the training began: it is not ended for this.
            logger.warning("step %d was not judged: %s", state.global_step, error)
            self.failed[state.global_step] = str(error)
            return
        write_atomic(folder / VERDICT, (json.dumps(judgement, indent=2) + "\n").encode())
        self.judgements[state.global_step] = judgement
        if judgement["accepted"]:
            self.best = folder
        state.log_history.append({"step": state.global_step, **metrics_of(judgement)})
        ends = {"rejected": judgement["outcome"] in LOST, "accepted": judgement["accepted"]}
        if self.stop is not None and ends[self.stop]:
            control.should_training_stop = True


@cache
def callback_class() -> Any:
    """Return the class of the callback."""
    from transformers import TrainerCallback

    class JudgeCallback(CheckpointJudge, TrainerCallback):
        __doc__ = CheckpointJudge.__doc__

    return JudgeCallback


def metrics_of(judgement: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a judgement by name, for a trainer's log.

    >>> metrics_of({"accepted": True, "suites": [{"suite": "s", "candidate": 0.5, "incumbent": 0.4}]})
    {'judge/accepted': 1.0, 'judge/s': 0.5, 'judge/s/change': 0.1}
    """
    numbers = {"judge/accepted": float(judgement["accepted"])}
    for suite in judgement["suites"]:
        name = f"judge/{suite['suite']}"
        numbers[name] = suite["candidate"]
        numbers[f"{name}/change"] = round(suite["candidate"] - suite["incumbent"], 9)
    return numbers
