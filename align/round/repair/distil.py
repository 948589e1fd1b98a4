"""A few steps that bring back what was lost, with the candidate as the teacher of what was gained.

Every row has a teacher that could do it, and is drawn to it by the full-vocabulary reverse KL on the
policy's own completions (GKD, Agarwal et al. 2023, arXiv 2306.13649):

    prompts of a lost round       the snapshot that owned them, through ``anchors.past``
    the general pool              the base, through ``anchors.general``
    the round's own prompts       the failed candidate, as `Distill`'s teacher

No reward acts, so nothing new is learned. Items of suites are never trained on: what was lost is asked
for by the prompts that replay keeps of its round, or by the general pool where a capability was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.algorithms.imitation.distill import Distill
from align.config.retention.anchors import AnchorsConfig
from align.data.replay.buffer import ReplayBuffer
from align.data.scorer import Scorer
from align.learner.references import Toward
from align.round.repair.damage import lost_capability, lost_rounds
from align.store.repairs import Origin

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.config.repair import DistilConfig
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.repair.tried import Tried


def next_plan(plan: RoundPlan, failed: RoundOutcome, tried: Sequence[Tried]) -> RoundPlan | None:
    """Plan the distillation, once, where there is something to ask for."""
    chosen = plan.spec.repair.distil
    if chosen is None or tried:
        return None
    rounds = lost_rounds(failed.verdict)
    buffer = plan.mixture.past if plan.repair_prompts is None else plan.repair_prompts
    past = ReplayBuffer({n: p for n, p in buffer.entries.items() if n in rounds})
    general = lost_capability(failed.verdict) and plan.mixture.general is not None
    if not len(past) and not general:
        return None
    spec = distillation(plan.spec, chosen, past=len(past) > 0, general=general)
    references = replace(
        plan.references,
        rounds={**plan.references.rounds, spec.name: failed.candidate},
        beginning=Toward(snapshot=failed.candidate, share=1.0),
    )
    return replace(
        plan,
        spec=spec,
        references=references,
        mixture=replace(
            plan.mixture,
            past=past,
            sampling=spec.sampling,
            replay=spec.replay,
            examples=None,
            past_examples={},
            rehearsal=(),
        ),
        scorer=Scorer(new=None, past={}),
        origin=Origin(
            rung="distil", of=failed.candidate, description=f"distillation, {chosen.steps} steps"
        ),
    )


def distillation(
    spec: RoundConfig, chosen: DistilConfig, *, past: bool, general: bool
) -> RoundConfig:
    """Make a round of distillation with the completions, lengths and temperature of another.

    Args:
        past: prompts of earlier rounds are to be brought back; ``general``: the general pool is.
    """
    each = chosen.share / (past + general)
    defaults = AnchorsConfig()
    return spec.model_copy(
        update={
            "algorithm": Distill(teacher=f"round:{spec.name}"),
            "steps": chosen.steps,
            # One completion a prompt: distillation compares none, and sees more prompts.
            "sampling": spec.sampling.model_copy(
                update={"group_size": 1, "prompts_per_step": spec.sampling.budget}
            ),
            "optimizer": spec.optimizer.model_copy(
                update={"lr": chosen.lr or spec.optimizer.lr / 2, "warmup_steps": 0}
            ),
            "replay": spec.replay.model_copy(
                update={
                    "past": each if past else 0.0,
                    "general": each if general else min(spec.replay.general, 0.9 - chosen.share),
                    "examples": 0.0,
                    "samples_per_prompt": 1,
                    "rewards": False,
                    "answers": None,
                    "pretraining": None,
                }
            ),
            "anchors": AnchorsConfig(
                past=spec.anchors.past or defaults.past,
                general=spec.anchors.general or defaults.general,
            ),
        }
    )
