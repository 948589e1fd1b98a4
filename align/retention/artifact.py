"""Artifacts of one tensor for each trained weight, as the next round reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from align.errors import SnapshotError
from align.learner.model.policy import Policy
from align.learner.ranks.sharding import part_like


def read_weights(path: Path, policy: Policy, method: str, what: str) -> dict[str, Tensor]:
    """Return an artifact's whole tensors on the host, by parameter name.

    Args:
        method: name of the method that wrote the file.
        what: name for people of what the file holds.

    Raises:
        SnapshotError: the artifact was made for other parameters.
    """
    from safetensors.torch import load_file

    stored = load_file(path)
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters().items()}
    saved = {name: tensor.shape for name, tensor in stored.items()}
    if misfits := sorted(n for n in shapes | saved if shapes.get(n) != saved.get(n)):
        raise misfit(path, misfits[0], method, what)
    return stored


def misfit(path: Path, name: str, method: str, what: str) -> SnapshotError:
    """Return the error of an artifact that was made for other parameters than the policy's."""
    return SnapshotError(
        f"the {what} of an earlier round does not fit the policy: {name!r}",
        where=str(path),
        cause="that round trained other weights, such as an adapter of another rank",
        remedy=f"take {method} out of this round's retention, or train the same weights again",
    )


def parts_of(policy: Policy, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lay out whole tensors like the trained weights; of sharded ones this rank gets its part."""
    trained = policy.named_parameters()
    return {n: part_like(stored[n].to(policy.device), p.detach()) for n, p in trained.items()}
