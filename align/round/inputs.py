"""Inputs of a campaign: everything that it reads, loaded and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from align.bank.folder import check_sentence_encoder
from align.config.campaign import CampaignConfig, RoundConfig
from align.config.retrieval.settings import RetrievalConfig
from align.data.base_model import SCHEMES, load_encoder, resolve_model
from align.data.examples import Unit
from align.data.examples.round_data import RoundDataLoader, pool_hash
from align.data.replay.examples import names_in
from align.data.retrieval.documents import IndexChange, check_forgotten, load_change
from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import DocumentIndex
from align.data.retrieval.tool import SearchingEncoder, check_search
from align.gate.suites.suites import Suite, build_suites
from align.learner.folder.checks import check_base
from align.learner.folder.source import check_unchanged
from align.round.companion_models import check_round_models
from align.round.episodes.environments import check_environments, open_environments
from align.store.stored_base import StoredBase, stored_base
from rewards.rubric import Rubric, build_rubric
from rollouts.chat.probe import check_conversations, check_system, probe_turns
from rollouts.collect import check_lengths
from rollouts.engines import backend_named
from rollouts.episodes.environment import EpisodeRules
from rollouts.errors import UserError, within
from rollouts.machine.device import resolve_device
from rollouts.model_config import setting, sizes_of, text_config
from rollouts.prompts import PromptEncoder
from rollouts.rows import FileRow
from rollouts.types import Prompt

LONGEST_CONTEXT = 4096
"""Context reserved for engines unless the campaign asks for more, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A campaign's model folder, tokenizer, prompts and suites."""

    model: Path
    context: int
    """Prompt plus completion, in tokens, that engines are started for."""
    encoder: PromptEncoder
    prompts: Mapping[str, Sequence[Prompt]]
    """New prompts of every round; those of its examples where it learns from a file."""
    general: Mapping[str, Sequence[Prompt]]
    """The general pool of every round that has one."""
    suites: Sequence[Suite]
    examples: Mapping[str, Sequence[Unit]]
    """Units that each round may learn from, where it learns from a file."""
    reward_models: frozenset[str]
    """Rounds that make no policy."""
    reports: Mapping[str, str]
    """Sentences about the rows of these rounds' files: read, cut and left out."""
    awaited: frozenset[str]
    """Rounds that have taken nothing of the inbox yet: without prompts, examples and a suite."""
    texts: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    """Windows of texts that each round with ``replay.pretraining`` keeps likely."""
    held_texts: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    """Windows of the held-out documents of these texts."""
    held_names: frozenset[str] = frozenset()
    """Prompts of a round's own file that no round learns from, see `prompt_name`."""
    held_out: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    """Held-out units of rounds that learn from a file, which their suites measure."""
    index_changes: Mapping[str, IndexChange] = field(default_factory=dict)
    """Change of the index that each round with ``index`` makes."""
    longest_answer: int = 0
    """Most tokens that a round or suite samples after a prompt."""

    @property
    def held_examples(self) -> frozenset[str]:
        """Names of the prompts and documents of all rounds' held-out examples, see `names_of`."""
        return names_in(self.held_out.values())

    @property
    def policy_suites(self) -> list[Suite]:
        """Suites that policies are measured on: not the held-out pairs of reward models."""
        return [suite for suite in self.suites if suite.target_of not in self.reward_models]

    def encoder_with(self, index: DocumentIndex | None) -> PromptEncoder:
        """Return the encoder of prompts that are read behind documents of an index; None: behind none."""
        if index is None:
            return self.encoder
        if index.settings.form == "tool":
            return SearchingEncoder(self.encoder, index, EpisodeRules(context=self.context))
        return RetrievingEncoder(
            self.encoder, index, context=self.context, answer=self.longest_answer
        )

    def close(self) -> None:
        """End the worker processes of what suites are measured with."""
        for suite in self.suites:
            suite.close()

    def data_hashes(self, round_name: str) -> dict[str, str]:
        """Hash what a round draws from by sha256, for its snapshot's provenance."""
        pools: dict[str, Sequence[Prompt | Unit]] = {
            "prompts": self.prompts[round_name],
            "general": self.general.get(round_name, ()),
            "examples": self.examples.get(round_name, ()),
            "texts": self.texts.get(round_name, ()),
        }
        hashes = {name: pool_hash(pool) for name, pool in pools.items() if pool}
        if (change := self.index_changes.get(round_name)) is not None:
            hashes["documents"] = change.digest
        return hashes


