"""Weights of the policy on one rank, and frozen snapshots of earlier rounds beside them.

A learner outlives its rounds. What a round adds, from the optimizer to the penalties, is a `Training`,
which `Learner.begin` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.campaign import PolicyConfig, RoundSettings
from align.config.policy import EngineConfig
from align.learner.batching import by_row, to_tensors
from align.learner.heads.critic import Critic, make_critic
from align.learner.model.footprint import tokens_that_fit
from align.learner.model.policy import Policy, completion_outputs
from align.learner.optimizer import add_group, make_optimizer
from align.learner.penalty import LearnerView, MakePenalties, Penalty
from align.learner.ranks.allocation import keep_freed_memory
from align.learner.ranks.lanes import Lanes, lanes_for
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.ranks.sharding import local
from align.learner.reference_cache import ReferenceCache
from align.learner.references import PlaceOf, PolicyTask, ReferenceModels, References, here
from align.learner.sender import DirectTransfer, sends_weights
from align.learner.teachers.moving_copy import MovingCopy, moving_copy
from align.learner.training import Objective, Training
from rollouts.engines.protocol import WeightSendError, WeightUpdate
from rollouts.machine.processor import quickest_dtype
from rollouts.types import Mix, PromptIds, SnapshotId

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest allowed |engine - learner| logprob, in nats."""
MICRO_BATCH_TOKENS = {"cpu": 2600, "cuda": 16384}
"""Padded tokens of one forward pass unless the campaign says otherwise; on a CPU large models get fewer."""


