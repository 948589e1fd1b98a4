"""Models that a round needs besides its policy: compatible with it, and small enough, before a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

from align.config import RoundConfig
from align.learner.losses.ppo import SHARED
from align.learner.teacher import MODEL, check_teacher


def check_round_models(spec: RoundConfig, policy_folder: Path) -> None:
    """Check a round's teacher and critic against the policy.

    Raises:
        UserError: another tokenizer or vocabulary, or a critic that memory does not hold.
    """
    teacher = spec.algorithm.teacher_snapshot
    if teacher is not None and teacher.startswith(MODEL):
        check_teacher(policy_folder, Path(teacher.removeprefix(MODEL)))
    critic = spec.algorithm.critic_config
    if critic is None or critic.model == SHARED:
        return
    import psutil

    from align.learner.critic import check_critic, check_memory, critic_bytes

    folder = policy_folder
    if critic.model is not None:
        folder = Path(critic.model)
        check_critic(policy_folder, folder)
    needed = critic_bytes(num_parameters(folder), trained=True)
    check_memory(needed, psutil.virtual_memory().available)


def num_parameters(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        shapes = [value["shape"] for name, value in header.items() if name != "__metadata__"]
        total += sum(math.prod(shape) for shape in shapes)
    return total
