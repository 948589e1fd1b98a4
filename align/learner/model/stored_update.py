"""Weights of an adapted policy as places in its base's files plus the adapter's factors.

Engines read the files and add the factors' product themselves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from align.learner.folder.folder import weight_files
from align.learner.model.adapter import base_parameters, causal_of, low_rank_updates
from align.learner.model.mapping import stored_form
from rollouts.engines.stored_tensor import StoredTensor


def stored_tensors(model: Any, folder: Path) -> dict[str, StoredTensor] | None:
    """Find the place of every weight of the plain model in a folder's files.

    Returns:
        None if the files have the weights in another form than the model: fused, split or under other
        names.
    """
    from safetensors import safe_open

    parameters = base_parameters(model)
    if stored_form(causal_of(model), parameters).keys() != parameters.keys():
        return None
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(parameters.keys() & set(opened.keys())):
                if tuple(opened.get_slice(name).get_shape()) == tuple(parameters[name].shape):
                    stored[name] = StoredTensor(file=str(file.resolve()), name=name)
    return {name: stored[name] for name in parameters} if len(stored) == len(parameters) else None


def with_updates(stored: dict[str, StoredTensor], model: Any) -> dict[str, StoredTensor] | None:
    """Add the adapter's present update to a base's stored tensors; None if it is no low-rank sum."""
    updates = low_rank_updates(model)
    if updates is None or not updates.keys() <= stored.keys():
        return None
    return stored | {name: replace(stored[name], update=u) for name, u in updates.items()}
