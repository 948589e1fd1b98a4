"""One named part of a rubric, as a campaign file says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from align.settings import FunctionPath, InputPath, Name, OptionPaths, Settings, without_unset
from rewards.library.corpus.names import CORPUS_METRICS
from rewards.normalise import COMPARING, Normalise


class RewardGate(Settings):
    """Bar that a part sets before the other parts of the rubric count."""

    at_least: Annotated[float, Field(allow_inf_nan=False)]
    """Least raw value that passes. A part that abstains holds nothing back."""
    otherwise: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Value of a completion that does not pass, in place of the whole sum: no more than the worst that
    passes can get, which is below 0 where parts are z-scores."""


class RewardConfig(Settings):
    """One named part of a rubric."""

    name: FunctionPath
    """Registry name, ``pkg.mod:function`` or ``file.py:function``."""
    weight: float = 1.0
    """Factor in the sum; 0 for a part that is only watched, or only a gate."""
    normalise: Normalise = "none"
    """Change of its values before they are summed, within the completions of one prompt: ``zscore``
    (mean 0, standard deviation 1), ``rank`` (0 for the worst to 1 for the best), ``clip`` to
    ``bounds``. Logged is the raw value. Suites have one completion to a prompt and only clip."""
    bounds: tuple[float, float] | None = None
    """Bounds for ``clip``: least and largest value, in units of the reward."""
    gate: RewardGate | None = None
    """Bar that must be passed before the other parts count; several are asked in order."""
    part: Name | None = None
    """Name in the metrics; None takes the function's own name."""
    options: OptionPaths = Field(default_factory=dict)
    """Keyword arguments passed to the function at every call."""
    isolation: Literal["auto", "inline", "process", "sandbox"] = "auto"
    """``inline``: in this process, trusted, without deadlines. ``process``: in worker processes without
    tokens. ``sandbox``: those without network and files, for a reward that runs the model's code.
    ``auto``: what a shipped reward needs (``keel reward show``), process for all others."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds for one batch, repeats included; about twice what a batch takes. None: 120."""
    sample_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds for one sample: the function is then called with one at a time. None: only the batch has
    a deadline."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that share a batch, cut between groups. None: 1."""
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=True)] | None = None
    """Address space of one process; ``.inf`` where a GPU is used. None: 4."""
    environment: tuple[str, ...] = ()
    """Names of environment variables its processes may see, such as the key of a judge."""
    files: tuple[InputPath, ...] = ()
    """Files and folders that its ``sandbox`` may read besides its code and what that imports."""
    user: Name | None = None
    """User that its processes become where Keel runs as root; ``root``: none. None: ``nobody`` for code
    that does not ship with Keel, where that user can read it."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave settings out where there are none: stores that are older have no such keys."""
        return without_unset(dump(self), ("files", "user"))

    @model_validator(mode="after")
    def _deadlines(self) -> Self:
        most, per_sample = self.deadline_s, self.sample_deadline_s
        if most is not None and per_sample is not None and per_sample > most:
            raise ValueError(
                f"sample_deadline_s {per_sample:g} is longer than deadline_s {most:g}; "
                "raise deadline_s, which is for the whole batch"
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if (self.normalise == "clip") != (self.bounds is not None):
            raise ValueError(
                f"bounds belong to normalise: clip, got normalise: {self.normalise} and "
                f"{'no bounds' if self.bounds is None else f'bounds {list(self.bounds)}'}; set both or "
                "neither"
            )
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(
                f"bounds go from the least to the largest value, got {list(self.bounds)}; swap them"
            )
        return self

    @property
    def is_corpus(self) -> bool:
        """True if a suite's value by this part alone is that of all answers together, and no mean."""
        return self.name in CORPUS_METRICS and self.weight == 1.0 and not self.shape

    @property
    def absolute(self) -> RewardConfig:
        """The same part where a completion has no others to be compared with."""
        if self.normalise not in COMPARING:
            return self
        return self.model_copy(update={"normalise": "none"})

    @property
    def shape(self) -> dict[str, Any]:
        """Settings by which `absolute` changes a value besides weighing it; empty for most."""
        return self.absolute.model_dump(
            mode="json", include={"normalise", "bounds", "gate"}, exclude_defaults=True
        )


def check_rewards(rewards: Sequence[RewardConfig], group_size: int, *, by_part: bool) -> None:
    """Raise ValueError (rule, value, remedy) where a round cannot use its parts as they are."""
    for reward in rewards:
        if reward.normalise in COMPARING and group_size < 2:
            raise ValueError(
                f"normalise: {reward.normalise} of {reward.name!r} compares completions of one prompt, "
                f"got group_size {group_size}; use at least 2, or normalise: clip"
            )
        if reward.gate is not None and by_part:
            raise ValueError(
                f"{reward.name!r} has a gate, which gives a completion one value, and algorithm.by_part "
                "has no use for one; set by_part to false, or remove the gate"
            )


Reward = Annotated[
    RewardConfig,
    BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) or callable(value) else value
    ),
]