def load_inputs(
    config: CampaignConfig, inbox_rows: Mapping[str, Sequence[FileRow]] | None = None
) -> Inputs:
    """Load and check; raises `UserError` for the first thing that cannot be used.

    Args:
        inbox_rows: rows that each round took of the inbox; rounds of a stream without any are awaited.
    """
    rubrics = _rubrics(config)
    model = resolve_model(config.policy)
    base = stored_base(config)
    _check_models(config, model, base)
    context = context_of(model, config)
    changes = _index_changes(config, model, begun=base is not None)
    awaited = _awaited(config, inbox_rows := inbox_rows or {})
    known = [spec for spec in config.rounds if spec.name not in awaited]
    encoder = _encoder_of(config, model if base is None else base.readable(model))
    reader = _reader_of(config, encoder, context, searches=bool(changes))
    data = RoundDataLoader(
        rule=config.gate.overlap,
        encoder=encoder,
        context=context - 1,
        taken=inbox_rows,
        windows=base is not None and base.holds_out_windows,
        trained_on={} if base is None else base.trained_on,
    ).load(known)
    prompts, general = data.prompts, data.general
    for name, rubric in rubrics:
        rubric.check_columns(prompts.get(name, ()), f"round {name}")
    for spec in known:
        if spec.algorithm.makes == "policy":  # A reward model samples nothing.
            pools = (prompts.get(spec.name, ()), general.get(spec.name, []))
            _check_fit(config, spec, pools, reader, context)
    suites = build_suites(
        config.model_copy(update={"rounds": tuple(known)}),
        SCHEMES,
        reader,
        context,
        data=data,
        stored=() if base is None else base.suite_hashes,
    )
    return Inputs(
        model=model,
        context=context,
        encoder=encoder,
        prompts=prompts,
        general=general,
        suites=suites,
        examples=data.examples,
        reward_models=_reward_models(config),
        reports=data.reports,
        awaited=awaited,
        texts=data.texts,
        held_texts=data.held_texts,
        held_names=data.held_names,
        held_out=data.held_out,
        index_changes=changes,
        longest_answer=longest_answer(config),
    )


def _check_models(config: CampaignConfig, model: Path, base: StoredBase | None) -> None:
    """Check the folders of the base and of what rounds need besides, and the code of their algorithms."""
    if base is not None:
        check_unchanged(model, config.policy, base.manifest, config.folder)
    # Engines sample where the learner learns, unless a cluster is joined that is better equipped.
    check_base(model, config.policy, resolve_device("auto"), backend=config.rollouts.backend)
    engines = config.rollouts
    device = "cuda" if engines.resources.gpus else resolve_device("auto")
    backend_named(engines.backend).check_parts(model, engines.parts, device)
    for index, spec in enumerate(config.rounds):
        spec.algorithm.check_here(config.home, f"rounds.{index}.algorithm")
        check_round_models(spec, model, config)


def _index_changes(config: CampaignConfig, model: Path, *, begun: bool) -> dict[str, IndexChange]:
    """Read the change of the index that each round makes, in order.

    Args:
        model: folder of the base.
        begun: rounds may have been decided, whose documents the file need not name any more.

    Raises:
        UserError: the first document that cannot be used, or key to forget that no earlier round adds.
    """
    retrieval = config.policy.retrieval or RetrievalConfig()
    layers = setting(text_config(model), "num_hidden_layers") if retrieval.layer else None
    if layers is not None and retrieval.layer is not None and retrieval.layer > layers:
        raise UserError(
            f"the model has {layers} layers, and texts are to be encoded by layer {retrieval.layer}",
            where="policy.retrieval.layer",
            remedy=f"set layer to at most {layers}, or leave it out for a third of them",
        )
    if retrieval.encoder is not None:
        check_sentence_encoder(Path(retrieval.encoder).expanduser(), "policy.retrieval.encoder")
    index, changes = DocumentIndex(settings=retrieval), {}
    for position, spec in enumerate(config.rounds):
        if spec.index is None:
            continue
        with within(f"rounds.{position}.index"):
            change = load_change(spec.index)
            if not begun:
                check_forgotten(change, index.keys)
        changes[spec.name] = change
        index, _ = index.changed(change, spec.name)
    return changes


def longest_answer(config: CampaignConfig) -> int:
    """Return the most tokens that a round or suite of the campaign samples after a prompt."""
    usual = config.defaults.sampling.max_tokens
    lengths = [suite.max_tokens or usual for suite in config.suites if suite.prompts is not None]
    for spec in config.rounds:
        lengths += [spec.sampling.max_tokens, spec.suite.max_tokens or 0]
        lengths.append(spec.replay.general_tokens or 0)
    return max(lengths, default=0)


