"""Tools and environments that a policy acts in, as a campaign file says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from align.config.policy import ResourcesConfig
from align.settings import EnvironmentPath, InputPath, Settings, ToolPath, without_unset
from rewards.environments.plan import SINGLE, EnvironmentLimits, EnvironmentsPlan
from rollouts.episodes.environment import EpisodeRules

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EnvironmentName = Annotated[str, Field(min_length=1, max_length=200)]

ACTING = ("tools", "environment", "episode", "turn_rewards")
"""Settings of a policy that acts; they are left out of what is written where they are not set."""


class EpisodeConfig(Settings):
    """Limits of an episode, and of the processes that environments live in."""

    turns: Annotated[int, Field(ge=1)] = 8
    """Most assistant turns of an episode; the last one's calls are not made."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of an episode after its prompt, sampled and observed; None: what the context holds."""
    call_s: Seconds = 10.0
    """Seconds for one call of a tool. A call that takes longer is ended, and the policy is told."""
    episode_s: Seconds = 120.0
    """Seconds that an episode's calls may take together; ``reset`` and ``get_reward`` may each take as long
    and fail the sample if they take longer."""
    observation_chars: Annotated[int, Field(ge=1)] = 8000
    """Characters of one result that the policy is shown; a longer one is cut and says so."""
    parser: Annotated[str, Field(min_length=1)] = "auto"
    """Form of tool calls: ``hermes``, the name of one of vLLM's tool parsers, or ``auto``, the form that
    the tokenizer's response template states, else ``hermes``."""
    isolation: Literal["process", "sandbox"] = "process"
    """``process``: in processes of their own, without tokens. ``sandbox``: those without network and files,
    for tools that run the model's code."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that import the environments' code; each starts one of its own for every episode."""
    resources: ResourcesConfig | None = None
    """Resources that each of the workers reserves in Ray, ``{}`` for one CPU: workers are then spread over
    the nodes of the cluster, and their files sent there. None: workers are on the driver's machine."""
    files: tuple[InputPath, ...] = ()
    """Files and folders that the code reads beside its own: they are sent to the nodes with it, in the same
    places, and can be read in a sandbox."""
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 4.0
    """Address space of the process of an episode; ``.inf``: no limit."""
    variables: tuple[str, ...] = ()
    """Names of environment variables that these processes may see, such as the key of a service."""

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        return without_unset(dump(self), ("resources", "files"))

    @model_validator(mode="after")
    def _deadlines(self) -> Self:
        if self.call_s > self.episode_s:
            raise ValueError(
                f"call_s {self.call_s:g} is longer than episode_s {self.episode_s:g}, which all calls of "
                "an episode share; raise episode_s"
            )
        return self

    def limits(self) -> EnvironmentLimits:
        """Return the limits of environments and their processes."""
        return EnvironmentLimits(
            call_s=self.call_s,
            episode_s=self.episode_s,
            observation_chars=self.observation_chars,
            isolation=self.isolation,
            workers=self.workers,
            memory_gib=None if self.memory_gib == float("inf") else self.memory_gib,
            variables=self.variables,
            bundle=None if self.resources is None else self.resources.bundle(gpus=False),
        )

    def rules(self, context: int | None = None) -> EpisodeRules:
        """Return the limits of an episode.

        Args:
            context: tokens that the engines read; None: no limit.
        """
        return EpisodeRules(
            turns=self.turns,
            tokens=self.tokens,
            context=context,
            episode_s=self.episode_s,
            observation_chars=self.observation_chars,
            parser=self.parser,
        )


class ActingSettings(Settings):
    """Settings of a round or suite whose policy may act before it answers."""

    tools: tuple[ToolPath, ...] = ()
    """Functions that the policy may call, ``file.py:function`` or ``package.module:function``: typed, with
    a Google docstring, sync or async."""
    environment: EnvironmentPath | dict[EnvironmentName, EnvironmentPath] | None = None
    """Class whose objects the policy acts in, ``file.py:Class``: ``reset(**row)``, public methods as tools,
    and ``get_reward()`` where it gives the reward. A mapping of several by name: each row chooses one by
    its column ``environment``. Also ``verifiers://NAME`` and ``openenv://HOST:PORT``."""
    episode: EpisodeConfig = EpisodeConfig()
    turn_rewards: bool = False
    """Learn from the reward of each turn instead of the episode's alone, where the environment gives
    one."""

    @property
    def acts(self) -> bool:
        """True if the policy has tools or an environment."""
        return bool(self.tools) or self.environment is not None

    @property
    def named_environments(self) -> dict[str, str]:
        """Classes of environments by the name that rows choose one by; `SINGLE` for the only one."""
        stated = self.environment
        return {SINGLE: stated} if isinstance(stated, str) else dict(stated or {})

    @property
    def code_names(self) -> tuple[str, ...]:
        """Names of all functions and classes that the policy acts with."""
        return (*self.tools, *self.named_environments.values())

    def environments_plan(self, where: str) -> EnvironmentsPlan:
        """Return what workers need to know of the tools and environments.

        Args:
            where: place of these settings in the campaign file, ``rounds.0``.
        """
        return EnvironmentsPlan(
            tools=self.tools,
            environments=self.named_environments,
            limits=self.episode.limits(),
            files=self.episode.files,
            where=where,
        )

    @model_validator(mode="after")
    def _acting(self) -> Self:
        if self.environment == {}:
            raise ValueError(
                "environment is an empty mapping; name a class, file.py:Class, or remove it"
            )
        remote = [name for name in self.code_names if name.startswith("openenv://")]
        if remote and self.episode.isolation == "sandbox":
            raise ValueError(
                f"episode.isolation is sandbox, which has no network, and {remote[0]} is a server; set "
                "isolation to process"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_acting(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings of episodes that are not set; stores that are older have no such keys."""
        return without_acting(self, dump(self))


def without_acting(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dumped settings without those of `ACTING` that have their defaults."""
    return {
        key: value
        for key, value in values.items()
        if key not in ACTING or settings.changed(key) is not None
    }
