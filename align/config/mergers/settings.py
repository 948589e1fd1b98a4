"""Settings of each merger, and what a round with it costs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from align.settings import Name, Settings
from rollouts.errors import closest

ROUND = "round:"
"""Prefix of a setting that names the snapshot of an accepted round."""


def _one_or_many(value: Any) -> Any:
    """Accept a single share for a list of one."""
    return [value] if isinstance(value, int | float) else value


Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[
    tuple[Share, ...], Field(min_length=1, max_length=8), BeforeValidator(_one_or_many)
]


class MergeConfig(Settings):
    """Merger of a round's trained weights with earlier ones; the result is the round's candidate."""

    name: str
    """Registered name of the merger."""

    reads_base: ClassVar[bool] = False
    """True if the base's weights are merged too."""

    @property
    def fitted_answers(self) -> int:
        """Number of answers of the trained policy that the merge is fitted to; 0 if it is not fitted."""
        return 0

    @property
    def block_shares(self) -> tuple[float, ...]:
        """Stated share of each block of layers; empty if there are none, or they are fitted."""
        return ()

    @property
    def points(self) -> tuple[float | None, ...]:
        """Shares in the order in which they are judged; a merger without a share has the one point None."""
        return (None,)

    @property
    def num_runs(self) -> int:
        """Number of times that the round is trained."""
        return 1

    @property
    def num_snapshots(self) -> int:
        """Largest number of snapshots that the round writes: of its runs, and of the points judged."""
        return self.num_runs + len(self.points)

    @property
    def anchor(self) -> str:
        """Snapshot that the trained weights are merged with: ``parent``, ``base`` or ``round:NAME``."""
        return "parent"

    @property
    def rounds_read(self) -> tuple[Name, ...] | Literal["all", "none"]:
        """Accepted rounds whose changes are merged with the new one's."""
        return "none"

    def named_rounds(self) -> tuple[str, ...]:
        """List the rounds that the settings name."""
        rounds = self.rounds_read if isinstance(self.rounds_read, tuple) else ()
        if self.anchor.startswith(ROUND):
            return (self.anchor.removeprefix(ROUND), *rounds)
        return rounds


class _TowardConfig(MergeConfig):
    """Merger with one earlier snapshot."""

    to: str = "parent"
    """Snapshot that the trained weights are merged with: ``parent``, ``base`` or ``round:NAME``."""

    @property
    def anchor(self) -> str:
        return self.to

    @field_validator("to")
    @classmethod
    def _is_snapshot(cls, to: str) -> str:
        if to in ("parent", "base") or to.startswith(ROUND):
            return to
        near = closest(to, ["parent", "base"])
        meant = f"did you mean {near!r}?" if near else f"if {to!r} is a round, write round:{to}"
        raise ValueError(f"expected parent, base or round:NAME, got {to!r}; {meant}")


