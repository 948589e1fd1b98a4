"""Settings of a campaign that some of its rounds have no use for: no errors, but worth knowing."""

from __future__ import annotations

from collections.abc import Iterator

from align.config.campaign import CampaignConfig

WHOLE = ("lora", "ranks", "gradient_checkpointing")
"""Settings of the policy that a reward model does not share: all its weights learn, in one process."""


def notes_of(config: CampaignConfig) -> Iterator[str]:
    """One line for each."""
    judges = [spec.name for spec in config.rounds if spec.algorithm.makes == "reward_model"]
    given = [f"policy.{name}" for name in WHOLE if config.policy.changed(name)]
    if judges and given:
        yield (
            f"reward models ({', '.join(judges)}) learn all their weights in one process: "
            f"{', '.join(given)} {'does' if len(given) == 1 else 'do'} not apply to them"
        )
