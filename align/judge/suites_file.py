"""The file of suites that models are judged on: a campaign's sections without its rounds.

``suites`` and ``gate`` mean what they mean in a campaign, so both can be moved from one file to the other
and give the same verdicts. A whole campaign file is taken, too; its rounds are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from align.config.campaign import CampaignConfig, RoundSettings
from align.config.file import load_campaign, mapping_of, read_text, validated
from align.config.gate import GateConfig, OverlapConfig, SuiteConfig
from align.config.policy import EngineConfig, PolicyConfig
from align.gate.suites.win_rate import ROUND
from align.settings import Settings
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device
from rollouts.machine.processor import quickest_dtype

WHAT = "suites"
"""Name of such a file in messages."""
UNNAMED = "?"
"""Model of a file that names none."""

MEASURED_WHOLE = (
    "gate.stopping: sequential is for rounds of a campaign; here every item of both models is measured, "
    "one model after the other, and decided by the tests of whole suites (as with gate.stopping: fixed)"
)
"""Remark on a file whose campaigns stop early."""


def _of_any_model(value: Any) -> Any:
    """Return settings of a policy that leave the model open, and the precision to the machine."""
    return {"model": UNNAMED, "dtype": "auto", **value} if isinstance(value, dict) else value


def _measuring_few(gate: GateConfig) -> GateConfig:
    """Return a gate that warns of too few items unless the file says to refuse: they still show damage."""
    if "underpowered" in gate.model_fields_set:
        return gate
    return gate.model_copy(update={"underpowered": "warn"})


class SuitesFile(Settings):
    """Suites, the gate that decides on them, and how models are sampled for it."""

    gate: Annotated[GateConfig, AfterValidator(_measuring_few), Field(validate_default=True)] = (
        GateConfig()
    )
    """Settings of the decision. Suites with too few items only give a warning, unless ``underpowered:
    refuse`` is stated: one candidate costs little, and they show a large loss all the same."""
    suites: Annotated[tuple[SuiteConfig, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every item's sampling; both models get the same, so that items are paired."""
    policy: Annotated[
        PolicyConfig, BeforeValidator(_of_any_model), Field(validate_default=True)
    ] = PolicyConfig(model=UNNAMED, dtype="auto")
    """Settings by which both models are read and served, such as ``dtype`` and ``system``; the command line
    names the models."""
    rollouts: EngineConfig = EngineConfig()
    defaults: RoundSettings = RoundSettings()
    """``sampling.max_tokens`` is that of suites without their own."""

    @field_validator("suites")
    @classmethod
    def _fit_margins(
        cls, suites: tuple[SuiteConfig, ...], info: ValidationInfo
    ) -> tuple[SuiteConfig, ...]:
        gate: GateConfig | None = info.data.get("gate")
        return suites if gate is None else gate.fitted(suites)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on settings that mean something else than in a campaign."""
        return (MEASURED_WHOLE,) if self.gate.stopping == "sequential" else ()

    @property
    def left_out(self) -> dict[str, str]:
        """Suites that cannot be looked at here, by name, and why."""
        reasons = {
            suite.name: "sealed"
            if suite.role == "sealed"
            else f"compared with {suite.against}, a snapshot of a campaign"
            for suite in self.suites
            if suite.role == "sealed" or (suite.against or "").startswith(ROUND)
        }
        return reasons

    def policy_of(self, model: Path, *, quantised: bool = False) -> PolicyConfig:
        """Return the settings that engines serve a model folder with.

        Args:
            quantised: its kernels compute in bfloat16.
        """
        chosen = self.policy.without_auto(quickest_dtype(resolve_device("auto")))
        dtype = "bfloat16" if quantised else chosen.dtype
        return chosen.model_copy(
            update={"model": str(model), "revision": None, "lora": None, "dtype": dtype, "ranks": 1}
        )

    def campaign(self, policy: PolicyConfig) -> CampaignConfig:
        """Return a campaign without rounds, which suites are built of and engines started for."""
        return CampaignConfig.model_construct(
            name="judge",
            policy=policy,
            seed=self.seed,
            rollouts=self.rollouts,
            defaults=self.defaults,
            rounds=(),
            suites=tuple(suite for suite in self.suites if suite.name not in self.left_out),
            # Nothing is trained, so no item can be trained on.
            gate=self.gate.model_copy(
                update={"overlap": OverlapConfig(ngram=None), "stopping": "fixed"}
            ),
        )


def load_suites_file(path: Path, overrides: Sequence[str] = ()) -> tuple[SuitesFile, list[str]]:
    """Read and validate a file of suites, or the suites and the gate of a campaign file.

    Args:
        overrides: ``key.path=value`` as given to ``--set``.

    Returns:
        The file, and remarks for the user.

    Raises:
        UserError: with every problem found.
    """
    text = read_text(path, WHAT)
    raw = mapping_of(text, path, WHAT)
    if "rounds" in raw:
        campaign = load_campaign(path, overrides)
        config = campaign.config
        if not config.suites:
            raise UserError(
                "the campaign has no suites besides those of its rounds",
                where=f"{path}: suites",
                remedy="give it a list of suites, or name a file that has one",
            )
        suites_file = SuitesFile.model_construct(
            suites=config.suites,
            gate=_measuring_few(config.gate),
            seed=config.seed,
            policy=config.policy,
            rollouts=config.rollouts,
            defaults=config.defaults,
        )
        return suites_file, list(campaign.notes)
    file = validated(SuitesFile, raw, path, overrides, WHAT, text=text)
    return file.settings, list(file.notes)


def campaign_or_suites(
    path: Path, overrides: Sequence[str] = ()
) -> tuple[CampaignConfig, list[str]]:
    """Read a campaign file, or a file of suites as a campaign without rounds, and remarks for the user.

    Raises:
        UserError: with every problem found.
    """
    raw = mapping_of(read_text(path), path)
    if "suites" in raw and not raw.keys() & {"rounds", "name", "store"}:
        file, notes = load_suites_file(path, overrides)
        return file.campaign(file.policy), notes
    campaign = load_campaign(path, overrides)
    return campaign.config, list(campaign.notes)
