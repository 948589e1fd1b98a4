"""Claim: a campaign's eighth snapshot costs no more than its first: at most 5% of a learner step.

Steps are taken under the default anchors, with 1, 2, 4 and 8 earlier rounds in the replay buffer, each with
its own snapshot as the anchor. The counts take turns, so that a machine that slows down slows all of them
down. The growth is that of the median from 1 to 8 rounds. CPU seconds are shown beside wall seconds, since
a busy machine disturbs them less."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Tree, middle, parser, prepare, save, show, verdict, write_model

ALLOWED_GROWTH = 0.05


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Model with the prompts and the reward of its steps."""

    name: str
    model: Path
    tokens: int
    reward: str
    prompts: Any
    general: Any


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Engines and learner of a setting, with a mixture for every number of snapshots."""

    learner: Any
    training: Any
    pool: Any
    encoder: Any
    rubric: Any
    spec: Any
    mixtures: dict[int, Any]

    def step(self, snapshots: int, number: int) -> dict[str, float]:
        """Take a whole step; return wall and CPU seconds of the update and of the step."""
        from align.data.scorer import Scorer
        from align.learner.batching import build_batch
        from rollouts.collect import collect
        from rollouts.types import Sampling

        tree = Tree()
        cpu, started = tree.cpu_s(), time.perf_counter()
        draw = self.mixtures[snapshots].draw(number)
        groups = collect(
            self.pool,
            draw.prompts,
            draw.group_sizes,
            self.encoder,
            Sampling(max_tokens=self.spec.sampling.max_tokens),
            seed=number,
            policy="now",
        )
        scored = Scorer(new=self.rubric, past={}).score(groups)
        batch = build_batch(scored, self.spec.algorithm, replay_rewards=False)
        before, update_cpu = time.perf_counter(), time.process_time()
        self.training.update(batch)
        update_s, update_cpu_s = time.perf_counter() - before, time.process_time() - update_cpu
        self.pool.sync(self.learner.weights("now"))
        return {
            "update_s": update_s,
            "update_cpu_s": update_cpu_s,
            "step_s": time.perf_counter() - started,
            "step_cpu_s": tree.cpu_s() - cpu,
        }


def main() -> None:
    """Measure both models and print."""
    prepare()
    options = parser("Cost of earlier snapshots under owner anchors.")
    options.add_argument("--snapshots", type=int, nargs="*", default=[1, 2, 4, 8])
    options.add_argument("--steps", type=int, default=25, help="measured steps of every count")
    options.add_argument("--past", type=float, default=0.05, help="replay.past")
    options.add_argument("--models", nargs="*", choices=["3M", "demo"], default=["3M", "demo"])
    options.add_argument("--threads", type=int, default=1, help="of the learner")
    args = options.parse_args()
    if args.quick:
        args.steps, args.snapshots = 2, [1, 8]
    from launch.cluster.cluster import connect

    data: dict[str, Any] = {}
    with connect(num_engines=1), tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            setting = _small(Path(folder)) if name == "3M" else _demo()
            with _bench(setting, args, Path(folder)) as bench:
                data[name] = measure(bench, args)
    report(data, args)
    save(args.json, "anchors", args, data)


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every step by number of snapshots; the first two steps of each are warm-up."""
    by_count: dict[str, list[dict[str, float]]] = {str(count): [] for count in args.snapshots}
    for number in range(args.steps + 2):
        for count in args.snapshots:
            step = bench.step(count, number)
            if number >= 2:
                by_count[str(count)].append(step)
    return by_count


