"""Rules between the settings of a round, and between them and those of its campaign.

Each refuses a setting that would have no effect, or another effect than its name says. It raises a
ValueError that states the rule, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from rollouts.errors import nearest

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig, RoundConfig, RoundSettings
    from align.config.gate import SuiteConfig
    from align.config.policy import BankConfig, PolicyConfig


SAMPLED_TOKENS = frozenset({"k1", "k2", "k3"})
"""Estimators of the KL that assume tokens sampled by the policy itself."""
SAMPLED_METRICS = ("reward", "groups", "completions")
LEARNT_METRICS = ("loss", "pairs", "ratings", "candidates", "value", "kl", "entropy", "grad_norm")
"""First parts of the names of metrics that a step reports, of its samples and of its loss."""


def check_anchors(spec: RoundConfig) -> None:
    """Refuse anchors of weight 0, estimators for another kind of text, and settings that a reference
    lacks."""
    for source in ("new", "past", "general"):
        where, terms = f"anchors.{source}", getattr(spec.anchors, source)
        if terms and not any(term.beta or term.target for term in terms):
            raise ValueError(
                f"{where}: their total weight is 0, so they have no effect; give one of them a beta above "
                "0, or write [] for none"
            )
        reference = terms if source == "new" and spec.algorithm.anchors_are_reference else ()
        for term in reference:
            if setting := term.changed("estimator", "target", "rate", "bounds"):
                raise ValueError(
                    f"{where}: {setting} belongs to a KL term, and {spec.algorithm.name} takes these "
                    f"anchors as its reference, where only their betas count; remove {setting}"
                )
            if term.follow is not None and term.follow.above is not None:
                raise ValueError(
                    f"{where}: follow.above is the KL of a term, and {spec.algorithm.name} takes these "
                    "anchors as its reference, whose KL no step measures; remove above, and use every or "
                    "after_stagnation"
                )
        if _sampled(spec, source) and any(term.estimator == "forward" for term in terms):
            raise ValueError(
                f"{where}: estimator forward is for answers that the anchor wrote, and the policy samples "
                f"those of {source} prompts; use full"
                + (", or set replay.general_answers to stored" if source == "general" else "")
            )


def check_composed(suites: Sequence[SuiteConfig], rounds: Sequence[str]) -> None:
    """Refuse suites that compose the skill of a round which does not exist, or one skill with itself."""
    for index, suite in enumerate(suites):
        where = f"suites.{index}.composes"
        if unknown := [name for name in suite.composes or () if name not in rounds]:
            raise ValueError(f"{where}: {unknown[0]!r} is no round; {nearest(unknown[0], rounds)}")
        if suite.composes is not None and len(set(suite.composes)) == 1:
            raise ValueError(
                f"{where}: {suite.composes[0]!r} stands there twice, and the composition gap compares the "
                "skills of two rounds at once with each alone; name two rounds"
            )


def check_heldout(spec: RoundConfig) -> None:
    """Refuse a held-out share of prompts that are not the round's own or not what it is measured on."""
    share = spec.prompts.heldout if spec.prompts else None
    if share is not None and spec.suite.prompts is not None:
        raise ValueError(
            f"prompts.heldout is {share:g} and suite.prompts names other prompts; remove one: the round is "
            "measured on a share of its own prompts, or on those"
        )
    for where, pool in (
        ("suite.prompts", spec.suite.prompts),
        ("replay.general_prompts", spec.replay.general_prompts),
    ):
        if pool is not None and pool.heldout is not None:
            raise ValueError(
                f"{where}.heldout is {pool.heldout:g}: only a round's own prompts are held out of "
                "training; remove it"
            )


