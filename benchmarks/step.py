"""Claim: one step of GRPO, from prompts to synced weights, takes at most half the time of TRL's.

Our side: vLLM engines in Ray actors sample, the rubric scores, the learner updates under one KL anchor, and
the engines load the new weights. TRL's side: `GRPOTrainer` with its own generation and the same model,
prompts, reward, KL weight and learning rate. The sides take turns, so that a machine that slows down slows
both down; TRL runs once for every number of threads in ``--trl-threads``, and its best run counts. Our side
samples the next step while it learns from this one: engines on half of the cores, and the learner with a
thread for every core, so that neither waits for the slower of the two. ``--staleness 0 --engines 2`` is
strictly on-policy, in turn. ``--algorithm rloo`` measures RLOO, whose KL is in the reward. ``--model FOLDER
--lora 16`` measures a real model, where a step must also take at most half of TRL's memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Peak,
    Tree,
    middle,
    parser,
    prepare,
    quickest,
    save,
    show,
    verdict,
    without_end,
    write_model,
)
from benchmarks.given import work, work_of
from benchmarks.worker import Worker

REQUIRED = 2.0
"""Smallest ratio of TRL's seconds per step to ours."""
REQUIRED_MEMORY = 0.5
"""Largest ratio of our peak memory to TRL's least, on a real model; for a tiny model the libraries take
most of the memory on both sides."""


@dataclass(kw_only=True)
class Ours:
    """Our side of the comparison, ready for steps."""

    learner: Any
    training: Any
    pool: Any
    stream: Any
    encoder: Any
    rubric: Any
    spec: Any
    pending: dict[int, Any] = field(default_factory=dict)
    in_flight: bool = False
    """True if engines load new weights while they sample."""

    def step(self, number: int) -> dict[str, float]:
        """Take a step as `align.round.round.train` does; return the seconds of its phases."""
        from align.learner.batching import build_batch
        from align.round.sampler import fresher_share

        sizes = self.spec.sampling
        clock = [time.perf_counter()]
        groups = (self.pending.pop(number, None) or self.ask(number, number)).groups()
        if sizes.max_staleness:
            self.pending[number + 1] = self.ask(number + 1, number)
        clock.append(time.perf_counter())
        scored = self.rubric.score(groups)
        clock.append(time.perf_counter())
        batch = build_batch(scored, self.spec.algorithm, replay_rewards=False)
        expected = sizes.budget * sizes.max_tokens
        assert batch.totals.tokens == expected, "both sides must do the same work"
        metrics = self.training.update(batch)
        compared = metrics["parity/max_abs_diff"] > 0
        assert compared or sizes.max_staleness, "no token was compared with its engine's"
        clock.append(time.perf_counter())
        hand_over = self.pool.deposit if self.in_flight and self.pending else self.pool.sync
        hand_over(self.learner.weights(f"step/{number + 1}"))
        clock.append(time.perf_counter())
        names = ("sample_s", "score_s", "update_s", "sync_s")
        phases = dict(zip(names, _differences(clock), strict=True))
        fresher = fresher_share(scored)
        return {**phases, "wall_s": clock[-1] - clock[0], "fresher": fresher}

    def ask(self, number: int, held: int) -> Any:
        """Begin to sample a step from the weights that the engines have."""
        from rollouts.collect import begin
        from rollouts.types import Sampling

        sizes = self.spec.sampling
        return begin(
            self.pool,
            self.stream.take(sizes.prompts_per_step),
            [sizes.group_size] * sizes.prompts_per_step,
            self.encoder,
            Sampling(max_tokens=sizes.max_tokens),
            seed=number,
            policy=f"step/{held}",
        )


@contextmanager
def ours(model: Path, args: argparse.Namespace) -> Iterator[Ours]:
    """Cluster, engines and learner for one model."""
    from align.algorithms import algorithm_from
    from align.config.campaign import (
        AnchorConfig,
        AnchorsConfig,
        LoraConfig,
        OptimizerConfig,
        PolicyConfig,
        RewardConfig,
        RoundSettings,
        SamplingConfig,
    )
    from align.data.base_model import load_tokenizer
    from align.learner.learner import Learner
    from align.learner.references import References
    from align.retention.methods import RetentionMethods
    from launch.cluster.cluster import connect
    from rewards.rubric import build_rubric
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool
    from rollouts.prompts import PromptEncoder, PromptStream
    from rollouts.types import Prompt

    policy = PolicyConfig(
        model=str(model),
        threads=args.threads,
        dtype=args.dtype,
        lora=LoraConfig(rank=args.lora, serve="merged") if args.lora else None,
    )
    estimator = "k1" if args.algorithm == "rloo" else "full"
    anchor = AnchorConfig(to="base", beta=args.beta, estimator=estimator)
    spec = RoundSettings(
        algorithm=algorithm_from(args.algorithm),
        sampling=SamplingConfig(
            group_size=args.group,
            prompts_per_step=args.prompts,
            max_tokens=args.tokens,
            max_staleness=args.staleness,
        ),
        optimizer=OptimizerConfig(lr=args.lr, micro_batch_tokens=args.micro_batch_tokens),
        anchors=AnchorsConfig(new=(anchor,), past=(), general=()),
    )
    with connect(num_engines=args.engines), tempfile.TemporaryDirectory() as scratch:
        engines = VLLMConfig(
            model=str(model), max_model_len=256, max_num_seqs=args.max_num_seqs, dtype=args.dtype
        )
        pool = EnginePool(engines, num_engines=args.engines, in_flight=args.in_flight)
        learner = Learner(model, policy, folder_of=lambda _: model, scratch=Path(scratch))
        training = learner.begin(
            spec,
            References(base="base", parent="base"),
            num_steps=10**6,
            seed=0,
            penalties=RetentionMethods(),
        )
        texts = [f"add {i} and {i + 1} =" for i in range(80)]
        pool.sync(learner.weights("step/0"))
        yield Ours(
            learner=learner,
            training=training,
            pool=pool,
            stream=PromptStream([Prompt(id=text, text=text) for text in texts], seed=0),
            encoder=PromptEncoder(load_tokenizer(model, policy)),
            rubric=build_rubric([RewardConfig(name="benchmarks.common:letter_share")]),
            spec=spec,
        )
        pool.close()


