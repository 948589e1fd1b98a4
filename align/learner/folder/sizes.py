"""Bytes that a campaign's weights take in memory and on disk, from the headers of a model folder.

Weights, gradients and the optimizer's moments are counted. Activations are not, since they depend on the
samples, and neither are the libraries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from align.algorithms.policy_gradient.actor_critic.ppo import SHARED
from align.config.campaign import CampaignConfig, RoundConfig
from align.config.policy import PolicyConfig
from align.learner.folder.folder import stored_dtype, weight_files
from align.learner.model.targets import Adaptation, adaptation_of
from align.learner.teachers.teacher import MODEL

FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = 2
"""Moments of AdamW: the mean and the mean square of every trained weight's gradient."""
TRAINED = FLOAT32 * (2 + MOMENTS)
"""Bytes of a trained weight with its gradient and moments."""
BASIS = 4 + 8
"""Bytes of an element of a basis of inputs in float32, and of their covariance in float64."""
ANCHOR_CACHE = 2 << 30
"""Bytes of full-weight anchors in memory; more are loaded again when needed, and one always stays."""
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerMemory:
    """Bytes of memory of each rank of the learner during a round."""

    weights: int
    gradients: int
    moments: int
    anchors: int
    """Bytes of the snapshots that the policy is compared with."""
    retention: int
    """Bytes of earlier weights and their importance, for retention methods on the weights."""
    critic: int
    teacher: int
    """Bytes of a teacher that is a model folder or a moving copy; a snapshot counts as an anchor."""
    reward_model: int
    """Bytes of the reward model in a round that trains one, besides the policy."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def learner_memory(model: Path, policy: PolicyConfig, spec: RoundConfig) -> LearnerMemory:
    """Count the memory of a round: full weights and a critic are sharded over the ranks, an adapter is on
    each."""
    whole, trained = num_parameters(model), num_trained(model, policy)
    ranks = policy.ranks if policy.lora is None else 1
    adapter = 0 if policy.lora is None else trained
    steps = spec.algorithm.trains_policy
    copies = sum(method.weight_copies for method in spec.retention) if steps else 0
    moving = _following(spec) * _moving_size(whole, trained, policy) if steps else 0
    return LearnerMemory(
        weights=(whole + adapter) * FLOAT32 // ranks,
        gradients=trained * FLOAT32 // ranks,
        moments=trained * FLOAT32 * MOMENTS // ranks,
        anchors=_anchors(whole, trained, policy, spec),
        retention=(copies * trained // ranks + moving) * FLOAT32
        + BASIS * _bases(model, policy, spec),
        critic=_critic(whole, spec) // policy.ranks,
        teacher=_teacher(whole, trained, policy, spec),
        reward_model=whole * TRAINED if spec.algorithm.makes == "reward_model" else 0,
    )


def _moving_size(whole: int, trained: int, policy: PolicyConfig) -> int:
    """Count the parameters of a copy that moves after the policy: each rank holds all of them."""
    return trained if policy.snapshot_kind == "adapter" else whole


def _following(spec: RoundConfig) -> int:
    """Count the anchors that move after the policy, each a copy of its weights."""
    anchors = spec.anchors
    return sum(a.follow is not None for a in (*anchors.new, *anchors.past, *anchors.general))


def num_parameters(folder: Path) -> int:
    """Count the parameters of a model folder, from the headers of its safetensors files."""
    total = 0
    for file in weight_files(folder):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: Mapping[str, Mapping[str, list[int]]] = json.loads(stream.read(size))
        total += sum(math.prod(v["shape"]) for name, v in header.items() if name != "__metadata__")
    return total


def num_trained(model: Path, policy: PolicyConfig) -> int:
    """Count the trained parameters: all of the model, or those of the adapter."""
    adapted = _adaptation(model, policy.model_dump_json())
    return num_parameters(model) if adapted is None else adapted.trained


def snapshot_bytes(model: Path, policy: PolicyConfig) -> int:
    """Count the bytes of one snapshot on disk, of a bank those of one adapter; adapters are in float32."""
    if policy.snapshot_kind == "model":
        return BYTES[stored_dtype(model, policy)] * num_parameters(model)
    return FLOAT32 * num_trained(model, policy)


def snapshots_bytes(model: Path, policy: PolicyConfig, coming: int, states: Collection[str]) -> int:
    """Count the bytes of the snapshots to come; each bank has the adapters of all rounds before it.

    Args:
        coming: number of rounds to come, each taken for accepted.
        states: states of all rounds so far.
    """
    adapters, accepted = coming, sum(state == "accepted" for state in states)
    if policy.bank is not None:
        adapters = sum(range(accepted + 1, accepted + coming + 1))
    return adapters * snapshot_bytes(model, policy)


def checkpoint_bytes(model: Path, policy: PolicyConfig, specs: Sequence[RoundConfig] = ()) -> int:
    """Count the bytes of a round's newest checkpoint: trained weights, their moments, and what retention
    methods follow; the largest of the rounds."""
    whole, trained = num_parameters(model), num_trained(model, policy)
    moving = _moving_size(whole, trained, policy) * policy.ranks
    copies = [
        sum(method.checkpoint_copies for method in spec.retention) * trained
        + (_following(spec) + (spec.algorithm.teacher_follows is not None)) * moving
        for spec in specs
        if spec.algorithm.trains_policy
    ]
    return FLOAT32 * (trained * (1 + MOMENTS) + max(copies, default=0))


def artifact_bytes(
    model: Path, policy: PolicyConfig, spec: RoundConfig, *, earlier: int = 0
) -> int:
    """Count the bytes of the artifacts that retention methods write after an accepted round.

    Args:
        earlier: rounds before it, each taken for accepted.
    """
    if not spec.algorithm.trains_policy:
        return 0
    keeping = sum(m.artifact_copies * (1 + earlier * m.adds_up) for m in spec.retention)
    return FLOAT32 * (keeping * num_trained(model, policy) + _bases(model, policy, spec))


def _bases(model: Path, policy: PolicyConfig, spec: RoundConfig) -> int:
    """Count the elements of a square basis of each adapted layer's inputs, for the methods that keep one.

    With full weights a basis is about as large as its layer, and counts as a copy of it.
    """
    adapted = _adaptation(model, policy.model_dump_json())
    if adapted is None or not spec.algorithm.trains_policy:
        return 0
    return adapted.squared_inputs * sum(method.input_bases for method in spec.retention)


def engine_bytes(model: Path, config: CampaignConfig) -> int:
    """Count the bytes of one engine's weights and KV cache on a CPU.

    On a GPU an engine takes ``rollouts.gpu_memory_utilization``.
    """
    weights = num_parameters(model) * BYTES[config.policy.dtype]
    return weights + config.rollouts.kv_cache_mb * MIB * config.rollouts.division.num_devices


def synced_bytes(model: Path, policy: PolicyConfig) -> int:
    """Count the bytes of one version of weights sent to engines; 0 if they read an adapter's folder."""
    return 0 if policy.serves_adapters else FLOAT32 * num_parameters(model)