def check_staleness(spec: RoundConfig) -> None:
    """Refuse samples of older weights for a loss or KL term that would treat them as the learner's own."""
    corrects = "importance" not in spec.algorithm.unused
    if spec.sampling.max_staleness and spec.importance.level == "none" and corrects:
        raise ValueError(
            f"max_staleness is {spec.sampling.max_staleness} and importance.level is none: samples "
            "of older weights would count as the learner's own; set importance.level to token or "
            "sequence, or max_staleness to 0"
        )
    for source in (
        ("new", "past", "general") if spec.sampling.max_staleness and not corrects else ()
    ):
        is_term = source != "new" or not spec.algorithm.anchors_are_reference
        estimators = [term.estimator for term in getattr(spec.anchors, source)]
        uncorrected = [name for name in estimators if name in SAMPLED_TOKENS]
        if is_term and _sampled(spec, source) and uncorrected:
            raise ValueError(
                f"anchors.{source}: estimator {uncorrected[0]} takes sampled tokens for the policy's own, "
                f"max_staleness is {spec.sampling.max_staleness}, and {spec.algorithm.name} gives samples "
                "of older weights no importance: its gradient would be off by a quarter at a drift of 0.03 "
                "nats a token; use full, or set max_staleness to 0"
            )


def check_used(spec: RoundConfig, defaults: RoundSettings, where: str) -> None:
    """Refuse a setting of the round that its algorithm does not read.

    A setting from ``defaults`` is allowed, since it may be meant for the other rounds.
    """
    for key, why in spec.algorithm.unused.items():
        setting = attrgetter(key)
        if setting(spec) != setting(defaults):
            # A list of methods says which anchors there are, so it is what the file has.
            listed = key == "anchors" and "retention" in spec.model_fields_set
            blamed = "retention" if listed else key
            raise ValueError(
                f"{where}.{blamed}: {spec.algorithm.name} does not use it: {why}; remove it from the "
                "round"
            )


def check_replay(spec: RoundConfig, defaults: RoundSettings, where: str) -> None:
    """Refuse a replay of examples in a round that learns from none; one of ``defaults`` is allowed."""
    algorithm, share = spec.algorithm, spec.replay.examples
    if not share or share == defaults.replay.examples:
        return
    if algorithm.material == "rollouts" or not algorithm.learns_here:
        why = "learns from its own samples" if algorithm.learns_here else "trains in its own way"
        raise ValueError(
            f"{where}.replay.examples is {share:g} and {algorithm.name} {why}, so it cannot learn from the "
            "examples of earlier rounds; remove it, since replay.past samples their prompts again, or "
            "choose an algorithm that learns from a file"
        )


def check_draw(rounds: Sequence[RoundConfig], index: int, defaults: RoundSettings) -> None:
    """Refuse a draw of earlier prompts that are not replayed, or by scores that they do not have.

    A draw from ``defaults`` is allowed, since it may be meant for the other rounds.
    """
    spec, where = rounds[index], f"rounds.{index}.replay.draw"
    draw = spec.replay.draw
    if draw.name == "balanced" or draw == defaults.replay.draw:
        return
    if not spec.algorithm.learns_here:
        raise ValueError(
            f"{where} is {draw.name}, and {spec.algorithm.name} trains in its own way and replays nothing; "
            "remove draw from the round"
        )
    if not spec.replay.past:
        raise ValueError(
            f"{where} is {draw.name}, which chooses among prompts of earlier rounds, and replay.past is 0; "
            "raise replay.past, or remove draw"
        )
    earlier = [r for r in rounds[:index] if r.algorithm.makes == "policy"]
    if draw.reads_scores and earlier and not any(r.rewards for r in earlier):
        raise ValueError(
            f"{where} is {draw.name}, which draws by the scores of earlier prompts, and no round before "
            f"{spec.name!r} has rewards; use age, which needs none, or reservoir"
        )


def check_rehearsal(rounds: Sequence[RoundConfig], index: int, defaults: RoundSettings) -> None:
    """Refuse answers and texts in a round that another program trains, and answers that nothing scores.

    Settings from ``defaults`` are allowed, since they may be meant for the other rounds.
    """
    spec, where = rounds[index], f"rounds.{index}.replay"
    for name in ("synthesis", "answers", "pretraining"):
        value = getattr(spec.replay, name)
        if value is None or value == getattr(defaults.replay, name):
            continue
        if not spec.algorithm.learns_here:
            raise ValueError(
                f"{where}.{name}: {spec.algorithm.name} trains in its own way, and its loss and prompts "
                f"are its own; remove {name} from the round"
            )
    answers = spec.replay.answers
    earlier = [r for r in rounds[:index] if r.algorithm.makes == "policy"]
    if answers is None or answers == defaults.replay.answers or answers.by == "confidence":
        return
    if earlier and not any(r.rewards for r in earlier):
        raise ValueError(
            f"{where}.answers: by reward chooses answers by the rewards of earlier rounds, and no round "
            f"before {spec.name!r} has any; set by: confidence"
        )


