"""Meters of a round: rollout statistics, drift from earlier snapshots, and the parity probe.

Drift is the mean full-vocabulary KL per token, policy against snapshot, on the policy's own samples:
``K_new`` from the parent on this round's prompts, ``K_old(k)`` from the owner on round k's prompts,
``K_gen`` from the base on the general pool. Meter samples are not part of the training budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import inf, isnan
from typing import TYPE_CHECKING

from align.algorithms.policy_gradient.advantages import has_signal
from align.algorithms.rows import Batch, Row, row_of
from align.errors import ParityError, RunError
from align.round.times.clock import phase
from rollouts.collect import collect
from rollouts.engines.protocol import RolloutEngine, ScoreRequest
from rollouts.prompts import PromptEncoder
from rollouts.types import Episode, Prompt, Sampling, ScoredGroup, WeightVersion

if TYPE_CHECKING:
    from align.data.examples.stream import Unit
    from align.learner.learner import Learner
    from align.learner.ranks.group import GroupTraining, LearnerGroup
    from align.learner.training import Training
    from align.round.plan import RoundPlan

METER_PROMPTS = 8
"""Prompts of each kind that one drift measurement samples."""


def rollout_metrics(scored: Sequence[ScoredGroup], batch: Batch) -> dict[str, float]:
    """Measure rewards, their parts, and how much of the batch carries a signal.

    Without samples only the tokens of the batch are counted.
    """
    metrics = {f"batch/{source}_tokens": float(n) for source, n in batch.class_tokens.items()}
    for source, group in ((s.group.prompt.source, s.group) for s in scored):
        name = f"rollouts/{source}"
        metrics[name] = metrics.get(name, 0.0) + len(group.completions_G)
    new = [s for s in scored if s.group.prompt.source == "new"]
    scores = [score for group in new for score in group.scores_G]
    completions = [c for group in new for c in group.group.completions_G]
    if not new:
        return metrics
    usable = [c for c in completions if c.token_ids]
    if rewards := [s.value for s in scores if s.value is not None]:
        metrics["reward/mean"] = _mean(rewards)
    metrics |= {
        "reward/failed_share": _mean([s.status == "failed" for s in scores]),
        "reward/abstained_share": _mean([s.status == "abstained" for s in scores]),
        "groups/zero_variance_share": _mean([not _varies(group) for group in new]),
        "completions/tokens_mean": _mean([c.num_sampled for c in usable]),
        "completions/length_cut_share": _mean([c.finish_reason == "length" for c in usable]),
        "completions/failed_share": _mean([not c.token_ids for c in completions]),
    }
    for part in sorted({name for s in scores for name in s.parts}):
        values = [v for s in scores if (v := s.parts.get(part)) is not None]
        metrics[f"reward/{part}"] = _mean(values)
    return metrics | _episode_rewards([c.episode for c in usable if c.episode is not None])


def _episode_rewards(episodes: Sequence[Episode]) -> dict[str, float]:
    """Measure what environments themselves give episodes and their turns; empty where they give nothing."""
    rewards = [e.reward for e in episodes if e.reward is not None]
    of_turns = [r for e in episodes for r in e.turn_rewards if r is not None]
    metrics = {"episodes/environment_reward": rewards, "episodes/turn_reward": of_turns}
    return {name: _mean(values) for name, values in metrics.items() if values}


@phase("drift meters")
def measure_drift(
    plan: RoundPlan,
    engine: RolloutEngine,
    encoder: PromptEncoder,
    training: Training | GroupTraining,
    version: WeightVersion,
) -> dict[str, float]:
    """Measure K_new, K_old of every earlier round, and K_gen; see the module's docstring.

    Where the engines hold the learner's weights these samples also prove it: with ``max_staleness`` those
    that are learnt from come a step too late to be compared.

    Args:
        version: version of the weights that the engines hold.
    """
    prompts, references = plan.mixture.meter_prompts(METER_PROMPTS), plan.references
    groups = collect(
        engine,
        prompts,
        [1] * len(prompts),
        encoder,
        plan.sampling,
        seed=plan.seed,
        policy=version,
        environments=plan.environments,
    )
    rows: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for group in groups:
        prompt = group.prompt
        name, anchor = {
            "new": ("K_new", references.named("parent")),
            "past": (f"K_old/{prompt.round}", prompt.owner or references.base),
            "general": ("K_gen", references.base),
        }[prompt.source]
        rows[name, anchor] += [row_of(group, c, None) for c in group.completions_G if c.token_ids]
    return {
        f"drift/{name}": training.divergence(meter_rows, anchor)
        for (name, anchor), meter_rows in rows.items()
        if meter_rows
    }


@phase("drift meters")
def heldout_texts(
    learner: Learner | LearnerGroup, units: Sequence[Unit], most: int = METER_PROMPTS
) -> dict[str, float]:
    """Measure the mean negative log-likelihood of a token of held-out texts, in nats; empty without texts.

    Args:
        units: held-out windows, the first ``most`` of which are measured.
    """
    rows = [row for unit in units[:most] for row in unit.rows]
    if not rows:
        return {}
    logprobs = [value for row in learner.completion_logprobs(rows) for value in row]
    return {"rehearsal/heldout_texts": -_mean(logprobs)}


@phase("parity probe")
def probe(
    engine: RolloutEngine,
    encoder: PromptEncoder,
    learner: Learner | LearnerGroup,
    prompts: Sequence[Prompt],
    max_tokens: int,
) -> float:
    """Return the largest logprob difference between every engine and the learner on fresh samples.

    It is measured as by `align.learner.training.gap_of`.

    Raises:
        ParityError: above the tolerance; the candidate must not be measured by such engines.
    """
    sampling = Sampling(max_tokens=max_tokens)
    groups = collect(
        engine,
        prompts,
        [1] * len(prompts),
        encoder,
        sampling,
        seed=0,
        policy="probe",
    )
    rows = [row_of(g, c, None) for g in groups for c in g.completions_G if c.token_ids]
    if not rows:
        raise RunError("no engine answered a single probe prompt", where="parity probe")
    requests = [
        ScoreRequest(prompt_ids=r.prompt_ids, completion_ids=r.completion_ids) for r in rows
    ]
    pairs = zip(engine.score(requests), learner.completion_logprobs(rows), strict=True)
    gaps = [
        abs(a - b) / max(1.0, abs(a))
        for engine_logprobs_T, learner_logprobs_T in pairs
        for a, b in zip(engine_logprobs_T, learner_logprobs_T, strict=True)
    ]
    # A NaN would lose every comparison with a number, and the probe would pass.
    gap = inf if any(map(isnan, gaps)) else max(gaps)
    if not gap <= learner.tolerance:
        raise ParityError(
            f"engine and learner disagree by {gap:.3g} nats after the last sync, tolerance "
            f"{learner.tolerance:g}",
            where="parity probe",
            cause="an engine holds other weights than the learner",
            remedy="run again; if it stays, report the model and engine version",
        )
    return gap


def _varies(group: ScoredGroup) -> bool:
    values = [score.value for score in group.scores_G if score.value is not None]
    return bool(values) and has_signal([value - values[0] for value in values])


def _mean(values: Sequence[float]) -> float:
    """Return the mean, or 0 of nothing: metrics stay finite numbers."""
    return float(sum(values)) / len(values) if values else 0.0
