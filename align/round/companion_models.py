"""Models that a round needs besides its policy: compatible with it, and small enough, before a run."""

from __future__ import annotations

import json
from pathlib import Path

from align.algorithms.policy_gradient.actor_critic.ppo import SHARED
from align.config.campaign import CampaignConfig, RoundConfig
from align.learner.folder.sizes import LearnerMemory, engine_bytes, learner_memory
from align.learner.quantized.library import check_quantized
from align.learner.teachers.companions import check_companion
from align.learner.teachers.teacher import MODEL, check_teacher
from align.round.merge.checks import check_blocks
from rollouts.engines.division import num_experts
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device

GIB = 1 << 30


def check_round_models(spec: RoundConfig, policy_folder: Path, config: CampaignConfig) -> None:
    """Check a round's teacher, critic and merge against the policy and the learner's device.

    Raises:
        UserError: no model in a folder, another tokenizer or vocabulary, more than memory holds, too few
            layers, or a package that is not installed.
    """
    check_blocks(spec, policy_folder)
    check_quantized(spec)
    check_routing(spec, policy_folder, config)
    where = f"rounds.{spec.name}.algorithm"
    teacher = spec.algorithm.teacher_snapshot
    if teacher is not None and teacher.startswith(MODEL):
        folder = Path(teacher.removeprefix(MODEL)).expanduser()
        check_teacher(policy_folder, folder, f"{where}.teacher")
    critic = spec.algorithm.critic_config
    if critic is None or critic.model == SHARED:
        return
    if critic.model is not None:
        folder = Path(critic.model).expanduser()
        check_companion(policy_folder, folder, what="critic", where=f"{where}.critic.model")
    memory = learner_memory(policy_folder, config.policy, spec)
    check_memory(memory, *_shared_device(policy_folder, config), where=f"{where}.critic")


def check_routing(spec: RoundConfig, policy_folder: Path, config: CampaignConfig) -> None:
    """Check that the experts that sample a round's rollouts are those that learn from them.

    Routers of engine and learner agree in float32, where the parity probe bounds their gap to 1e-4. In
    other numbers tokens near a tie take other experts, and transformers takes no given routing.

    Raises:
        UserError: a mixture of experts would learn from rollouts in other numbers than float32.
    """
    if spec.algorithm.material != "rollouts":
        return
    rounded = [f"rollouts.{name}" for name in ("quantization", "dtype") if _rounds(config, name)]
    if config.policy.dtype == "bfloat16":
        rounded.append("policy.dtype")
    experts = num_experts(json.loads((policy_folder / "config.json").read_text("utf-8")))
    if not rounded or experts is None:
        return
    raise UserError(
        f"a mixture of {experts} experts cannot learn from rollouts in rounded numbers",
        where=rounded[0],
        cause=f"round {spec.name} learns by other experts than those that sampled, for tokens near a tie, "
        "and the learner cannot replay an engine's routing",
        remedy="use float32 for policy and engines, without quantization, or learn from files",
    )


def _rounds(config: CampaignConfig, name: str) -> bool:
    """Tell if a setting of the engines makes them compute in other numbers than float32."""
    value = getattr(config.rollouts, name)
    return value not in (None, "auto", "float32")


def check_memory(memory: LearnerMemory, engines: int, available: int, *, where: str) -> None:
    """Raise UserError where a learner with a critic does not fit beside the engines; all in bytes."""
    if memory.total + engines <= available:
        return
    rest = memory.total - memory.critic
    raise UserError(
        f"learner and engines need {(memory.total + engines) / GIB:.1f} GiB and {available / GIB:.1f} GiB "
        f"are available: policy and anchors {rest / GIB:.1f}, critic {memory.critic / GIB:.1f}, engines "
        f"{engines / GIB:.1f}",
        where=where,
        cause="a critic of its own holds weights, gradients and two moments in float32, as the policy does",
        remedy="set critic.model to shared (a head on the policy's hidden states) or to the folder of "
        "a smaller model with the same tokenizer",
    )


def _shared_device(model: Path, config: CampaignConfig) -> tuple[int, int]:
    """Return the bytes of engines that lie where the learner does, and the bytes that there are."""
    if resolve_device("auto") == "cuda":
        import torch

        total: int = torch.cuda.get_device_properties(0).total_memory
        share = config.rollouts.gpu_memory_utilization if torch.cuda.device_count() == 1 else 0.0
        return int(total * share), total
    import psutil

    engines = config.rollouts.engines * engine_bytes(model, config)
    return engines, psutil.virtual_memory().available
