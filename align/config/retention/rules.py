"""Rules between a round's retention methods, its other settings and the policy.

Each raises a ValueError that states the rule, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig, RoundSettings
    from align.config.policy import LoraConfig, PolicyConfig


def check_methods(spec: RoundConfig) -> None:
    """Refuse two methods that change the optimizer's step, and A-GEM without replayed rows that teach."""
    changing = [method.name for method in spec.retention if method.changes_step]
    if len(changing) > 1:
        raise ValueError(
            f"retention: {' and '.join(changing)} each change the optimizer's step, and what one of them "
            f"ensures the other would undo; keep one of them. A penalty, such as kl_anchors, ewc or si, "
            "goes with any of them"
        )
    if "mofo" in changing and spec.optimizer.moments == "8bit":
        raise ValueError(
            "retention: mofo picks weights by the size of their momenta, which optimizer.moments: 8bit "
            "rounds to 256 steps; set moments to float32, or choose another method"
        )
    if {"o_lora", "inflora"} <= {method.name for method in spec.retention}:
        raise ValueError(
            "retention: o_lora turns the adapter's input directions away from those of earlier rounds, and "
            "inflora chooses them before the round and keeps them as they are; keep one of them. n_lora "
            "goes with either"
        )
    replay, anchors = spec.replay, spec.anchors
    past = replay.past > 0 and bool(replay.rewards or anchors.past)
    general = replay.general_prompts is not None and replay.general > 0 and bool(anchors.general)
    is_idle = not past and not general and not replay.likelihoods
    if "agem" in changing and spec.algorithm.trains_policy and is_idle:
        lacks = "replay.past is 0" if not replay.past else "replayed prompts have no loss"
        raise ValueError(
            f"retention: agem compares the gradient with that of replayed rows, and {lacks}; set "
            "replay.past above 0 and list kl_anchors beside agem (or set replay.rewards to true), or use "
            "ogd or gpm, which need no replay"
        )


def check_retention(
    rounds: Sequence[RoundConfig], index: int, policy: PolicyConfig, defaults: RoundSettings
) -> None:
    """Refuse methods that compare a round's adapter with one of other weights, that need another kind of
    adapter, or that have nothing to hold or to read."""
    spec, lora = rounds[index], policy.lora
    if any(m.name == "copr" for m in spec.retention) and not any(
        r.algorithm.ranks_answers for r in rounds[: index + 1]
    ):
        raise ValueError(
            f"rounds.{index}.retention: copr holds ranked answers of earlier rounds, and neither this "
            f"round nor one before it ranks any (algorithm {spec.algorithm.name}); use kl_anchors, or give "
            "an earlier round the algorithm copr, dpo or fpo"
        )
    if not spec.algorithm.trains_policy:
        return
    where = f"rounds.{index}.retention"
    _check_samples(spec, where, defaults)
    check_precision(spec, index, policy)
    apart = [method.name for method in spec.retention if method.needs_fresh_adapter]
    if apart:
        _check_fresh_adapter(apart[0], where, lora)
    if lora is None:
        return
    external = [r.name for r in rounds[:index] if not r.algorithm.learns_here]
    for method in spec.retention:
        bound = method.keeps_artifact and method.stores_weights and method.name not in apart
        if bound and lora.merge:
            raise ValueError(
                f"{where}: {method.name} holds the adapter's own weights, and policy.lora.merge begins a "
                "fresh adapter in every round; set policy.lora.merge to false, or use l2_sp with to: "
                "parent, which holds the adapter's update, or o_lora, n_lora or inflora, which keep the "
                "adapters of rounds apart"
            )
        if bound and external:
            raise ValueError(
                f"{where}: {method.name} holds the adapter's own weights, and the round {external[-1]!r} "
                "before it takes an adapter that another program trained; use l2_sp, which holds the "
                "adapter's update"
            )
        if method.name != "l2_sp":
            continue
        if lora.dora:
            raise ValueError(
                f"{where}: l2_sp measures the update that an adapter adds to the weights, and DoRA also "
                "rescales their rows; set policy.lora.dora to false, or use ewc"
            )
        if lora.merge and getattr(method, "to", None) == "base":
            raise ValueError(
                f"{where}: l2_sp is held to the base, and policy.lora.merge adds every round's update to "
                "it; set to: parent, or policy.lora.merge to false"
            )


def check_precision(spec: RoundConfig, index: int, policy: PolicyConfig) -> None:
    """Refuse a method that measures less than the policy's precision rounds away.

    A `policy.dtype` of ``auto`` passes, and is checked again once it is resolved.
    """
    if policy.dtype != "bfloat16" or not spec.algorithm.trains_policy:
        return
    if name := next((method.name for method in spec.retention if method.needs_float32), None):
        raise ValueError(
            f"rounds.{index}.retention: {name} measures how far a step moves logprobs, and policy.dtype "
            "is bfloat16, whose rounding alone moves them by more; set policy.dtype to float32, or take "
            f"{name} out of the round and set optimizer.lr for this model"
        )


def _check_samples(spec: RoundConfig, where: str, defaults: RoundSettings) -> None:
    """Refuse a method of the round that reads samples where it learns from a file.

    One from ``defaults`` is allowed, since it may be meant for the other rounds; ``keel config check``
    names it.
    """
    for name in without_samples(spec):
        if any(method.name == name for method in defaults.retention):
            continue
        raise ValueError(
            f"{where}: {name} measures its steps on completions of the policy, and "
            f"{spec.algorithm.name} learns {spec.algorithm.material} of a file; take {name} out of the "
            "round, or choose an algorithm that samples, such as grpo, rft or dpo with pairs: online"
        )


def without_samples(spec: RoundConfig) -> list[str]:
    """Name the methods of a round that read completions of the policy, where the round draws none."""
    if not spec.algorithm.trains_policy or spec.algorithm.material == "rollouts":
        return []
    return [method.name for method in spec.retention if method.needs_samples]


def _check_fresh_adapter(method: str, where: str, lora: LoraConfig | None) -> None:
    """Refuse a method that keeps the adapters of rounds apart where a round has no plain one of its own."""
    if lora is None or not lora.merge:
        reason = (
            "policy.lora is not set, so that rounds train all weights; set policy.lora to {merge: true}, "
            "or use gpm, ogd or ewc, which hold full weights"
            if lora is None
            else "policy.lora.merge is false, so that all rounds train the same one; set policy.lora.merge "
            "to true, or use gpm, ogd or ewc, which hold that one"
        )
        raise ValueError(f"{where}: {method} keeps the adapters of rounds apart, and {reason}")
    if lora.dora:
        raise ValueError(
            f"{where}: {method} bounds the low-rank update that an adapter adds to the weights, and DoRA "
            "also rescales whole rows of them; set policy.lora.dora to false (rslora may be true)"
        )
