"""Settings of the draws that choose which prompts of earlier rounds a step replays."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from align.settings import Settings, settings_from

Floor = Annotated[float, Field(ge=0, le=1)]


class DrawConfig(Settings):
    """Base of the settings of draws."""

    name: str
    """Name of the draw."""

    keeps_history: ClassVar[bool] = False
    """True if the draw depends on when prompts were answered before, and how well."""
    reads_scores: ClassVar[bool] = False
    """True if replayed samples are scored for the draw, by the rewards of the rounds they belong to."""


class BalancedConfig(DrawConfig):
    """Every earlier round gets the same share, and its stored prompts come up in turn."""

    name: Literal["balanced"] = "balanced"


class ReservoirConfig(DrawConfig):
    """One evenly drawn sample of a fixed size over the stored prompts of all earlier rounds."""

    name: Literal["reservoir"] = "reservoir"
    size: Annotated[int, Field(ge=1)] = 512
    """Number of prompts in the reservoir, over all rounds."""


class MasteryConfig(DrawConfig):
    """Prompts that are answered less well, and were not seen for long, come up more often."""

    name: Literal["mastery"] = "mastery"
    floor: Floor = 0.1
    """Share of the draw that is uniform over all stored prompts; 0 may drop what is mastered for good."""
    recent: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of a step's score in a prompt's running success; 1 keeps only the last score."""

    keeps_history: ClassVar[bool] = True
    reads_scores: ClassVar[bool] = True


class AgeConfig(DrawConfig):
    """Prompts come up more often the longer ago they were answered."""

    name: Literal["age"] = "age"
    floor: Floor = 0.1
    """Share of the draw that is uniform over all stored prompts."""

    keeps_history: ClassVar[bool] = True


DRAWS: dict[str, type[DrawConfig]] = {
    "balanced": BalancedConfig,
    "reservoir": ReservoirConfig,
    "mastery": MasteryConfig,
    "age": AgeConfig,
}
"""Settings of each draw by name; `align.data.replay.draws.DRAWS` has the draws themselves."""


def draw_from(value: Any) -> Any:
    """Return the settings of a draw, see `settings_from`."""
    return settings_from(value, DRAWS, "draw")


Draw = Annotated[
    BalancedConfig | ReservoirConfig | MasteryConfig | AgeConfig, BeforeValidator(draw_from)
]
