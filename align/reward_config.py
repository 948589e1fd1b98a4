"""One named part of a rubric, as a campaign file says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from align.settings import Name, Settings


def _named(value: Any) -> Any:
    """``exact_match`` is short for ``{name: exact_match}``."""
    return {"name": value} if isinstance(value, str) else value


class RewardConfig(Settings):
    """One named part of a rubric."""

    name: str
    """Registry name, ``pkg.mod:function`` or ``file.py:function``."""
    weight: float = 1.0
    """Factor in the sum."""
    part: Name | None = None
    """Name in the metrics; None takes the function's own name."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments passed to the function at every call."""
    isolation: Literal["auto", "inline", "process", "sandbox"] = "auto"
    """``inline``: in this process, trusted, without deadlines. ``process``: in worker processes without
    tokens. ``sandbox``: those without network and files, for a reward that runs the model's code.
    ``auto``: inline for Keel's own rewards, sandbox for ``code_tests``, process for all others."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For one batch, repeats included; about twice what a batch takes. None: 120."""
    sample_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For one sample: the function is then called with one at a time. None: only the batch has one."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that share a batch, cut between groups. None: 1."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Address space of one process; ``.inf`` where a GPU is used. None: 4."""
    environment: tuple[str, ...] = ()
    """Names of environment variables its processes may see, such as the key of a judge."""

    @model_validator(mode="after")
    def _deadlines(self) -> Self:
        most, one = self.deadline_s, self.sample_deadline_s
        if most is not None and one is not None and one > most:
            raise ValueError(
                f"sample_deadline_s {one:g} is longer than deadline_s {most:g}; "
                "raise deadline_s, which is for the whole batch"
            )
        return self


Reward = Annotated[RewardConfig, BeforeValidator(_named)]
