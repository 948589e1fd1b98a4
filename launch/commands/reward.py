"""``keel reward``: which rewards there are, what they take, and what they say of given answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launch.arguments import AsJson, print_json
from rollouts.errors import UserError

if TYPE_CHECKING:
    from rewards.trial.trial import Trial

BARS = " ▁▂▃▄▅▆▇█"
SAMPLES = 4
"""Answers sampled to a prompt, where no group size is named."""

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="A name, pkg.mod:function or file.py:function.")
]
GroupSize = Annotated[
    int | None, typer.Option(min=2, help="Of the round; without it, all answers to a prompt.")
]

reward_app = typer.Typer(help="Find, write and try rewards.", no_args_is_help=True)


@reward_app.command("list")
def reward_list(as_json: AsJson = False) -> None:
    """Show every reward that has a name, and what is wrong with those that cannot be used."""
    from rewards.registry import known_rewards

    rewards = known_rewards()
    if as_json:
        print_json(rewards)
        return
    wide = max(len(info.name) for info in rewards)
    for info in rewards:
        text = info.summary if info.problem is None else f"BROKEN: {info.problem.splitlines()[0]}"
        typer.echo(f"{info.name:<{wide}}  {info.origin:<6}  {text}")


@reward_app.command("show")
def reward_show(spec: Spec, as_json: AsJson = False) -> None:
    """Show what a reward does, its options, the columns it needs and what it runs under."""
    from rewards.isolation.levels import isolation_of
    from rewards.registry import describe, find_reward
    from rewards.trial.trial import TrialSpec

    info = describe(spec)
    isolation = isolation_of(TrialSpec(name=spec), find_reward(spec).level)
    if as_json:
        print_json({"reward": info, "isolation": isolation})
        return
    options = [
        f"  {option.name}: {option.type}" + ("" if option.required else f" = {option.default!r}")
        for option in info.options
    ]
    columns = ", ".join(info.columns) or "none"
    lines = [
        f"{info.name} ({info.origin}{', async' if info.asynchronous else ''})",
        *([info.doc] if info.doc else []),
        "",
        "options:" if options else "options: none",
        *options,
        f"columns it needs: {columns}" + ("; takes any other" if info.anything else ""),
        *([] if info.range is None else ["values: {:g} to {:g}".format(*info.range)]),
        *(["asks a model"] if info.asks_a_model else []),
        isolation.line(spec),
    ]
    typer.echo("\n".join(lines))


@reward_app.command("new")
def reward_new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the function and of its file.")
    ],
    folder: Annotated[Path, typer.Option(help="Where to write.")] = Path(),
) -> None:
    """Write a reward to begin with, and a test of it that passes."""
    from rewards.signatures.skeleton import write_skeleton

    reward, test = write_skeleton(name, folder)
    typer.echo(f"{reward}: the reward, as {reward}:{name}\n{test}: its test, run with pytest")


@reward_app.command("test")
def reward_test(
    spec: Spec,
    data: Annotated[str, typer.Option(help="Rows with prompt, completion and other columns.")],
    completions: Annotated[
        str | None, typer.Option(help="Answers, where the data holds none.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Folder of a snapshot or model whose answers are sampled with vLLM."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a sampled answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampled answers.")] = 1.0,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the reward, k=v in YAML. Repeatable.")
    ] = None,
    group_size: GroupSize = None,
    isolation: Annotated[
        Literal["auto", "inline", "process", "sandbox"], typer.Option(help="What it runs under.")
    ] = "auto",
    deadline_s: Annotated[
        float | None, typer.Option(min=0.001, help="For one group, by default 5; not inline.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Canaries must stay below; without it, the median score.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of the data to read.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score given or sampled answers and show all that a round would suffer from, before there is one.

    Exit 1 where samples failed.
    """
    from rewards.trial.data import read_prompts, read_samples
    from rewards.trial.trial import TrialSpec, check_reward, try_reward

    options = dict(_option(text) for text in option or ())
    trial_spec = TrialSpec(name=spec, options=options, isolation=isolation, deadline_s=deadline_s)
    if policy is None:
        samples = read_samples(data, completions, limit)
    elif completions is not None:
        raise UserError(
            "answers are either given or sampled", remedy="drop --completions or --policy"
        )
    else:
        from launch.cluster.policy_samples import sample_policy
        from rollouts.types import Sampling

        prompts = read_prompts(data, limit)
        check_reward(trial_spec, prompts)
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
        samples = sample_policy(policy, prompts, group_size or SAMPLES, sampling)
    trial = try_reward(
        trial_spec, samples, group_size, threshold, say=lambda text: typer.echo(text, err=True)
    )
    if as_json:
        print_json(trial)
    else:
        typer.echo("\n".join(_trial_lines(trial)))
    if trial.failed:
        raise typer.Exit(1)


def _option(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"option {text!r} has no value", remedy="write --option name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"option {text!r} is not valid YAML", remedy="quote the value") from error


def _trial_lines(trial: Trial) -> list[str]:
    lines = [
        *trial.isolation,
        f"samples     {trial.samples}: {trial.scored} scored, {trial.abstained} abstained, "
        f"{trial.failed} failed",
    ]
    if (scores := trial.distribution) is not None:
        lines += [
            f"scores      min {scores.min:.4g}  p10 {scores.p10:.4g}  median {scores.median:.4g}  "
            f"p90 {scores.p90:.4g}  max {scores.max:.4g}",
            f"            |{bars(scores.histogram)}|",
        ]
    timing = trial.timing
    lines.append(
        f"per sample  p50 {1000 * timing.p50_s:.3g} ms  p99 {1000 * timing.p99_s:.3g} ms  "
        f"(first call with set-up {timing.first_call_s:.3g} s)"
    )
    if trial.groups:
        share = trial.zero_variance / trial.groups
        lines.append(
            f"groups      {trial.groups}, {share:.0%} with equal scores: they teach nothing"
        )
    else:
        lines.append("groups      none with two scores at this group size")
    for failure in trial.failures:
        lines += [f"failures    {failure.count} {failure.kind}; the first:"]
        lines += [f"    {line}" for line in failure.trace.splitlines()]
    fooled = [canary for canary in trial.canaries if not canary.passed]
    unscored = [canary.name for canary in trial.canaries if canary.score is None]
    if trial.canaries:
        lines.append(f"canaries    {len(trial.canaries)}, fooled by {len(fooled)}")
    else:
        lines.append("canaries    not judged: no two scores differ; name a --threshold")
    if unscored:
        lines.append(f"    never scored: {', '.join(unscored)}")
    for canary in fooled:
        lines.append(
            f"    {canary.name}: on {canary.fooled} of {canary.prompts} prompts, "
            f"up to {canary.score:.4g}"
        )
    return lines + [f"note        {note}" for note in trial.notes]


def bars(counts: tuple[int, ...]) -> str:
    """Draw one character per count, as high as its share of the largest; only zero is blank."""
    most = max(counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts)
