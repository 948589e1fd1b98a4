"""Checks of a round's merge against the model, and what the merge costs, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.mergers.settings import HMAMergeConfig, MergeConfig
from align.retention.mergers.blocks import num_layers
from rollouts.errors import UserError


def check_blocks(spec: RoundConfig, model: Path) -> None:
    """Refuse more blocks of layers than the model has layers.

    Raises:
        UserError: there are too few layers, or the names of the weights tell of none.
    """
    merge = spec.merge
    if not isinstance(merge, HMAMergeConfig):
        return
    from safetensors import safe_open

    layers = 0
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            layers = max(layers, num_layers(opened.keys()))
    if layers < merge.blocks:
        known = f"has {layers} decoder layers" if layers else "has no layers that are known by name"
        raise UserError(
            f"hma divides the decoder's layers into {merge.blocks} blocks, and the model {known}",
            where=f"rounds.{spec.name}.merge.blocks",
            remedy="lower merge.blocks, or use linear, which has one share for all layers",
        )


def merging(spec: RoundConfig) -> MergeConfig | None:
    """Return the merger that acts in a round; None where the learner trains no policy."""
    return spec.merge if spec.algorithm.trains_policy else None


def merge_lines(config: CampaignConfig, names: set[str]) -> Iterator[str]:
    """Yield a line on the cost of every merge of the rounds with these names."""
    for spec in config.rounds:
        merge = merging(spec)
        if merge is None or spec.name not in names:
            continue
        points, runs = len(merge.points), merge.num_runs
        trained = f"trains {runs} times, " if runs > 1 else ""
        judged = (
            f"judges up to {points} points, each a measurement and a decision over which gate.alpha is "
            "spread"
            if points > 1
            else "judges the merge in the place of what was trained"
        )
        yield f"{spec.name}: {merge.name} merge {trained}{judged}; up to {merge.num_snapshots} snapshots"
        if points > 1 and config.gate.mode == "observe":
            yield (
                f"{spec.name}: the gate only observes, so that the search of {merge.name} goes by the "
                "evidence alone, and its first share is taken if none passes"
            )
