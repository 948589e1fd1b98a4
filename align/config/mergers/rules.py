"""Rules between a round's merger, its other settings and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.config.mergers.settings import ROUND

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.config.policy import PolicyConfig


def check_merge(rounds: Sequence[RoundConfig], index: int, policy: PolicyConfig) -> None:
    """Refuse a merge of weights that do not lie in one space, and two settings that undo each other.

    Raises:
        ValueError: the rule, the value and the remedy.
    """
    spec = rounds[index]
    merge, where = spec.merge, f"rounds.{index}.merge"
    if merge is None or not spec.algorithm.trains_policy:
        return
    if policy.has_bare_dora:
        raise ValueError(
            f"{where}: {merge.name} merges weights and policy.lora.dora is true: DoRA also rescales the "
            "rows of the weights, which no sum of adapters does; set policy.lora.dora to false, or "
            "policy.lora.merge to true, so that snapshots are whole models"
        )
    external = [r.name for r in rounds[:index] if not r.algorithm.learns_here]
    reads_rounds = merge.rounds_read != "none" or merge.anchor.startswith(ROUND)
    if policy.snapshot_kind == "adapter" and external and reads_rounds:
        raise ValueError(
            f"{where}: {merge.name} merges the factors of adapters of several rounds, and the round "
            f"{external[-1]!r} before it takes an adapter that another program trained, whose factors may "
            "be others; use linear, slerp or warp with to: parent, or set policy.lora.merge to true"
        )
    if spec.repair.rerun:
        raise ValueError(
            f"{where}: {merge.name} is set and repair.rerun is true: a rerun would be judged without the "
            "merge; set repair.rerun to false"
        )
    if spec.repair.interpolate and len(merge.points) > 1:
        raise ValueError(
            f"{where}: {merge.name} searches {len(merge.points)} shares and repair.interpolate is on: both "
            "search between the same weights, and each point is a decision; keep one of them"
        )
    if any(method.name == "si" for method in spec.retention):
        raise ValueError(
            f"{where}: {merge.name} leaves the path that training took, and si takes its importance from "
            "that path, so that it would never hold anything; use ewc or mas"
        )
