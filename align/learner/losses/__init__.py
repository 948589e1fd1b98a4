"""The algorithms a round may name. A new one is a new file here and one line in `ALGORITHMS`."""

from __future__ import annotations

from typing import Any

from align.learner.losses.base import Algorithm, PolicyGradient, PolicyInputs
from align.learner.losses.cispo import CISPO
from align.learner.losses.dapo import DAPO
from align.learner.losses.distill import Distill
from align.learner.losses.dpo import DPO
from align.learner.losses.dr_grpo import DrGRPO
from align.learner.losses.external import External
from align.learner.losses.grpo import GRPO
from align.learner.losses.gspo import GSPO
from align.learner.losses.kto import KTO
from align.learner.losses.own import is_own, load_own
from align.learner.losses.ppo import PPO
from align.learner.losses.pretrain import Pretrain
from align.learner.losses.reinforce_pp import ReinforcePP
from align.learner.losses.reward_model import RewardModel
from align.learner.losses.rft import RFT
from align.learner.losses.rloo import RLOO
from align.learner.losses.sft import SFT
from rollouts.errors import nearest

ALGORITHMS: dict[str, type[Algorithm]] = {
    "cispo": CISPO,
    "dapo": DAPO,
    "dpo": DPO,
    "distill": Distill,
    "external": External,
    "dr_grpo": DrGRPO,
    "grpo": GRPO,
    "gspo": GSPO,
    "kto": KTO,
    "ppo": PPO,
    "pretrain": Pretrain,
    "reinforce_pp": ReinforcePP,
    "reward_model": RewardModel,
    "rft": RFT,
    "rloo": RLOO,
    "sft": SFT,
}

__all__ = [
    "ALGORITHMS",
    "GRPO",
    "Algorithm",
    "PolicyGradient",
    "PolicyInputs",
    "algorithm_class",
    "algorithm_from",
    "spelt_out",
]


def spelt_out(value: Any) -> Any:
    """``grpo`` as ``{name: grpo}``; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


def algorithm_from(value: Any, context: object = None) -> Any:
    """``grpo`` or ``{name: grpo, scale: none}`` as the algorithm's own config object."""
    value = spelt_out(value)
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(
            f"{value} are settings of no algorithm; write which one as name, here or in defaults"
        )
    return algorithm_class(value["name"], context).model_validate(value, context=context)


def algorithm_class(name: object, context: object = None) -> type[Algorithm]:
    """Return the class of a registered algorithm, or of ``file.py:Class`` or ``pkg.mod:Class``.

    Args:
        context: `align.settings.Places` that relative paths start from.

    Raises:
        ValueError: there is none.
    """
    if isinstance(name, str) and name in ALGORITHMS:
        return ALGORITHMS[name]
    if is_own(name):
        return load_own(str(name), context)
    raise ValueError(
        f"no algorithm {name!r}; {nearest(str(name), list(ALGORITHMS))}; or write file.py:Class"
    )