def _encoder_of(config: CampaignConfig, folder: Path) -> PromptEncoder:
    """Return the encoder of prompts, after a check that the chat template shows the system message."""
    encoder = load_encoder(folder, config.policy)
    if config.policy.system is not None:
        probe = Prompt(id="policy.system", messages=probe_turns(("system", "user")))
        check_conversations(encoder, [probe], "policy.system")
    return encoder


def _rubrics(config: CampaignConfig) -> list[tuple[str, Rubric]]:
    """Build what scores a round's samples, and what only watches them, each with the round's name."""
    rubrics = []
    for index, spec in enumerate(config.rounds):
        if spec.rewards and spec.algorithm.material == "rollouts":
            rubrics.append((spec.name, build_rubric(spec.rewards, f"rounds.{index}.rewards")))
        if spec.gold:
            rubrics.append((spec.name, build_rubric(spec.gold, f"rounds.{index}.gold")))
    return rubrics


def _reward_models(config: CampaignConfig) -> frozenset[str]:
    """Name the rounds that make no policy."""
    return frozenset(r.name for r in config.rounds if r.algorithm.makes == "reward_model")


def _reader_of(
    config: CampaignConfig, encoder: PromptEncoder, context: int, *, searches: bool
) -> PromptEncoder:
    """Return the encoder of a policy that may search, which counts its tool; another policy's as it is.

    Args:
        searches: some round adds documents, so the chat template must write the tool.

    Raises:
        UserError: it does not.
    """
    retrieval = config.policy.retrieval
    if retrieval is None or retrieval.form != "tool":
        return encoder
    if searches:
        check_search(encoder, "policy.retrieval.form")
    empty = DocumentIndex(settings=retrieval)
    return SearchingEncoder(encoder, empty, EpisodeRules(context=context))


def _awaited(config: CampaignConfig, inbox_rows: Mapping[str, Sequence[FileRow]]) -> frozenset[str]:
    """Name the rounds that read a stream and have taken nothing of it yet."""
    return frozenset(
        spec.name
        for spec in config.rounds
        if spec.data is not None and spec.data.stream is not None and spec.name not in inbox_rows
    )


def _check_fit(
    config: CampaignConfig,
    spec: RoundConfig,
    pools: Sequence[Sequence[Prompt]],
    encoder: PromptEncoder,
    context: int,
) -> None:
    """Check that every prompt, and what a teacher reads instead, leaves room for a completion."""
    check_environments(config, spec, pools[0], encoder)
    environments = encoder.acting_in(open_environments(config, {spec.name}, context))
    check_system(pools[0], spec.system, f"round {spec.name!r}")
    for pool in pools:
        check_conversations(encoder, pool, f"round {spec.name!r}")
        check_lengths(
            pool, encoder, spec.sampling.max_tokens, context, f"round {spec.name!r}", environments
        )
    where = f"rounds.{spec.name}.algorithm.teacher"
    shown = map(spec.algorithm.teacher_prompt, pools[0])
    teacher = [prompt for prompt in shown if prompt is not None]
    check_lengths(teacher, encoder, spec.sampling.max_tokens, context, where)


def context_of(model: Path, config: CampaignConfig) -> int:
    """Choose the context engines are started for: as configured, else the model's own up to a limit.

    Raises:
        UserError: the configured one is longer than the model's, or the model has none.
    """
    sizes = sizes_of(model, trust_remote_code=config.policy.trust_remote_code)
    limit = sizes.context
    if limit is not None and limit < 1:
        raise UserError(
            f"the model's config says that it reads {limit} tokens",
            where=str(model / "config.json"),
            cause="max_position_embeddings or its like is damaged",
            remedy="restore the config.json that the weights were saved with",
        )
    chosen = config.rollouts.max_model_len
    if chosen is not None and limit is not None and chosen > limit and not sizes.stretched:
        raise UserError(
            f"engines are to read {chosen} tokens, and the model was made for {limit}",
            where="rollouts.max_model_len",
            cause="its positions end there (max_position_embeddings or its like in config.json)",
            remedy=f"set it to {limit} or less, or leave it out",
        )
    return chosen or min(limit or LONGEST_CONTEXT, LONGEST_CONTEXT)


def only_of(inputs: Inputs, view: CampaignConfig) -> Inputs:
    """Return the inputs with the suites of the rounds in view, and with those of the campaign."""
    names = {None, *(spec.name for spec in view.rounds)}
    return replace(inputs, suites=[s for s in inputs.suites if s.target_of in names])
