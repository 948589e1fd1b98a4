"""Claim: worker processes cost next to nothing, share the work, and a sample that hangs costs its deadline.

There are three measurements of `rewards.isolation`, each through a rubric as a round uses it. Rate: 4,096
samples of 5 ms each on two workers. Overhead: the time of a sample in a worker process minus that inline,
for a reward that does next to nothing. Hang: a step of 128 samples, one of which never returns, with a
deadline per sample and with one for the batch alone. Workers are warm, as from a round's second step on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import middle, parser, prepare, save, show, verdict

SAMPLE_S = 0.005
WORKERS = 2
RATE = 0.9
"""Smallest share of the ideal rate of two workers."""
OVERHEAD_S = 0.001
LATE_S = 1.0
"""Seconds after its deadline by which a step must have ended."""
HANG = "hang"
GROUP = 8


def waits(completions: Sequence[str]) -> list[float]:
    """Take 5 ms for each sample, as a reward that calls a service; oversleeping is made up for."""
    due = time.monotonic()
    for _ in completions:
        due += SAMPLE_S
        time.sleep(max(0.0, due - time.monotonic()))
    return [1.0] * len(completions)


def counts(completions: Sequence[str]) -> list[float]:
    """Count characters, which takes next to no time."""
    return [float(len(text)) for text in completions]


def hangs(completions: Sequence[str]) -> list[float]:
    """Hang without end on one text."""
    while HANG in completions:
        time.sleep(1.0)
    return [1.0] * len(completions)


def main() -> None:
    """Measure all three and print."""
    prepare()
    options = parser("Rewards in worker processes.")
    options.add_argument("--samples", type=int, default=4096)
    options.add_argument("--tokens", type=int, default=64, help="words of one completion")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument(
        "--deadline", type=float, default=8.0, help="seconds of a batch that hangs"
    )
    args = options.parse_args()
    if args.quick:
        args.samples, args.repeats, args.deadline = 512, 2, 4.0
    data = {
        "rate": rate(args.samples, args.tokens),
        "overhead": overhead(args.samples, args.tokens, args.repeats),
        "hang_sample": hang(args.deadline, sample_deadline_s=1.0),
        "hang_batch": hang(args.deadline, sample_deadline_s=None),
    }
    report(data)
    save(args.json, "rewards", args, data)


def rate(samples: int, tokens: int) -> dict[str, Any]:
    """Measure the seconds for all samples, beside the ideal of two workers that are always busy."""
    rubric = _rubric("waits", workers=WORKERS, deadline_s=600.0)
    _seconds(rubric, _groups(GROUP * 8, tokens))
    ideal = samples * SAMPLE_S / WORKERS
    seconds = _seconds(rubric, _groups(samples, tokens))
    rubric.close()
    return {"seconds": seconds, "ideal": ideal, "share": ideal / seconds}


def overhead(samples: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Measure the seconds of a sample inline and in a process, in turns."""
    groups = _groups(samples, tokens)
    rubrics = {level: _rubric("counts", isolation=level) for level in ("inline", "process")}
    times: dict[str, list[float]] = {level: [] for level in rubrics}
    for _ in range(repeats + 1):
        for level, rubric in rubrics.items():
            times[level].append(_seconds(rubric, groups) / samples)
    for rubric in rubrics.values():
        rubric.close()
    medians = {level: middle(values[1:]) for level, values in times.items()}
    return {**medians, "overhead": medians["process"] - medians["inline"], "times": times}


def hang(deadline_s: float, sample_deadline_s: float | None) -> dict[str, Any]:
    """Measure the seconds of a step with one sample that hangs; count the others that were scored."""
    limits = {"deadline_s": deadline_s, "sample_deadline_s": sample_deadline_s}
    rubric = _rubric("hangs", workers=WORKERS, **limits)
    _seconds(rubric, _groups(GROUP * 8, 1))
    groups = _groups(128, 1, hanging=77)
    started = time.perf_counter()
    scored = [score.status for group in rubric.score(groups) for score in group.scores_G]
    seconds = time.perf_counter() - started
    rubric.close()
    # A sample that hangs costs its own deadline, or that of the batch.
    allowed = deadline_s if sample_deadline_s is None else sample_deadline_s
    return {"seconds": seconds, "allowed": allowed + LATE_S, "scored": scored.count("scored")}


def report(data: dict[str, Any]) -> None:
    """Print the table."""
    speed, cost = data["rate"], data["overhead"]
    rows = [
        ["share of the ideal rate", f"{speed['share']:.1%}", f"at least {RATE:.0%}",
         verdict(speed["share"] >= RATE)],
        ["process over inline, ms a sample", f"{1e3 * cost['overhead']:.3f}",
         f"at most {1e3 * OVERHEAD_S:g}", verdict(cost["overhead"] <= OVERHEAD_S)],
    ]  # fmt: skip
    for name, what in (("hang_sample", "deadline per sample"), ("hang_batch", "per batch")):
        figures = data[name]
        good = figures["seconds"] <= figures["allowed"] and figures["scored"] == 127
        rows.append(
            [f"one sample hangs, {what}: s", f"{figures['seconds']:.2f}",
             f"at most {figures['allowed']:g}", verdict(good)]
        )  # fmt: skip
    scored = [str(data[name]["scored"]) for name in ("hang_sample", "hang_batch")]
    show(
        "Rewards in worker processes", ["", "measured", "claimed", ""], rows,
        f"Of the 127 samples beside the one that hangs, {' and '.join(scored)} were scored.",
    )  # fmt: skip


def _rubric(function: str, **fields: Any) -> Any:
    from align.config.campaign import RewardConfig
    from rewards.rubric import build_rubric

    stated = {name: value for name, value in fields.items() if value is not None}
    return build_rubric([RewardConfig(name=f"benchmarks.rewards:{function}", **stated)])


def _groups(samples: int, tokens: int, hanging: int | None = None) -> list[Any]:
    """Make groups of eight completions, of which one can be the text that hangs."""
    from rollouts.types import Completion, Prompt, RolloutGroup

    def completion(index: int) -> Completion:
        text = HANG if index == hanging else f"{index} " + "word " * tokens
        return Completion(token_ids=(), logprobs_T=(), text=text, finish_reason="stop")

    return [
        RolloutGroup(
            prompt=Prompt(id=str(first), text="question", columns={"answer": "word"}),
            prompt_ids=(1,),
            completions_G=tuple(completion(first + i) for i in range(GROUP)),
            policy="p",
            seed=0,
        )
        for first in range(0, samples, GROUP)
    ]


def _seconds(rubric: Any, groups: list[Any]) -> float:
    started = time.perf_counter()
    scored = rubric.score(groups)
    seconds = time.perf_counter() - started
    assert all(score.status == "scored" for group in scored for score in group.scores_G)
    return seconds


if __name__ == "__main__":
    main()
