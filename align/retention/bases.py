"""Orthonormal bases of what the layers of accepted policies read; a later round adds directions to them.

A basis M is a matrix (in, k) for each trained matrix of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.learner.batching import to_tensors
from align.learner.model.policy import Policy, completion_outputs
from align.retention.activations import watching
from align.retention.artifact import misfit


def input_covariances(policy: Policy, rows: Sequence[Row], temperature: float) -> dict[str, Tensor]:
    """Return the sum of ``x x^T`` over the inputs x of each trained matrix, (in, in), in float64.

    Args:
        rows: samples whose prompts and completions are read.
        temperature: sampling temperature of the rows.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, inputs: Tensor, _: Tensor) -> None:
        wide = inputs.double()
        square = wide.T @ wide
        sums[name] = sums[name] + square if name in sums else square

    for row in rows:
        micro = to_tensors([row]).to(policy.device)
        # Passes without a gradient are those of frozen snapshots, which are not shown.
        with policy.passing(learns=False), torch.enable_grad(), watching(policy.model, see):
            outputs = completion_outputs(
                policy.model, micro, dtype=policy.dtype, temperature=temperature
            )
            _ = outputs.logprobs_N
    return sums


def grown(basis: Tensor | None, covariance: Tensor, energy: float) -> Tensor:
    """Return a basis with the fewest further directions that explain a share of a covariance.

    Args:
        basis: orthonormal columns, (in, k); None for an empty one.
        covariance: sum of ``x x^T`` over the inputs x, (in, in), in float64.
        energy: share of its trace to explain.
    """
    total = float(covariance.trace())
    old = covariance.new_zeros(len(covariance), 0) if basis is None else basis.to(covariance)
    values, vectors = outside(old, covariance)
    explained = float((old.T @ covariance @ old).trace())
    chosen: list[Tensor] = []
    for value, vector in zip(values, vectors.T, strict=True):
        room = old.shape[1] + len(chosen) < len(covariance)
        if explained >= energy * total or not room or float(value) <= 1e-12 * total:
            break
        explained += float(value)
        chosen.append(vector)
    return torch.cat([old, *(vector[:, None] for vector in chosen)], dim=1)


def outside(basis: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of what a basis leaves of a covariance, largest first, and the eigenvectors.

    Args:
        basis: orthonormal columns, (in, k).
        covariance: sum of ``x x^T`` over inputs x, (in, in).
    """
    left = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    left -= basis @ basis.T
    values, vectors = torch.linalg.eigh(left @ covariance @ left)
    return values.flip(0), vectors.flip(1)


def read_columns(
    path: Path, inputs: Mapping[str, int], method: str, what: str
) -> dict[str, Tensor]:
    """Return an artifact's directions among the inputs of layers, (in, k), on the host.

    Args:
        inputs: number of inputs of each trained matrix by parameter name.
        method: name of the method that wrote the file.
        what: name for people of what the file holds.

    Raises:
        SnapshotError: they were made for other layers.
    """
    from safetensors.torch import load_file

    stored = load_file(path)
    saved = {name: len(columns) for name, columns in stored.items()}
    if misfits := sorted(n for n in inputs.keys() | saved if inputs.get(n) != saved.get(n)):
        raise misfit(path, misfits[0], method, what)
    return stored