def folder_bytes(model: Path) -> int:
    """Count the bytes of a model folder's files."""
    return sum(file.stat().st_size for file in model.iterdir() if file.is_file())


def _anchors(whole: int, trained: int, policy: PolicyConfig, spec: RoundConfig) -> int:
    """Count the bytes of a round's anchors: adapters over the one base, or full models up to the cache."""
    algorithm, anchors = spec.algorithm, spec.anchors
    if algorithm.makes == "reward_model":
        return 0
    terms = (*anchors.new, *anchors.past, *anchors.general)
    names = {anchor.to for anchor in terms if anchor.beta and anchor.follow is None}
    if algorithm.anchors_are_reference and not anchors.new:
        names.add("parent")
    teacher = algorithm.teacher_snapshot
    if teacher is not None and not teacher.startswith(MODEL) and not algorithm.teacher_follows:
        names.add(teacher)
    if policy.snapshot_kind == "bank":
        # The base is asked with its adapters at rest; other banks bring their adapters along.
        earlier = [name for name in names if name.startswith("round:")]
        return len(earlier) * trained * FLOAT32
    if policy.snapshot_kind == "adapter":
        return len(names) * trained * FLOAT32
    size = whole * BYTES[policy.dtype]
    return max(size, min(size * len(names), ANCHOR_CACHE)) if names else 0


def _teacher(whole: int, trained: int, policy: PolicyConfig, spec: RoundConfig) -> int:
    """Count the bytes of a teacher that is not a snapshot."""
    teacher = spec.algorithm.teacher_snapshot
    if spec.algorithm.teacher_follows:
        return _moving_size(whole, trained, policy) * FLOAT32
    if teacher is None or not teacher.startswith(MODEL):
        return 0
    return num_parameters(Path(teacher.removeprefix(MODEL)).expanduser()) * BYTES[policy.dtype]


def _critic(whole: int, spec: RoundConfig) -> int:
    """Count the bytes of a critic with its own network."""
    critic = spec.algorithm.critic_config
    if critic is None or critic.model == SHARED:
        return 0
    size = whole if critic.model is None else num_parameters(Path(critic.model).expanduser())
    return size * TRAINED


@lru_cache(maxsize=32)
def _adaptation(model: Path, policy: str) -> Adaptation | None:
    """Find the layers of an adapter, once per model and policy: it builds the model without weights.

    Args:
        policy: JSON of a `PolicyConfig`, which itself cannot be hashed.
    """
    return adaptation_of(model, PolicyConfig.model_validate_json(policy))
