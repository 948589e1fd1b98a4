"""One weight tensor of all snapshots that a merge is made of, as the functions of the mergers read it.

A merger is a pure function of a `WeightStack`. It is called for one tensor after another, so a merge takes
the memory of a few tensors whatever the size of the model.

Adapters are merged by their factors A and B, which is a merge of what they compute only if they lie in the
same coordinates. Adapters of one campaign do: each round trains the factors of the one before, and the runs
of a round begin with the same. The base has no adapter; it stands for the factors ``(A, 0)`` with the A of
the oldest adapter of the merge, whose product is zero as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from align.retention.mergers import FITS, MERGERS

if TYPE_CHECKING:
    from align.algorithms.rows import Row
    from align.learner.references import PolicyTask
    from align.retention.mergers.merge import Merge


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightStack:
    """One tensor of every snapshot, in float32 on the host, all of one shape."""

    name: str
    """Name in the files of snapshots."""
    base: Tensor
    past: Sequence[Tensor]
    """Weights after earlier accepted rounds, oldest first; the last are the parent's. Empty if the parent
    is the base, or if the merger reads no earlier rounds."""
    anchor: Tensor
    """Weights that the trained ones are merged with."""
    runs: Sequence[Tensor]
    """Trained weights, one tensor for each run of the round."""
    share: float
    """Share of the way to the trained weights; 1 for a merger without a share."""
    block_shares: Sequence[float] = ()
    """Share of each block of layers, for a merger that has several."""
    layers: int = 0
    """Number of decoder layers of the model."""
    seed: int = 0
    """Seed of what is drawn for this tensor, the same on all ranks."""

    @property
    def trained(self) -> Tensor:
        """Trained weights of a round with one run."""
        return self.runs[0]

    def changes(self, of: str) -> list[Tensor]:
        """Return the change that each round made, the new one last.

        Args:
            of: start of a change: ``base``, or each round's own ``parent``.
        """
        ends = [*self.past, self.trained]
        if of == "base":
            return [end - self.base for end in ends]
        starts = [self.base, *self.past]
        return [end - start for start, end in zip(starts, ends, strict=True)]


MergeTensor = Callable[[WeightStack, Any], Tensor]
"""Function that merges one tensor by the merger's settings."""


def merger(name: str) -> MergeTensor:
    """Return the function of a registered merger."""
    function: MergeTensor = _registered(MERGERS[name])
    return function


def fit_of(merge: Merge, rows: Sequence[Row]) -> PolicyTask:
    """Return the fit of a merge, whose result is the share of each block.

    Args:
        rows: answers of the trained policy.
    """
    fit: PolicyTask = _registered(FITS[merge.config.name])(
        merge=merge, config=merge.config, rows=rows
    )
    return fit


def _registered(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
