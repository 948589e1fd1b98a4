"""Bytes that a campaign's weights take, in memory and on disk, from the headers of a model folder.

Counted are weights and what an optimizer keeps of them; activations are not, since they depend on what is
sampled, and neither are the libraries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from align.algorithms.policy_gradient.ppo import SHARED
from align.config.campaign import CampaignConfig, RoundConfig
from align.config.policy import PolicyConfig
from align.learner.folder.folder import stored_dtype, weight_files
from align.learner.model.targets import Adaptation, adaptation_of
from align.learner.teachers.teacher import MODEL

FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = 2
"""Of AdamW: a mean and a mean square of every trained weight's gradient."""
TRAINED = FLOAT32 * (2 + MOMENTS)
"""Bytes of a weight that learns, with its gradient and moments."""
ANCHOR_CACHE = 2 << 30
"""Full-weight anchors beyond it are loaded again when they are needed; one always stays."""
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerMemory:
    """Of every rank of the learner while a round runs, in bytes."""

    weights: int
    gradients: int
    moments: int
    anchors: int
    """Snapshots that the policy is held to."""
    retention: int
    """Earlier weights and their importance, of methods that hold the weights themselves."""
    critic: int
    teacher: int
    """A model that is no snapshot of the campaign, or a copy that moves; a snapshot counts as an anchor."""
    reward_model: int
    """Of the round that trains one, beside the policy that waits for its next round."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def learner_memory(model: Path, policy: PolicyConfig, spec: RoundConfig) -> LearnerMemory:
    """What a round keeps in memory; full weights are dealt out over the ranks, an adapter is on each."""
    whole, trained = num_parameters(model), num_trained(model, policy)
    ranks = policy.ranks if policy.lora is None else 1
    adapter = 0 if policy.lora is None else trained
    return LearnerMemory(
        weights=(whole + adapter) * FLOAT32 // ranks,
        gradients=trained * FLOAT32 // ranks,
        moments=trained * FLOAT32 * MOMENTS // ranks,
        anchors=_anchors(whole, trained, policy, spec),
        retention=_weight_copies(spec) * trained * FLOAT32 // ranks,
        critic=_critic(whole, spec),
        teacher=_teacher(whole, policy, spec),
        reward_model=whole * TRAINED if spec.algorithm.makes == "reward_model" else 0,
    )


def num_parameters(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its safetensors files."""
    return sum(math.prod(shape) for _, shape in _shapes(folder))


def num_trained(model: Path, policy: PolicyConfig) -> int:
    """Parameters that learn: all of them, or those of the adapter."""
    adapted = _adaptation(model, policy)
    return num_parameters(model) if adapted is None else adapted.trained


def snapshot_bytes(model: Path, policy: PolicyConfig) -> int:
    """Count the bytes of one snapshot on disk; an adapter is written in float32."""
    if policy.snapshot_kind == "adapter":
        return FLOAT32 * num_trained(model, policy)
    return BYTES[stored_dtype(model, policy)] * num_parameters(model)


def checkpoint_bytes(model: Path, policy: PolicyConfig) -> int:
    """The newest checkpoint of a round that is under way: what learns, and its moments."""
    return FLOAT32 * num_trained(model, policy) * (1 + MOMENTS)


def artifact_bytes(model: Path, policy: PolicyConfig, spec: RoundConfig) -> int:
    """Count the bytes that an accepted round leaves for later rounds besides its snapshot."""
    keeping = sum(m.keeps_artifact for m in spec.retention) if _takes_steps(spec) else 0
    return keeping * FLOAT32 * num_trained(model, policy)


def engine_bytes(model: Path, config: CampaignConfig) -> int:
    """Weights and KV cache of one engine on a CPU; on a GPU it takes the share it is told to."""
    weights = num_parameters(model) * BYTES[config.policy.dtype]
    return weights + config.rollouts.kv_cache_mb * MIB


def synced_bytes(model: Path, policy: PolicyConfig) -> int:
    """Return the bytes of one version of weights sent to engines; 0 if they read an adapter's folder."""
    return 0 if policy.serves_adapters else FLOAT32 * num_parameters(model)


def folder_bytes(model: Path) -> int:
    """What copying the model takes."""
    return sum(file.stat().st_size for file in model.iterdir() if file.is_file())


def _anchors(whole: int, trained: int, policy: PolicyConfig, spec: RoundConfig) -> int:
    """An adapter is held to other adapters over its own base; full weights to models, up to the cache."""
    named = _snapshots(spec)
    if policy.snapshot_kind == "adapter":
        return len(named) * trained * FLOAT32
    one = whole * BYTES[policy.dtype]
    return max(one, min(one * len(named), ANCHOR_CACHE)) if named else 0


def _weight_copies(spec: RoundConfig) -> int:
    return sum(m.weight_copies for m in spec.retention) if _takes_steps(spec) else 0


def _takes_steps(spec: RoundConfig) -> bool:
    """Tell if the learner trains the policy in this round."""
    return spec.algorithm.makes == "policy" and spec.algorithm.learns_here


def _snapshots(spec: RoundConfig) -> set[str]:
    """The names of all that the policy is compared with; a reward model is trained without any."""
    algorithm, anchors = spec.algorithm, spec.anchors
    if algorithm.makes == "reward_model":
        return set()
    named = {anchor.to for anchor in (*anchors.new, *anchors.past, *anchors.general) if anchor.beta}
    if algorithm.anchors_are_reference and not anchors.new:
        named.add("parent")
    teacher = algorithm.teacher_snapshot
    alone = teacher is None or teacher.startswith(MODEL) or algorithm.teacher_follows
    return named if alone else named | {str(teacher)}


def _teacher(whole: int, policy: PolicyConfig, spec: RoundConfig) -> int:
    teacher = spec.algorithm.teacher_snapshot
    if spec.algorithm.teacher_follows:
        return whole * FLOAT32
    if teacher is None or not teacher.startswith(MODEL):
        return 0
    return num_parameters(Path(teacher.removeprefix(MODEL)).expanduser()) * BYTES[policy.dtype]


def _critic(whole: int, spec: RoundConfig) -> int:
    critic = spec.algorithm.critic_config
    if critic is None or critic.model == SHARED:
        return 0
    own = whole if critic.model is None else num_parameters(Path(critic.model).expanduser())
    return own * TRAINED


def _adaptation(model: Path, policy: PolicyConfig) -> Adaptation | None:
    """Ask once for every model and adapter: the model is built, without weights, to be looked at."""
    return _adaptation_of(model, policy.model_dump_json())


@lru_cache(maxsize=32)
def _adaptation_of(model: Path, policy: str) -> Adaptation | None:
    return adaptation_of(model, PolicyConfig.model_validate_json(policy))


def _shapes(model: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file in weight_files(model):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: Mapping[str, Mapping[str, list[int]]] = json.loads(stream.read(size))
        for name, value in header.items():
            if name != "__metadata__":
                yield name, tuple(value["shape"])
