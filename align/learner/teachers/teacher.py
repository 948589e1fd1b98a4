"""Needs of a round with a teacher besides its weights: the same vocabulary, and prompts of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from align.algorithms import Algorithm
from align.algorithms.rows import Batch
from align.config.campaign import RoundSettings
from align.learner.folder.architecture import LOGIT_CHANGES
from align.learner.teachers.companions import check_companion
from rollouts.errors import UserError
from rollouts.model_config import setting, text_config
from rollouts.types import Prompt, RolloutGroup

MODEL = "model:"
"""Begins the name of a teacher that is a model folder and no snapshot of the campaign."""


def companions_of(spec: RoundSettings) -> list[Path]:
    """List the folders of models beside the policy that a round's learner loads."""
    from align.algorithms.policy_gradient.actor_critic.ppo import SHARED

    teacher, critic = spec.algorithm.teacher_snapshot, spec.algorithm.critic_config
    folders = []
    if teacher is not None and teacher.startswith(MODEL):
        folders.append(Path(teacher.removeprefix(MODEL)).expanduser())
    if critic is not None and critic.model not in (None, SHARED):
        folders.append(Path(critic.model).expanduser())
    return folders


def check_teacher(policy_folder: Path, teacher_folder: Path, where: str) -> None:
    """Raise a `UserError` unless both models mean the same by every token id.

    Distillation compares two distributions entry by entry, so another vocabulary would be learned
    without any sign of it. Reads configs and tokenizers, no weights.

    Args:
        where: the key that names the teacher.
    """
    check_companion(policy_folder, teacher_folder, what="teacher", where=where)
    policy, teacher = (text_config(folder) for folder in (policy_folder, teacher_folder))
    sizes = setting(policy, "vocab_size"), setting(teacher, "vocab_size")
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the teacher's vocabulary has {sizes[1]} entries and the policy's {sizes[0]}",
            where=where,
            cause="it is of another model family, or pads its output layer to another size",
            remedy="choose a teacher whose config.json has the policy's vocab_size",
        )
    if changes := [key for key in LOGIT_CHANGES if setting(teacher, key) not in (None, 1, 1.0)]:
        raise UserError(
            f"the teacher changes its logits after the output head ({changes[0]})",
            where=where,
            cause="it scales or caps them, and the learner computes logits without that step",
            remedy="choose a teacher without logit scaling or soft-capping",
        )


def with_teacher_prompts(
    batch: Batch,
    groups: Iterable[RolloutGroup],
    algorithm: Algorithm,
    encode: Callable[[Prompt], tuple[int, ...]],
) -> Batch:
    """Add `Row.teacher_prompt_ids` to a batch where the algorithm's teacher reads another prompt.

    A prompt's tokens tell which one it is: those of a round are distinct.

    Args:
        groups: groups that the batch's rows were sampled in.
    """
    taught = {row.prompt_ids for row in batch.rows if row.advantage is not None}
    shown = {
        group.prompt_ids: encode(read)
        for group in groups
        if group.prompt_ids in taught
        and (read := algorithm.teacher_prompt(group.prompt)) is not None
    }
    if not shown:
        return batch
    rows = tuple(
        row if row.advantage is None else replace(row, teacher_prompt_ids=shown.get(row.prompt_ids))
        for row in batch.rows
    )
    return replace(batch, rows=rows)
