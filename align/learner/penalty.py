"""Penalties that hold a policy to earlier snapshots, as the learner calls them.

The learner knows no method of retention: whoever begins a round hands in a `MakePenalties`, and every rank
builds its own penalties with it. `align.retention` holds the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.algorithms.rows import Row
    from align.config.campaign import RoundSettings
    from align.learner.batching import Denominators
    from align.learner.model.policy import Policy
    from align.learner.ranks.ranks import Ranks
    from align.learner.references import ReferenceModels, References
    from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerView:
    """Parts of a learner that the penalties of one round read."""

    spec: RoundSettings
    references: References
    models: ReferenceModels
    """Frozen snapshots, for penalties on what a policy says."""
    policy: Policy
    ranks: Ranks
    weights_of: Callable[[SnapshotId], dict[str, Tensor]]
    """Copies of a snapshot's trained weights by parameter name; of sharded ones this rank's part. The
    policy then holds that snapshot, so only `Penalty.before_round` may call it."""
    seed: int = 0
    """Seed of the round, the same for every attempt and on every rank."""
    place_of: Callable[[Path], Path] = lambda path: path
    """Finds the file of an artifact on the node of this rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightStep:
    """One step of the optimizer, by parameter name; of sharded weights this rank's part."""

    before: Mapping[str, Tensor]
    """Copies of the weights that the step started from."""
    weights: Mapping[str, Tensor]
    """Weights themselves, after the step; what is written into them stays."""
    momenta: Mapping[str, Tensor]
    """Running means of the gradients in the optimizer; empty if they are kept in 8 bits."""
    share: float = 1.0
    """Learning rate of the step, as a share of the peak."""

    def moves(self) -> dict[str, Tensor]:
        """Return what the step added to the weights, as tensors of their own."""
        return {name: self.weights[name] - before for name, before in self.before.items()}

    def replace_moves(self, moves: Mapping[str, Tensor]) -> None:
        """Write the weights that these moves lead to."""
        for name, before in self.before.items():
            self.weights[name].copy_(before + moves[name])


class MovingReference(Protocol):
    """Part of an algorithm's reference that moves after the policy."""

    @property
    def name(self) -> SnapshotId:
        """Name that this process gave no other weights: each move and each round has another."""
        ...

    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run it over the completion tokens, without gradient."""
        ...


class Penalty(Protocol):
    """One method of retention during one round, on one rank. Its hooks are named by their time."""

    @property
    def name(self) -> str:
        """Registered name of the method; metrics and artifacts carry it."""
        ...

    @property
    def acts_on_weights(self) -> bool:
        """True if `after_backward`, `parameter_penalty` or `project` does anything."""
        ...

    @property
    def follows_steps(self) -> bool:
        """True if `change_update` or `after_update` does anything: each step then copies the weights."""
        ...

    @property
    def separates_replay(self) -> bool:
        """True if `after_replay` takes the gradient of replayed rows, which then is no part of a step's."""
        ...

    @property
    def restarts_optimizer(self) -> bool:
        """True if the optimizer begins without moments after the batch that `after_batch` has seen."""
        ...

    def before_round(self) -> None:
        """Read earlier state and copy earlier weights, before the policy takes its first ones."""
        ...

    def before_steps(self, rows: Sequence[Row]) -> None:
        """Change the weights that the round begins with to others that compute the same.

        Args:
            rows: samples that the policy drew with these weights.
        """
        ...

    def snapshots(self, row: Row) -> AbstractSet[SnapshotId]:
        """Return the frozen snapshots that a pass over the row compares the policy with."""
        ...

    def moving_references(self) -> Mapping[str, MovingReference]:
        """Return the moving parts of the algorithm's reference, by the label of their anchor."""
        ...

    def moves(self, row: Row) -> bool:
        """Tell if `penalty` gives the row a gradient."""
        ...

    def penalty(
        self, micro: MicroBatch, outputs: Outputs, over: Denominators
    ) -> Iterable[tuple[Tensor, Mapping[str, Tensor]]]:
        """Yield terms of one pass's loss, each with metrics; both are summable over the step's passes."""
        ...

    def before_batch(self, rows: Sequence[Row]) -> None:
        """Read all rows of a batch before the first step on it; every rank sees all of them."""
        ...

    def own_rows(self) -> Sequence[Row]:
        """Return rows of the method's own that the step passes besides its batch; equal on all ranks."""
        ...

    def own_penalty(
        self, micro: MicroBatch, outputs: Outputs
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the term of one pass over `own_rows`, with metrics; both are summable over passes.

        Args:
            outputs: the policy's, with gradient, at the round's sampling temperature.
        """
        ...

    def during_passes(self) -> AbstractContextManager[None]:
        """Return the context of all passes of one optimizer step that have a gradient."""
        ...

    def after_replay(self, gradients: Mapping[str, Tensor]) -> None:
        """Take the gradient of one step's replayed rows, summed over passes and ranks.

        The tensors are zeroed afterwards, so what is kept has to be copied.
        """
        ...

    def after_backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Read the gradient of one step's loss, summed over passes and ranks, before any penalty on the
        weights is added."""
        ...

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield scalar terms of one optimizer step's loss that depend on the weights alone.

        The learner takes the gradient of each term before it asks for the next.

        Args:
            weights: trained weights by parameter name; of sharded ones this rank's part.
        """
        ...

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        """Change the gradients of one optimizer step in place, before they are clipped."""
        ...

    def change_update(self, step: WeightStep) -> None:
        """Change the weights that the optimizer has just stepped to, in place."""
        ...

    def after_update(self, step: WeightStep) -> None:
        """Read what a step has become, once every method has changed it."""
        ...

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Take note of an optimizer step's summed metrics; return metrics to report beside them."""
        ...

    def after_batch(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Take note of the metrics of all steps on a batch, and of its samples; return more to report.

        They are the same on all ranks, but for times.
        """
        ...

    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the tensors that later rounds need; the policy holds the accepted weights.

        Args:
            rows: samples that the accepted policy drew.
        """
        ...

    def counters(self) -> Mapping[str, Any]:
        """Return what changes from step to step, as JSON values under keys of this method alone."""
        ...

    def resume(self, counters: Mapping[str, Any]) -> None:
        """Take over the counters of a checkpoint."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return this rank's tensors that change from step to step, by names of this method alone.

        A checkpoint holds them, and is copied back into them.
        """
        ...


class MakePenalties(Protocol):
    """Builder of a round's penalties on one rank. It travels to other processes, so it can be pickled."""

    @property
    def artifacts(self) -> Mapping[str, Path]:
        """Files that the penalties read, as the driver names them."""
        ...

    def __call__(self, view: LearnerView) -> Sequence[Penalty]:
        """Build the penalties."""
        ...
