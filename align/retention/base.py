"""Base of the methods that hold a policy to what earlier rounds taught it.

A method belongs to one round and one rank of the learner, which calls its hooks at these times:

    leave_out                         once, at first: what later rounds override of earlier ones
    before_round                      once, before the policy takes its first weights
    before_steps                      once, with samples of its first weights, if `start_samples` asks
    before_batch                      a batch has come, before the first step on it
    during_passes                     around the passes of an optimizer step that have a gradient
    penalty, snapshots, moves         every forward pass
    own_rows, own_penalty             passes of a step over rows of the method's own
    after_replay                      replayed rows are passed, if `separates_replay`
    after_backward                    the gradient of the loss is whole
    parameter_penalty                 penalties on the weights are added to it
    project                           the gradient is whole, and will be clipped
    change_update, then after_update  the optimizer has stepped, if `follows_steps`
    after_step                        the step's metrics are known
    after_batch                       so are those of all steps on a batch, and of its samples
    counters, tensors, resume         every checkpoint of a round
    after_accept                      once the gate has accepted the round's policy

Two methods that change the step itself, by `project` or `change_update`, would each undo what the other
ensures, so a round takes one of them: their settings say `changes_step`. Penalties go with all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from align.config.retention.methods import RetentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.algorithms.rows import Row
    from align.learner.batching import Denominators
    from align.learner.penalty import LearnerView, MovingReference, WeightStep
    from rollouts.types import SnapshotId

Config = TypeVar("Config", bound=RetentionConfig)
Ids = tuple[int, ...]
"""Tokens of a prompt or an answer."""


class RetentionMethod(Generic[Config]):
    """One method during one round; a subclass overrides the hooks that it needs.

    Args:
        config: the round's settings of the method.
        view: the learner that it acts on.
        artifact: file that this method wrote after the newest accepted round on the parent's line; None if
            there is none.
    """

    acts_on_weights: bool = False
    """True if `after_backward`, `parameter_penalty` or `project` does anything; the learner then calls them
    at every step."""
    follows_steps: bool = False
    """True if `change_update` or `after_update` does anything; the learner then copies the weights before
    every step."""
    separates_replay: bool = False
    """True if `after_replay` takes the gradient of replayed rows, which then is no part of a step's."""

    restarts_optimizer: bool = False
    """True if the optimizer begins without moments after the batch that `after_batch` has just seen."""

    def __init__(self, config: Config, view: LearnerView, artifact: Path | None = None) -> None:
        self.config, self.view, self.artifact = config, view, artifact

    @property
    def name(self) -> str:
        """Registered name of the method."""
        return self.config.name

    def leave_out(self, retired: Mapping[str, AbstractSet[Ids] | None]) -> None:
        """Hold no more what later rounds override of earlier ones.

        Args:
            retired: prompts by the round that taught them; None stands for the whole round.
        """

    def before_round(self) -> None:
        """Read earlier state and copy earlier weights, before the policy takes its first ones."""

    def before_steps(self, rows: Sequence[Row]) -> None:
        """Change the weights that the round begins with to others that compute the same.

        All ranks call this together; a round that goes on from a checkpoint does not call it again.

        Args:
            rows: samples that the policy drew with these weights.
        """

    def snapshots(self, row: Row) -> AbstractSet[SnapshotId]:
        """Return the frozen snapshots that a pass over the row compares the policy with."""
        return frozenset()

    def moving_references(self) -> Mapping[str, MovingReference]:
        """Return the moving parts of the algorithm's reference, by the label of their anchor."""
        return {}

    def moves(self, row: Row) -> bool:
        """Tell if `penalty` gives the row a gradient."""
        return False

    def penalty(
        self, micro: MicroBatch, outputs: Outputs, over: Denominators
    ) -> Iterable[tuple[Tensor, Mapping[str, Tensor]]]:
        """Yield terms of one pass's loss, each with metrics; both can be summed over the step's passes."""
        return ()

    def before_batch(self, rows: Sequence[Row]) -> None:
        """Read all rows of a batch, the same on every rank, with what their algorithm knows of them."""

    def own_rows(self) -> Sequence[Row]:
        """Return rows that the step passes besides its batch, the same on every rank."""
        return ()

    def own_penalty(
        self, micro: MicroBatch, outputs: Outputs
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the term of a pass over `own_rows`, with metrics; both can be summed over passes."""
        raise NotImplementedError

    def during_passes(self) -> AbstractContextManager[None]:
        """Return the context of all passes of one optimizer step that have a gradient."""
        return nullcontext()

    def after_replay(self, gradients: Mapping[str, Tensor]) -> None:
        """Copy the gradient of one step's replayed rows, summed over passes and ranks."""

    def after_backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Read the gradient of one step's loss, before any penalty on the weights is added."""

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield scalar terms of one step's loss over the weights; see `Penalty.parameter_penalty`."""
        return iter(())

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        """Change the gradients of one optimizer step in place, before they are clipped."""

    def change_update(self, step: WeightStep) -> None:
        """Change the weights that the optimizer has just stepped to, in place."""

    def after_update(self, step: WeightStep) -> None:
        """Read what a step has become, once every method has changed it."""

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Read an optimizer step's metrics; return further metrics to report."""
        return {}

    def after_batch(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Read the metrics of all steps on a batch and of its samples; return further metrics to report."""
        return {}

    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the tensors that later rounds need, whole and on the host, on the first rank.

        They become the method's artifact. All ranks call this together.

        Args:
            rows: samples that the accepted policy drew.
        """
        return {}

    def counters(self) -> Mapping[str, Any]:
        """Return what changes from step to step, as JSON values under keys of this method alone."""
        return {}

    def resume(self, counters: Mapping[str, Any]) -> None:
        """Take over the counters of a checkpoint."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return this rank's tensors that change from step to step; a checkpoint is copied into them."""
        return {}

    def summed(self, **parts: float) -> dict[str, float]:
        """Return sums over the elements of the weights, added up over ranks if each has a part of them."""
        return self.view.ranks.sum(parts) if self.view.policy.sharded else parts