class Learner:
    """Policy of one rank, and frozen snapshots that it is compared with."""

    version: str
    """Name that the weights were handed to the engines under last; empty before the first time."""
    fresh: bool
    """True while the weights are those of `version`; False once they have moved."""
    engines_differ: bool
    """True if engines sample from another distribution than the learner's, whatever weights they hold."""

    def __init__(
        self,
        base: Path,
        config: PolicyConfig,
        *,
        folder_of: Callable[[SnapshotId], Path],
        scratch: Path,
        tolerance: float | None = None,
        ranks: Ranks = SOLO,
        place_of: PlaceOf = here,
        engines: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = config.without_auto(
            quickest_dtype("cuda" if self.device.type == "cuda" else "cpu")
        )
        self.ranks = ranks
        self.policy = Policy(base, config, device=self.device, ranks=ranks)
        self.pass_tokens = MICRO_BATCH_TOKENS[self.device.type]
        if self.device.type == "cpu":
            self.pass_tokens = tokens_that_fit(self.policy.text_config, self.pass_tokens)
        self.lanes = Lanes(self._num_lanes(), config.threads)
        self.anchors = ReferenceModels(self.policy, folder_of, place_of)
        self.reference_cache = ReferenceCache()
        self._base, self._folder_of, self._scratch = base, folder_of, scratch
        self._place_of = place_of
        self.version, self.fresh = "", True
        self._direct: DirectTransfer | None = None
        self.engines_differ = engines.differ
        if sends_weights(engines.weight_transfer, config):
            way, timeout_s = engines.weight_transfer, engines.deadline_s
            self._direct = DirectTransfer(self.policy, ranks, way, timeout_s)
        self.tolerance = tolerance or TOLERANCE[config.dtype]

    def begin(
        self,
        spec: RoundSettings,
        references: References,
        *,
        num_steps: int,
        seed: int,
        penalties: MakePenalties,
    ) -> Training:
        """Take the weights that a round begins with; return its training, with fresh optimizer state.

        Let go of the training before: its critic and moments would stay in memory beside the new ones.

        Args:
            num_steps: updates to come, for the learning rate's schedule.
            penalties: builds what holds the policy to earlier snapshots.
        """
        round_penalties = self._make_penalties(spec, references, seed, penalties)
        moving_teacher = self._make_moving_teacher(spec, references, seed)
        torch.manual_seed(seed)
        if references.beginning is None:
            self.load(references.parent)
        else:
            references.beginning.load(self.policy, references.parent, self._folder_of)
        optimizer = make_optimizer(self.policy.parameters(), spec.optimizer)
        critic: Critic | None = None
        if (critic_config := spec.algorithm.critic_config) is not None:
            adapters = self.policy.config.snapshot_kind != "model"
            full = self._base if adapters else self._folder_of(references.parent)
            critic = make_critic(critic_config, self.policy, full, self._place_of)
            add_group(optimizer, critic.parameters(), critic_config.lr)
        objective = Objective(
            policy=self.policy,
            anchors=self.anchors,
            critic=critic,
            spec=spec,
            references=references,
            penalties=round_penalties,
            moving_teacher=moving_teacher,
        )
        return Training(self, objective, optimizer, num_steps)

    def begin_adapter(
        self,
        name: str,
        prompts: Sequence[PromptIds],
        seed: int,
        superseded: AbstractSet[str] = frozenset(),
    ) -> None:
        """Learn the round's own adapter of a bank from here on, under keys that its prompts train.

        Args:
            name: name of the adapter, the round's.
            prompts: tokens of the round's prompts.
            superseded: adapters that this one takes the place of.
        """
        assert self.policy.bank is not None, "only a policy with a bank has adapters by name"
        self.policy.bank.begin(name, prompts, seed, superseded)

    def mixes(self, prompts: Sequence[PromptIds]) -> list[Mix]:
        """Return the adapters of the bank that answer each prompt under the present weights."""
        return [()] * len(prompts) if self.policy.bank is None else self.policy.bank.mixes(prompts)

    def _make_penalties(
        self, spec: RoundSettings, references: References, seed: int, make: MakePenalties
    ) -> Sequence[Penalty]:
        """Build the round's penalties, which may load earlier weights into the policy meanwhile."""
        view = LearnerView(
            spec=spec,
            references=references,
            models=self.anchors,
            policy=self.policy,
            ranks=self.ranks,
            weights_of=partial(self._weights_of, seed),
            seed=seed,
            place_of=self._place_of,
        )
        penalties = make(view)
        for penalty in penalties:
            penalty.before_round()
        return penalties

    def _make_moving_teacher(
        self, spec: RoundSettings, references: References, seed: int
    ) -> MovingCopy | None:
        """Build the round's moving teacher, which may load earlier weights into the policy meanwhile."""
        follow, teacher = spec.algorithm.teacher_follows, spec.algorithm.teacher_snapshot
        if follow is None or teacher is None:
            return None
        return moving_copy(
            self.anchors,
            self.policy,
            partial(self._weights_of, seed),
            start=references.named(teacher),
            follow=follow,
            label="teacher",
        )

    def _weights_of(self, seed: int, snapshot: SnapshotId) -> dict[str, Tensor]:
        """Load a snapshot and return copies of its trained weights; of sharded ones this rank's part.

        Args:
            seed: the round's, so that a fresh adapter over the base is the one that the round begins with.
        """
        torch.manual_seed(seed)
        self.load(snapshot)
        weights = self.policy.named_parameters()
        return {name: local(parameter).detach().clone() for name, parameter in weights.items()}

    def _num_lanes(self) -> int:
        """Return the number of passes that may run side by side.

        There are several only where no pass changes what another sees: ranks wait for each other, adapters
        are switched on one base, and padded models change their attention with the rows' length.
        """
        alone = self.ranks.size == 1 and self.policy.config.lora is None and self.policy.packs
        if self.device.type != "cpu" or not alone:
            return 1
        trained = sum(parameter.numel() for parameter in self.policy.parameters())
        return lanes_for(trained, self.policy.config.threads)

    def load(self, snapshot: SnapshotId) -> None:
        """Make the policy equal to a snapshot."""
        self.policy.load(self._folder_of(snapshot))

    def compute(self, task: PolicyTask) -> Any:
        """Return what a task computes with the policy; it may leave other weights behind."""
        return task(self.policy, self.ranks, self._folder_of)

    def save(self, folder: Path) -> None:
        """Write the policy as a snapshot; see `Policy.save`."""
        self.policy.save(folder)

    def weights(self, version: str) -> WeightUpdate:
        """Return the current weights for the engines; what these sample under ``version`` is on-policy."""
        self.version, self.fresh = version, True
        if self._direct is not None:
            return WeightUpdate(version=version, send=partial(self._send, version))
        return self.policy.weights(version, self._scratch)

    def send(self, version: str, actors: Sequence[Any], workers_each: int) -> str:
        """Send the weights straight to engines; see `DirectTransfer.send`."""
        assert self._direct is not None, "weights stay with the learner if it can send them"
        return self._direct.send(version, actors, workers_each)

    def _send(self, version: str, actors: Sequence[Any], workers_each: int) -> None:
        if failure := self.send(version, actors, workers_each):
            raise WeightSendError(failure)

    @torch.no_grad()
    def completion_logprobs(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """Return each row's completion logprobs at temperature 1: the learner's half of a probe."""
        micro = to_tensors(rows).to(self.device)
        self.policy.open_gates(micro.rows)
        with self.policy.passing(learns=False):
            outputs = completion_outputs(
                self.policy.model, micro, dtype=self.policy.dtype, temperature=1.0
            )
            return by_row(outputs.logprobs_N, micro)