def check_dropout(spec: RoundConfig, index: int, policy: PolicyConfig) -> None:
    """Refuse dropout in a round that samples, since engines have no dropout and their logprobs differ."""
    if policy.lora is None or not policy.lora.dropout or spec.algorithm.makes != "policy":
        return
    replay = spec.replay
    past = index > 0 and replay.past > 0
    pool = replay.general_prompts is not None and replay.general_answers == "sampled"
    samples_itself = spec.algorithm.material == "rollouts"
    if not (samples_itself or past or (pool and replay.general > 0)):
        return
    use = "learns from its own samples" if samples_itself else "samples answers to replayed prompts"
    raise ValueError(
        f"rounds.{index}: policy.lora.dropout is {policy.lora.dropout:g} and the round {use}: engines have "
        "no dropout, so their logprobs would differ from the learner's; set policy.lora.dropout to 0"
        + ("" if samples_itself else ", or replay.past and replay.general of the round")
    )


def check_following(spec: RoundConfig, index: int) -> None:
    """Refuse anchors that move on a metric which the round does not report."""
    samples = spec.algorithm.material == "rollouts"
    for source in ("new", "past", "general"):
        for term in getattr(spec.anchors, source):
            follow = term.follow
            if follow is None or follow.after_stagnation is None:
                continue
            where = f"rounds.{index}.anchors.{source}: follow.metric {follow.metric!r}"
            kind = follow.metric.partition("/")[0]
            if kind in SAMPLED_METRICS and not samples:
                raise ValueError(
                    f"{where} is of samples, and {spec.algorithm.name} learns from a file; name a metric "
                    "of its loss, such as loss/policy with goal: lower, or pairs/accuracy of pairs"
                )
            if kind not in (*SAMPLED_METRICS, *LEARNT_METRICS):
                raise ValueError(
                    f"{where} is none that a step reports; metrics begin with "
                    f"{', '.join((*SAMPLED_METRICS, *LEARNT_METRICS))}"
                )


def _sampled(spec: RoundConfig, source: str) -> bool:
    """Tell if the policy answers prompts of this class itself."""
    if source == "new":
        return spec.algorithm.material == "rollouts"
    return source == "past" or spec.replay.general_answers == "sampled"


def check_bank(config: CampaignConfig) -> None:
    """Refuse settings that make no sense beside a bank.

    Raises:
        ValueError: the first of them, with what to set.
    """
    policy, bank = config.policy, config.policy.bank
    if bank is None:
        return
    if config.rollouts.backend == "vllm" and bank.top_k > 1:
        raise ValueError(
            f"policy.bank.top_k: {bank.top_k} increments mix for each prompt, and vLLM serves one adapter "
            "for each request; set policy.bank.top_k to 1, or rollouts.backend to transformers"
        )
    if policy.ranks > 1:
        raise ValueError(
            f"policy.bank: a bank is trained on one rank, and policy.ranks is {policy.ranks}; set it to 1"
        )
    if policy.gradient_checkpointing:
        raise ValueError(
            "policy.bank: gradient_checkpointing computes layers again when other adapters may act; set "
            "it to false"
        )
    for index, spec in enumerate(config.rounds):
        _check_bank_round(spec, f"rounds.{index}", bank)