def main() -> None:
    """Measure in alternation and print."""
    prepare()
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            model = write_model(Path(folder) / "model", "3M")
            other = write_model(Path(folder) / "model-eos", "3M", with_eos=True)
        else:
            model, other = without_end(args.model, Path(folder) / "model"), args.model
        rivals = [
            Worker.start(
                "benchmarks.trl_worker",
                other,
                threads=threads,
                algorithm=args.algorithm,
                out=Path(folder) / f"out-{threads}",
                **work_of(args),
            )
            for threads in args.trl_threads
        ]
        try:
            data = measure(model, rivals, args)
        finally:
            for rival in rivals:
                rival.close()
    report(data, args)
    save(args.json, "step", args, data)


def measure(model: Path, rivals: list[Worker], args: argparse.Namespace) -> dict[str, Any]:
    """Measure turns of a few steps for each side; the first step of a side is a warm-up."""
    for rival in rivals:
        rival.steps(1, keep=False)
    steps: list[dict[str, float]] = []
    with ours(model, args) as side:
        tree = Tree(without=[rival.process.pid for rival in rivals])
        peak = Peak(tree=tree)
        side.step(0)
        number = 1
        for _ in range(args.turns):
            with peak.watch():
                for _ in range(args.steps):
                    cpu = tree.cpu_s()
                    taken = side.step(number)
                    steps.append({**taken, "cpu_s": tree.cpu_s() - cpu})
                    number += 1
            for rival in rivals:
                rival.steps(args.steps)
    return {
        "ours": {"steps": steps, "peak_mib": peak.mib},
        "trl": [
            {"threads": r.threads, "wall_s": r.wall_s, "cpu_s": r.cpu_s, "peak_mib": r.peak_mib}
            for r in rivals
        ],
    }


def report(data: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table and the verdict."""
    steps = data["ours"]["steps"]
    keel = {name: middle([step[name] for step in steps]) for name in steps[0]}
    rows = [
        [f"Keel, {args.engines} engine(s), {args.threads} learner thread(s)",
         f"{keel['wall_s']:.2f}", f"{keel['cpu_s']:.2f}", f"{data['ours']['peak_mib']:.0f}", ""]
    ]  # fmt: skip
    ratios = []
    for rival in data["trl"]:
        ratios.append(middle(rival["wall_s"]) / keel["wall_s"])
        rows.append(
            [f"TRL, {rival['threads']} thread(s)", f"{middle(rival['wall_s']):.2f}",
             f"{middle(rival['cpu_s']):.2f}", f"{rival['peak_mib']:.0f}", f"{ratios[-1]:.2f}x"]
        )  # fmt: skip
    phases = ", ".join(
        f"{n[:-2]} {keel[n]:.2f}" for n in keel if n not in ("wall_s", "cpu_s", "fresher")
    )
    notes = [f"Keel's phases, median seconds: {phases}"]
    if ratios:
        passed = verdict(min(ratios) >= REQUIRED)
        notes.append(f"at least {REQUIRED:g}x faster than TRL's best: {min(ratios):.2f}x {passed}")
    if data["trl"] and args.model is not None:
        share = data["ours"]["peak_mib"] / min(rival["peak_mib"] for rival in data["trl"])
        passed = verdict(share <= REQUIRED_MEMORY)
        notes.append(f"at most {REQUIRED_MEMORY:g} of TRL's least memory: {share:.2f} {passed}")
    size = "3M parameters" if args.model is None else args.model.name
    kind = f", LoRA of rank {args.lora}" if args.lora else ""
    show(
        f"One step of {args.algorithm}: {args.prompts} x {args.group} completions x {args.tokens} tokens, "
        f"{size}{kind}, one KL anchor, {args.dtype}",
        ["", "median s/step", "cpu s/step", "peak MiB", "slower than Keel"],
        rows,
        *notes,
    )


def _arguments() -> argparse.Namespace:
    options = parser("One step of GRPO or RLOO end to end, against TRL.")
    cores = len(os.sched_getaffinity(0))
    options.add_argument("--algorithm", choices=["grpo", "rloo"], default="grpo")
    options.add_argument("--turns", type=int, default=5, help="turns of each side")
    options.add_argument("--steps", type=int, default=3, help="steps in a turn")
    half = max(1, cores // 2)
    options.add_argument("--engines", type=int, default=half)
    options.add_argument("--threads", type=int, default=cores, help="of our learner")
    options.add_argument("--model", type=Path, help="a model folder in place of a made-up one")
    options.add_argument("--trl-threads", type=int, nargs="*", default=sorted({1, cores}))
    options.add_argument("--micro-batch-tokens", type=int)
    options.add_argument("--staleness", type=int, default=1, help="1 samples while it learns")
    work(options).set_defaults(dtype=quickest(), in_flight=False, max_num_seqs=128)
    args = options.parse_args()
    if args.quick:
        args.turns, args.steps, args.prompts, args.tokens = 1, 1, 2, 8
    return args


def _differences(clock: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(clock)]


if __name__ == "__main__":
    main()
