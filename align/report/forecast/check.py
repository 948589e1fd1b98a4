"""``keel config check``: everything that a run would refuse, without starting or writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.data.examples.contradictions import contradiction_lines
from align.data.replay.contributions import replay_lines
from align.gate.power.underpowered import check_power, foresee, power_lines
from align.gate.summary import counted
from align.learner.folder.sizes import MIB, artifact_bytes, learner_memory
from align.learner.folder.source import left_behind
from align.learner.model.targets import adaptation_of
from align.report.forecast.machine import machine_lines
from align.report.forecast.reward_calls import call_rewards
from align.round.episodes.environments import acts
from align.round.inputs import Inputs, load_inputs
from align.round.merge.checks import merge_lines
from align.round.records.artifacts import check_stored_artifacts, stateless_lines
from align.round.records.documents import planned_lines
from align.round.records.named_rounds import check_stored_named_rounds
from align.round.records.retirement import remaining_suites
from align.store.changes.amend import dropped_lines
from align.store.changes.gone import gone_lines, without_gone
from align.store.changes.settle import settle, with_pins
from align.store.ledger.amendments import dropped_for_good
from align.store.ledger.copy import ledger_copy
from align.store.store import ledger_place
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """Result of checking a valid campaign."""

    summary: str
    lines: tuple[str, ...]
    """Notes for the reader, such as amendments and rows left out of files."""
    gate: tuple[str, ...]
    """Power of the suites, and warnings if they have too few items."""


def check_campaign(
    config: CampaignConfig, *, models: bool = False, say: Callable[[str], None] = lambda _: None
) -> Checked:
    """Check a campaign, its inputs, its rewards, and that its store may go on with it.

    Args:
        models: also call rewards that ask a model or a server.
        say: told while a reward is waited for.

    Raises:
        UserError: the first thing that cannot be used.
    """
    with ledger_copy(config) as ledger:
        settled = settle(config, ledger, where=ledger_place(config))
        dropped, closed = dropped_for_good(ledger.database), ledger.closed()
        settled.check()
        plain = tuple(spec for spec in config.rounds if spec.name not in dropped)
        whole = with_pins(config.model_copy(update={"rounds": plain}), settled.pins)
        gone = (*dropped_lines(config, ledger.database), *gone_lines(whole.rounds, closed))
        whole = whole.model_copy(update={"rounds": without_gone(whole.rounds, closed)})
        check_stored_artifacts(whole, ledger)
        check_stored_named_rounds(whole, ledger)
        states = {record.name: record.state for record in ledger.rounds()}
        inputs = load_inputs(whole)
        planned = foresee(whole, remaining_suites(whole.rounds, inputs, ledger), ledger)
    try:
        warnings = check_power(planned, whole.gate)
        adapted = adaptation_of(inputs.model, config.policy)
        extra = left_behind(inputs.model, config.policy)
        skipped = call_rewards(whole, inputs, closed, models=models, say=say)
        prompts = sum(len(pool) for pool in inputs.prompts.values())
        return Checked(
            summary=f"{counted(len(plain), 'round')}, {counted(len(inputs.suites), 'suite')}, "
            f"{counted(prompts, 'prompt')}",
            lines=(
                *(f"amended since the store was begun: {s}" for s in settled.comparison.sentences),
                *(f"round {name}: {report}" for name, report in inputs.reports.items()),
                *replay_lines(whole.rounds, states),
                *stateless_lines(whole.rounds, states),
                *([] if closed else planned_lines(whole, inputs)),
                *contradiction_lines(whole.rounds, inputs.examples, states, inputs.held_out),
                *gone,
                *skipped,
                *unheard(config, inputs),
                *untemplated(whole, inputs),
                *([f"left out of the model folder: {', '.join(extra)}"] if extra else []),
                *([] if adapted is None else [str(adapted)]),
                *held_weights(whole, inputs.model),
                *merge_lines(whole, {s.name for s in whole.rounds if s.name not in closed}),
                *machine_lines(config, inputs.model, inputs.context),
            ),
            gate=(*power_lines(planned), *warnings),
        )
    finally:
        inputs.close()


def held_weights(config: CampaignConfig, model: Path) -> list[str]:
    """Say what methods that hold the weights themselves keep beside them, where a round lists any."""
    if not any(method.weight_copies for spec in config.rounds for method in spec.retention):
        return []
    memory = max(learner_memory(model, config.policy, s).retention for s in config.rounds)
    disk = max(
        artifact_bytes(model, config.policy, spec, earlier=index)
        for index, spec in enumerate(config.rounds)
    )
    stored = f", and {disk / MIB:,.1f} MiB of disk for each accepted round" if disk else ""
    return [f"retention: takes {memory / MIB:,.1f} MiB of memory on each rank{stored}"]


def unheard(config: CampaignConfig, inputs: Inputs) -> list[str]:
    """Return a line on a chat setting of a campaign that has no chats; empty if there is none."""
    names = ("system", "chat_template_kwargs", "chat_template_date")
    stated = [name for name in names if getattr(config.policy, name) not in (None, {})]
    pools = (*inputs.prompts.values(), *inputs.general.values(), *(s.pool for s in inputs.suites))
    chats = any(prompt.messages for pool in pools for prompt in pool)
    chats = chats or any(suite.renders_chats for suite in config.suites)
    if not stated or chats or inputs.awaited:
        return []
    return [
        f"policy.{stated[0]}: no prompt of this campaign is a chat, so only keel serve and exported "
        "folders use it; prompts: {chat: true} makes chats of texts"
    ]


def untemplated(config: CampaignConfig, inputs: Inputs) -> list[str]:
    """Name rounds whose prompts are texts, although the model has a chat template.

    A round that acts makes chats of texts itself.
    """
    return [
        f"round {spec.name}: its prompts are texts and the model has a chat template, which is not "
        "applied to them; prompts: {chat: true} makes each a user's message"
        for spec in config.rounds
        if spec.prompts is not None
        and not acts(spec)
        and are_bare(inputs.prompts.get(spec.name, ()), inputs.encoder)
    ]


def are_bare(prompts: Sequence[Prompt], encoder: PromptEncoder) -> bool:
    """Tell whether prompts are plain texts beside a chat template; one rendered with it is not plain."""
    if not prompts or encoder.tokenizer.chat_template is None:
        return False
    special = [str(token) for token in encoder.tokenizer.all_special_tokens]
    return not any(
        prompt.text is None or any(token in prompt.text for token in special) for prompt in prompts
    )


WHOLE = ("lora", "ranks", "gradient_checkpointing")
"""Settings of the policy that a reward model does not share: all its weights learn, in one process."""


def notes_of(config: CampaignConfig) -> Iterator[str]:
    """Yield a line on settings that some of the rounds have no use for."""
    judges = [spec.name for spec in config.rounds if spec.algorithm.makes == "reward_model"]
    unused = [f"policy.{name}" for name in WHOLE if config.policy.changed(name)]
    if judges and unused:
        yield (
            f"reward models ({', '.join(judges)}) learn all their weights in one process: "
            f"{', '.join(unused)} {'does' if len(unused) == 1 else 'do'} not apply to them"
        )