def _check_bank_round(spec: RoundConfig, where: str, bank: BankConfig) -> None:
    if spec.algorithm.makes != "policy":
        return
    if not spec.algorithm.learns_here:
        raise ValueError(
            f"{where}.algorithm: {spec.algorithm.name} trains elsewhere, and an adapter of a bank needs "
            "keys that Keel trains; choose another algorithm, or remove policy.bank"
        )
    if spec.algorithm.material == "texts":
        raise ValueError(
            f"{where}.algorithm: {spec.algorithm.name} learns from texts, which have no prompt to retrieve "
            "an adapter by; choose another algorithm, or remove policy.bank"
        )
    replays = {
        "past": spec.replay.past > 0 and spec.replay.changed("past") is not None,
        "rewards": spec.replay.rewards,
        "examples": spec.replay.examples > 0,
        "synthesis": spec.replay.synthesis is not None,
        "draw": spec.replay.draw.name != "balanced",
    }
    if name := next((name for name, replayed in replays.items() if replayed), None):
        raise ValueError(
            f"{where}.replay.{name}: earlier rounds keep their own adapters in a bank, so nothing of them "
            f"is replayed; remove {name}"
        )
    if spec.merge is not None:
        raise ValueError(
            f"{where}.merge: {spec.merge.name} merges the weights of rounds, and in a bank each round has "
            "an adapter of its own; remove merge, or policy.bank"
        )
    if spec.replay.answers is not None or spec.replay.pretraining is not None:
        raise ValueError(
            f"{where}.replay: answers and texts of other rounds would be learnt by this round's adapter; "
            "remove answers and pretraining, or policy.bank"
        )
    for method in spec.retention:
        if method.name != "kl_anchors":
            raise ValueError(
                f"{where}.retention: {method.name} holds weights to those of earlier rounds, and in a bank "
                "each round has an adapter of its own over a frozen base; use kl_anchors, whose parent is "
                "the base there, or remove policy.bank"
            )
    for rung in ("interpolate", "distil"):
        if getattr(spec.repair, rung) is not None:
            raise ValueError(
                f"{where}.repair.{rung}: a bank's round changes nothing that earlier rounds taught, so "
                f"there is nothing to repair that way; set {rung} to false"
            )
    if spec.sampling.in_flight:
        raise ValueError(
            f"{where}.sampling: in_flight is on and engines serve adapters of a bank: a request that runs "
            "keeps its adapter; set in_flight to false"
        )
    if bank.mixing == "batch" and spec.sampling.max_staleness:
        raise ValueError(
            f"{where}.sampling.max_staleness: under policy.bank.mixing: batch a prompt's adapters depend "
            "on those it is asked with, so samples may not be drawn ahead; set max_staleness to 0, or "
            "mixing to example"
        )


def check_overrides(rounds: Sequence[RoundConfig], index: int) -> None:
    """Refuse an override of a round that does not exist, comes later, or makes no policy."""
    spec, names = rounds[index], [other.name for other in rounds]
    if spec.overrides and spec.algorithm.makes != "policy":
        raise ValueError(
            f"rounds.{index}.overrides: a round of {spec.algorithm.name} makes no policy and overrides "
            f"none, got {', '.join(spec.overrides)}; remove overrides"
        )
    known = [other.name for other in rounds[:index] if other.algorithm.makes == "policy"]
    for name in spec.overrides:
        if name in known:
            continue
        wrong = "a round that does not exist"
        if name in names:
            distance = names.index(name) - index
            wrong = "a round that makes no policy" if distance < 0 else "a round that comes later"
            wrong = wrong if distance else "the round itself"
        remedy = nearest(name, known) if known else "no round comes before it, so remove overrides"
        raise ValueError(f"rounds.{index}.overrides: {name!r} names {wrong}; {remedy}")


def check_engines(config: CampaignConfig) -> None:
    """Refuse engines whose numbers or weights a round does not allow for.

    Raises:
        ValueError: the first of them, with what to set.
    """
    engines = config.rollouts
    differ = engines.changed("quantization", "dtype")
    for index, spec in enumerate(config.rounds):
        where = f"rounds.{index}"
        samples = spec.algorithm.material == "rollouts" and spec.algorithm.learns_here
        corrects = "importance" not in spec.algorithm.unused
        if differ is not None and samples and corrects and spec.importance.level == "none":
            raise ValueError(
                f"{where}: importance.level is none, and by rollouts.{differ} engines sample from another "
                "distribution than the learner's: samples would count as the learner's own; set "
                f"importance.level to token or sequence, or leave {differ} out"
            )
        if engines.weight_transfer != "host" and spec.sampling.in_flight:
            raise ValueError(
                f"{where}: sampling.in_flight leaves weights beside engines that sample, and by "
                f"rollouts.weight_transfer: {engines.weight_transfer} the learner sends them when nothing "
                "runs; set in_flight to false, or weight_transfer to host"
            )