class LinearMergeConfig(_TowardConfig):
    """Straight line between two snapshots, with a search along it."""

    name: Literal["linear"] = "linear"
    shares: Shares = (1.0, 0.8, 0.6, 0.4)
    """Shares of the way from ``to`` to the trained weights, or one. They are judged in this order, each as
    a decision of its own, until one passes the gate; those that a decision has ruled out are passed over.
    With 1 the candidate is what was trained."""

    @property
    def points(self) -> tuple[float, ...]:
        return self.shares

    @field_validator("shares")
    @classmethod
    def _differ(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        return _differing("shares", shares)


class SlerpMergeConfig(_TowardConfig):
    """Great arc between the changes that two snapshots made to the base."""

    name: Literal["slerp"] = "slerp"
    share: Shares = (0.5,)
    """Share of the way from ``to`` to the trained weights; a list is searched as ``shares`` of linear."""

    reads_base: ClassVar[bool] = True

    @property
    def points(self) -> tuple[float, ...]:
        return self.share

    @field_validator("share")
    @classmethod
    def _differ(cls, share: tuple[float, ...]) -> tuple[float, ...]:
        return _differing("share", share)


class WarpMergeConfig(MergeConfig):
    """Several runs of the round from its parent, merged on a great arc, then part of the way back."""

    name: Literal["warp"] = "warp"
    runs: Annotated[int, Field(ge=2, le=8)] = 2
    """Number of independent trainings of the round; their prompts come in other orders."""
    share: Shares = (0.3,)
    """Share of the way from the parent to the merged runs; a list is searched as ``shares`` of linear."""

    @property
    def points(self) -> tuple[float, ...]:
        return self.share

    @property
    def num_runs(self) -> int:
        return self.runs

    @field_validator("share")
    @classmethod
    def _differ(cls, share: tuple[float, ...]) -> tuple[float, ...]:
        return _differing("share", share)


class _VectorsConfig(MergeConfig):
    """Merger of the changes that accepted rounds made with the new round's."""

    of: Literal["base", "parent"]
    """Start of a round's change: the campaign's ``base``, so that a change holds those of all earlier
    rounds, or the round's own ``parent``."""
    rounds: tuple[Name, ...] | Literal["all"] = "all"
    """Accepted rounds whose changes are merged with the new one: ``all``, or their names."""
    scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor of the merged change before it is added to the base."""

    reads_base: ClassVar[bool] = True

    @property
    def rounds_read(self) -> tuple[Name, ...] | Literal["all"]:
        return self.rounds


class TiesMergeConfig(_VectorsConfig):
    """Changes of rounds, trimmed, with one sign for each weight."""

    name: Literal["ties"] = "ties"
    of: Literal["base", "parent"] = "base"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each tensor's weights whose change is kept: those that moved most."""


class DareMergeConfig(_VectorsConfig):
    """Changes of rounds of which most weights are dropped at random and the rest scaled up."""

    name: Literal["dare"] = "dare"
    of: Literal["base", "parent"] = "parent"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the weights whose change is kept, divided by this share."""


class HMAMergeConfig(_TowardConfig):
    """Straight line with a share of its own for each block of layers."""

    name: Literal["hma"] = "hma"
    blocks: Annotated[int, Field(ge=2, le=16)] = 3
    """Number of blocks that the decoder's layers are divided into, from input to output."""
    share: Share = 0.6
    """Mean share of the way from ``to`` to the trained weights."""
    shares: (
        Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=2)] | None
    ) = None
    """Share of each block; None: fitted to the trained policy's answers, with ``share`` as their mean."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Answers of the trained policy to the round's prompts that the shares are fitted to."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Steps of the fit, each a pass over all answers."""

    @property
    def fitted_answers(self) -> int:
        return self.samples if self.shares is None else 0

    @property
    def block_shares(self) -> tuple[float, ...]:
        return self.shares or ()

    @property
    def points(self) -> tuple[float]:
        return (self.share if self.shares is None else sum(self.shares) / len(self.shares),)

    @model_validator(mode="after")
    def _one_for_each_block(self) -> Self:
        if self.shares is None:
            return self
        if len(self.shares) != self.blocks:
            raise ValueError(
                f"shares has {len(self.shares)} entries and blocks is {self.blocks}; write one share for "
                "each block"
            )
        if "share" in self.model_fields_set:
            raise ValueError(
                "share is the mean that shares are fitted to, and shares states them; remove one"
            )
        return self


class LifeAlignMergeConfig(MergeConfig):
    """Denoised change of the round, without most of what lies in the space of earlier changes."""

    name: Literal["lifealign"] = "lifealign"
    energy: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a matrix's squared singular values that its truncated change keeps."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share that is kept of the part of the change that lies in the space of earlier rounds' changes."""
    rounds: tuple[Name, ...] | Literal["all"] = "all"
    """Accepted rounds whose changes span that space: ``all``, or their names."""

    reads_base: ClassVar[bool] = True

    @property
    def rounds_read(self) -> tuple[Name, ...] | Literal["all"]:
        return self.rounds


def _differing(field: str, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse a list that holds a share twice."""
    if twice := next((share for share in shares if shares.count(share) > 1), None):
        raise ValueError(f"{field} lists {twice:g} twice; each is a decision of the gate")
    return shares