def report(data: dict[str, Any], args: argparse.Namespace) -> None:
    """Print a row for each model and number of snapshots, with the growth against the fewest."""
    names = ("update_s", "update_cpu_s", "step_s", "step_cpu_s")
    rows, notes = [], []
    for model, by_count in data.items():
        medians = {
            count: {name: middle([step[name] for step in steps]) for name in names}
            for count, steps in by_count.items()
        }
        first, last = str(min(args.snapshots)), str(max(args.snapshots))
        for count, values in medians.items():
            growth = [f"{values[n] / medians[first][n] - 1:+.1%}" for n in names]
            cells = [f"{values[n]:.3f} ({g})" for n, g in zip(names, growth, strict=True)]
            rows.append([f"{model}, {count} snapshot(s)", *cells])
        grown = medians[last]["step_s"] / medians[first]["step_s"] - 1
        passed = verdict(grown <= ALLOWED_GROWTH)
        notes.append(f"{model}: a step grows {grown:+.1%}, allowed {ALLOWED_GROWTH:+.0%}: {passed}")
    show(
        f"Median seconds of a step of 128 completions, {args.past:.0%} of them replayed",
        ["", "update", "update cpu", "whole step", "whole step cpu"],
        rows,
        *notes,
    )


def _small(folder: Path) -> Setting:
    from rollouts.types import Prompt

    texts = [f"add {i} and {i + 1} =" for i in range(256)]
    return Setting(
        name="3M",
        model=write_model(folder / "3M", "3M"),
        tokens=64,
        reward="benchmarks.common:letter_share",
        prompts=[Prompt(id=text, text=text) for text in texts],
        general=[Prompt(id=f"g{i}", text=f"say {i} =", source="general") for i in range(256)],
    )


def _demo() -> Setting:
    from dataclasses import replace

    from align.data.demo import BASE_MODEL
    from align.data.demo.world import demo_prompts

    general = [replace(p, source="general") for p in demo_prompts("demo://general")]
    return Setting(
        name="demo",
        model=BASE_MODEL,
        tokens=6,
        reward="exact_match",
        prompts=demo_prompts("demo://rev"),
        general=general,
    )


@contextmanager
def _bench(setting: Setting, args: argparse.Namespace, folder: Path) -> Iterator[Bench]:
    """Start engines and learner, with one mixture per count; each snapshot is the base with other noise."""
    from align.config.campaign import (
        PolicyConfig,
        ReplayConfig,
        RewardConfig,
        RoundSettings,
        SamplingConfig,
    )
    from align.data.base_model import load_tokenizer
    from align.learner.learner import Learner
    from align.learner.references import References
    from align.retention.methods import RetentionMethods
    from rewards.rubric import build_rubric
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool
    from rollouts.prompts import PromptEncoder

    policy = PolicyConfig(model=str(setting.model), threads=args.threads)
    spec = RoundSettings(
        sampling=SamplingConfig(max_tokens=setting.tokens), replay=ReplayConfig(past=args.past)
    )
    owners = [f"{setting.name}-{i}" for i in range(max(args.snapshots))]
    folders = {"base": setting.model} | {
        owner: _perturbed(setting.model, folder / owner, seed) for seed, owner in enumerate(owners)
    }
    pool = EnginePool(VLLMConfig(model=str(setting.model)))
    learner = Learner(setting.model, policy, folder_of=folders.__getitem__, scratch=folder)
    training = learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=10**6,
        seed=0,
        penalties=RetentionMethods(),
    )
    pool.sync(learner.weights("now"))
    yield Bench(
        learner=learner,
        training=training,
        pool=pool,
        encoder=PromptEncoder(load_tokenizer(setting.model, policy)),
        rubric=build_rubric([RewardConfig(name=setting.reward)]),
        spec=spec,
        mixtures={count: _mixture(setting, owners[:count], spec) for count in args.snapshots},
    )
    pool.close()


def _mixture(setting: Setting, owners: list[str], spec: Any) -> Any:
    """Build the mixture of new, replayed and general prompts in the default shares."""
    from align.data.mixture import Mixture
    from align.data.replay.buffer import ReplayBuffer
    from rollouts.prompts import PromptStream

    buffer = ReplayBuffer()
    for index, owner in enumerate(owners):
        buffer.add(owner, setting.prompts, owner=owner, cap=spec.replay.buffer, seed=index)
    return Mixture(
        new=PromptStream(setting.prompts, seed=0),
        past=buffer,
        general=PromptStream(setting.general, seed=0),
        stored=(),
        sampling=spec.sampling,
        replay=spec.replay,
        seed=0,
    )


def _perturbed(model: Path, folder: Path, seed: int) -> Path:
    """Write a snapshot that is the model with a little noise on every weight."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    loaded.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
