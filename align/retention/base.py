"""Base of the methods that hold a policy to what earlier rounds taught it.

A method belongs to one round and one rank of the learner, which calls its hooks at these times:

    before_round                            once, before the policy takes its first weights
    penalty, snapshots, moves               every forward pass
    parameter_penalty, project, after_step  every optimizer step
    counters, resume                        every checkpoint of a round
    after_accept                            once the gate has accepted the round's policy
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from align.config.learning import RetentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.algorithms.rows import Row
    from align.learner.batching import Denominators
    from align.learner.penalty import LearnerView
    from rollouts.types import SnapshotId

Config = TypeVar("Config", bound=RetentionConfig)


class RetentionMethod(Generic[Config]):
    """One method during one round; a subclass overrides the hooks that it needs.

    Args:
        config: the round's settings of the method.
        view: the learner that it acts on.
        artifact: file that this method wrote after the newest accepted round on the parent's line; None if
            there is none.
    """

    acts_on_weights: bool = False
    """True if `parameter_penalty` or `project` does anything; the learner then calls them at every step."""

    def __init__(self, config: Config, view: LearnerView, artifact: Path | None = None) -> None:
        self.config, self.view, self.artifact = config, view, artifact

    @property
    def name(self) -> str:
        """Registered name of the method."""
        return self.config.name

    def before_round(self) -> None:
        """Read earlier state and copy earlier weights, before the policy takes its first ones."""

    def snapshots(self, row: Row) -> AbstractSet[SnapshotId]:
        """Return the frozen snapshots that a pass over the row compares the policy with."""
        return frozenset()

    def moves(self, row: Row) -> bool:
        """Tell if `penalty` gives the row a gradient."""
        return False

    def penalty(
        self, micro: MicroBatch, outputs: Outputs, over: Denominators
    ) -> Iterable[tuple[Tensor, Mapping[str, Tensor]]]:
        """Yield terms of one pass's loss, each with metrics; both can be summed over the step's passes."""
        return ()

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield scalar terms of one step's loss over the weights; see `Penalty.parameter_penalty`."""
        return iter(())

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        """Change the gradients of one optimizer step in place, before they are clipped."""

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Read an optimizer step's metrics; return further metrics to report."""
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
