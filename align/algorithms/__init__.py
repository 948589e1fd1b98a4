"""The algorithms a round may name. A new one is a new file here and one line in `ALGORITHMS`."""

from __future__ import annotations

from typing import Any

from align.algorithms.base import Algorithm, PolicyGradient, PolicyInputs
from align.algorithms.external import External
from align.algorithms.imitation.distill import Distill
from align.algorithms.imitation.pretrain import Pretrain
from align.algorithms.imitation.rft import RFT
from align.algorithms.imitation.sft import SFT
from align.algorithms.own import is_own, load_own
from align.algorithms.policy_gradient.actor_critic.cppo import CPPO
from align.algorithms.policy_gradient.actor_critic.ppo import PPO
from align.algorithms.policy_gradient.cispo import CISPO
from align.algorithms.policy_gradient.dapo import DAPO
from align.algorithms.policy_gradient.dr_grpo import DrGRPO
from align.algorithms.policy_gradient.grpo import GRPO
from align.algorithms.policy_gradient.gspo import GSPO
from align.algorithms.policy_gradient.reinforce_pp import ReinforcePP
from align.algorithms.policy_gradient.rloo import RLOO
from align.algorithms.preference.copr import COPR
from align.algorithms.preference.dpo import DPO
from align.algorithms.preference.fpo import FPO
from align.algorithms.preference.kto import KTO
from align.algorithms.preference.reward_model import RewardModel
from rollouts.errors import nearest

ALGORITHMS: dict[str, type[Algorithm]] = {
    "cispo": CISPO,
    "copr": COPR,
    "cppo": CPPO,
    "dapo": DAPO,
    "dpo": DPO,
    "distill": Distill,
    "external": External,
    "dr_grpo": DrGRPO,
    "fpo": FPO,
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
    """Return ``{name: grpo}`` for the short form ``grpo``, and anything else unchanged."""
    return {"name": value} if isinstance(value, str) else value


def algorithm_from(value: Any, context: object = None) -> Any:
    """Return the config object of an algorithm, from ``grpo`` or ``{name: grpo, scale: none}``.

    Raises:
        ValueError: the settings name no algorithm, or one that does not exist.
    """
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
