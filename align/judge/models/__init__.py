"""Models that can be judged, by the way they are named. A new way is a file here and a line in `KINDS`."""

from __future__ import annotations

from align.judge.models.base import JudgedModel, Named, named_in
from align.judge.models.endpoint import is_endpoint, open_endpoint
from align.judge.models.local import open_local
from align.judge.models.snapshot import is_snapshot, open_snapshot

KINDS = (
    (is_endpoint, open_endpoint),
    (is_snapshot, open_snapshot),
    (lambda name: True, open_local),
)
"""Test of a name, and what opens it; the first that fits. The last takes folders and hub ids."""

__all__ = ["KINDS", "JudgedModel", "Named", "open_model"]


def open_model(argument: Named) -> JudgedModel:
    """Find a model and check all that can be known of it before an engine starts.

    Raises:
        UserError: there is no such model, or engines could not serve it.
    """
    open_ = next(open_ for fits, open_ in KINDS if fits(argument.name))
    with named_in(argument.where):
        return open_(argument)
