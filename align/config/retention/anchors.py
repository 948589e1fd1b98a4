"""Settings of the KL terms that hold a round's policy to earlier snapshots."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.config.learning import Weight, listed
from align.settings import Settings

_STAGNATION = ("after_stagnation", "metric", "goal", "gain", "restart_optimizer")


class FollowConfig(Settings):
    """Movement of an anchor after the policy: ``share`` of the way at every ``every``-th step, or once a
    metric has stopped improving."""

    every: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps between two moves."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the way from the anchor to the policy that a move goes; 1 makes the anchor the policy."""
    above: Annotated[float, Field(gt=0)] | None = None
    """KL in nats per token beyond which the anchor moves at once; None: only with ``every``."""
    after_stagnation: Annotated[int, Field(ge=1)] | None = None
    """Learner steps whose mean of ``metric`` has to beat that of as many before; if it does not, the anchor
    moves and counting begins again. An ``every`` of 1 has no effect then. None: no metric moves it."""
    metric: str = "reward/mean"
    """Metric of the steps that shows stagnation, by its name in ``metrics.jsonl``."""
    goal: Literal["higher", "lower"] = "higher"
    """Direction in which the metric improves."""
    gain: Annotated[float, Field(ge=0)] = 0.0
    """Improvement up to which it counts as stagnating, in units of the metric."""
    restart_optimizer: bool = False
    """Let the optimizer begin without moments when the anchor moves for stagnation; the learning rate keeps
    its schedule."""

    @property
    def moves_every(self) -> int | None:
        """Optimizer steps between two moves; None if only KL or stagnation moves the anchor."""
        return None if self.after_stagnation is not None and self.every == 1 else self.every

    @model_serializer(mode="wrap")
    def _without_stagnation(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset stagnation: stores that are older than the setting have no such keys."""
        values: dict[str, Any] = dump(self)
        if self.after_stagnation is None:
            for key in _STAGNATION:
                values.pop(key, None)
        return values

    @model_validator(mode="after")
    def _stagnates(self) -> Self:
        if self.after_stagnation is None and (setting := self.changed(*_STAGNATION)):
            raise ValueError(
                f"{setting} belongs to a move on stagnation, and after_stagnation is not set; set it to a "
                f"number of steps, or remove {setting}"
            )
        if self.metric.startswith("time/"):
            raise ValueError(
                f"metric {self.metric!r} is a time, and a run that is stopped and gone on with would move "
                "the anchor at another step; name a metric of what is learnt"
            )
        return self


class AnchorConfig(Settings):
    """One KL term: ``beta`` times the mean per-token KL toward one earlier snapshot, in nats."""

    to: Annotated[str, Field(pattern=r"^(parent|owner|base|round:.+)$")]
    """Anchor's snapshot: ``parent`` (where the round started), ``owner`` (the round that a replayed prompt
    comes from), ``base`` or ``round:NAME``."""
    beta: Annotated[float, Field(ge=0)]
    """Weight of the term; the initial weight if there is a target."""
    estimator: Literal["full", "forward", "k1", "k2", "k3"] = "full"
    """Estimator of the KL: ``full`` sums over the vocabulary; k1 to k3 use sampled tokens only;
    ``forward`` is for stored answers, which the anchor sampled."""
    target: Annotated[float, Field(gt=0)] | None = None
    """KL in nats per token that ``beta`` is adjusted to reach; None keeps beta fixed."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Largest relative change of an adjusted beta in one step."""
    bounds: tuple[Weight, Weight] = (1e-4, 1e2)
    """Smallest and largest adjusted beta."""
    follow: FollowConfig | None = None
    """Movement of the anchor within the round, which begins at ``to``; None keeps it where it is."""

    @property
    def label(self) -> str:
        """Name of the term in metrics, such as ``parent``, or ``parent~0.01/1`` for one that follows."""
        follow = self.follow
        if follow is None:
            return self.to
        when = [] if follow.moves_every is None else [str(follow.moves_every)]
        if follow.after_stagnation is not None:
            when.append(f"stagnation{follow.after_stagnation}")
        return f"{self.to}~{follow.share:g}/{'+'.join(when)}"

    @model_serializer(mode="wrap")
    def _without_follow(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an unset ``follow``: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.follow is None:
            values.pop("follow", None)
        return values

    @model_validator(mode="after")
    def _steered(self) -> Self:
        low, high = self.bounds
        if low > high:
            raise ValueError(
                f"bounds are the smallest and the largest beta, got {low:g} and {high:g}; swap them"
            )
        if self.target is None and (setting := self.changed("rate", "bounds")):
            raise ValueError(
                f"{setting} adjusts beta toward a target, and there is none; set target, or remove "
                f"{setting}"
            )
        if self.follow is not None and self.to == "owner":
            raise ValueError(
                "follow moves one anchor, and owner stands for the snapshot of each prompt's own round; "
                "set to: parent, or remove follow"
            )
        return self


class AnchorsConfig(Settings):
    """KL terms of each class of prompts; the KL of a class is a mean over its own tokens."""

    new: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = ()
    """Terms on the round's own prompts: a trust region, for rewards that are models or judges. It slows
    learning down."""
    past: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = (
        AnchorConfig(to="owner", beta=3.0),
    )
    """Terms on prompts of earlier rounds: by default each prompt is held to the snapshot of its own
    round."""
    general: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = (
        AnchorConfig(to="base", beta=1.0),
    )
    """Terms on general prompts, which protect what no round trains."""

    @field_validator("new", "past", "general")
    @classmethod
    def _distinct(cls, anchors: tuple[AnchorConfig, ...]) -> tuple[AnchorConfig, ...]:
        names = [anchor.label for anchor in anchors]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two anchors to {twice!r} would share one KL and its metrics; write one, with both betas "
                "added up"
            )
        return anchors
