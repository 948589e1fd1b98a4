"""Training by another program, which reads the parent's folder and writes a model.

The program's model is checked as a base model is, published as a snapshot, measured on every suite and
judged like the candidate of any other round; see `align.round.external`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import Algorithm
from rollouts.errors import UserError, nearest

PLACES = ("parent", "base", "round", "output", "prompts", "seed")
"""Names that a command may use, as ``{parent}`` or as the variable ``KEEL_PARENT``."""
PYTHON = ("python", "python3")
"""Programs that stand for the interpreter that Keel runs in."""
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}")


class External(Algorithm):
    """Training by a command: it starts from ``{parent}`` and writes a whole model, or the policy's kind of
    adapter, into ``{output}``."""

    name: Literal["external"] = "external"
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments, run without a shell in the campaign file's folder. ``{parent}`` and ``{base}``
    are model folders to read, ``{output}`` is an empty folder to write, ``{round}`` is kept between
    attempts, ``{prompts}`` is a JSONL file of the round's prompts, ``{seed}`` a number. Each is also a
    variable, such as KEEL_PARENT. ``{{`` and ``}}`` are braces."""
    environment: tuple[str, ...] = ()
    """Names of variables that the command may see besides the usual ones; secrets are not among those."""
    deadline_s: Annotated[float, Field(gt=0)] = 86400.0
    """Seconds that the command may take. After them it is killed with all processes that it started, and
    the round fails."""

    needs_rewards: ClassVar[bool] = False
    learns_here: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, str]] = {
        "importance": "the command trains in its own way",
        "optimizer": "the command trains in its own way",
        "anchors": "Keel does not see the command's loss; the gate still measures what it forgot",
        "retention": "Keel does not see the command's loss; the gate still measures what it forgot",
        "gold": "the round samples nothing that could be scored",
        "hacking": "Keel does not see the command's samples",
        "repair": "the ladder repairs what the learner trained",
        "merge": "the command writes the candidate itself, and may merge it with {parent}",
        "meter_every": "its drift is not measured while it trains",
        "checkpoint_every": "the command keeps its own checkpoints, in {round}",
    }

    @model_validator(mode="after")
    def _known_places(self) -> Self:
        for text in self.command:
            for match in _PLACEHOLDER.finditer(text):
                if match[1] and match[1] not in PLACES:
                    raise ValueError(
                        f"command has the unknown placeholder {match[0]}; {nearest(match[1], PLACES)}; "
                        f"write {{{{{match[1]}}}}} for the word in braces"
                    )
        return self

    def filled(self, places: Mapping[str, str]) -> list[str]:
        """Return the command with every placeholder filled in.

        >>> External(command=("a", "--to={output}", "{{x}}")).filled({"output": "o"})
        ['a', '--to=o', '{x}']
        """

        def fill(match: re.Match[str]) -> str:
            return places[match[1]] if match[1] else match[0][0]

        return [_PLACEHOLDER.sub(fill, argument) for argument in self.command]

    def check_here(self, folder: Path, where: str) -> None:
        """Raise `UserError` unless the program is on this machine.

        Args:
            folder: folder that the command runs in.
            where: path of the algorithm's settings in the campaign file.
        """
        program = self.command[0]
        if _PLACEHOLDER.search(program) or program in PYTHON:
            return
        beside = folder / program
        if shutil.which(program) is None and not ("/" in program and beside.is_file()):
            raise UserError(
                f"there is no program {program!r}",
                where=f"{where}.command",
                cause="it is not on the PATH, and no file of that name lies below the campaign's folder",
                remedy="install it, or write its path",
            )
