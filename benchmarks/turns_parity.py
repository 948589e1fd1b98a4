"""Claim: every sampled token of an episode has the logprob that the weights it names give it.

One engine, vLLM behind the pool or transformers in this process, acts in the world of tools, whose calls
worker processes answer. New weights come between batches of episodes, and into the middle of every other
batch. Each token's logprob is then compared with a forward pass, over the whole episode, of the model with
the token's own weights: tokens of later turns, tokens behind observed ones, and tokens that are older than
the newest weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.common import parser, prepare, save, show, verdict

if TYPE_CHECKING:
    from torch import Tensor

    from rollouts.engines.transformers import TransformersEngine
    from rollouts.pool.pool import EnginePool
    from rollouts.types import Completion, RolloutGroup

SCENARIO, TASKS = "tools", ("sum", "mayor", "feet")
WORLD = "align.data.scenarios.facts.tools"
TOOLS = ("calculator", "register", "converter")
TURNS, TOKENS, GROUP = 3, 16, 4
LARGEST = 1e-4
"""Largest difference that passes, in nats; at a logprob below -1 divided by its size."""
LESSONS = 120
"""Batches that the base learns from: enough to write calls, too few to answer always behind one."""
NOISE = 0.02
"""Distance between two versions: noise on every weight, as a share of the spread of its tensor."""
ROWS = 64
"""Episodes of one forward pass."""


class SampledToken(NamedTuple):
    """One sampled token."""

    turn: int
    age: int
    """Versions between its weights and the newest when its episode ended."""
    gap: float


class Versions:
    """Models of all versions so far, each a step of noise from the one before."""

    def __init__(self, base: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._base, self._random = base, torch.Generator().manual_seed(0)
        first = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.models: dict[str, Any] = {"v/0": first.eval()}

    @property
    def newest(self) -> str:
        """Name of the newest version."""
        return f"v/{len(self.models) - 1}"

    def step(self) -> None:
        """Make the next version."""
        import copy

        import torch

        model = copy.deepcopy(self.models[self.newest])
        with torch.no_grad():
            for weights in model.parameters():
                noise = torch.randn(weights.shape, generator=self._random)
                weights += NOISE * float(weights.std()) * noise
        self.models[f"v/{len(self.models)}"] = model

    def update(self) -> Any:
        """Return the newest weights as engines take them."""
        from rollouts.engines.protocol import WeightUpdate

        tensors = {name: w.data for name, w in self.models[self.newest].named_parameters()}
        return WeightUpdate(version=self.newest, tensors=tensors)

    def logprobs(self, version: str, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logprob of every token but the first of each sequence, under a version."""
        import torch

        longest = max(map(len, sequences))
        tokens_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences])
        with torch.inference_mode():
            logits_BTV = self.models[version](input_ids=tokens_BT, use_cache=False).logits
        all_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
        of_tokens_BT = all_BTV.gather(-1, tokens_BT[:, 1:, None])[..., 0]
        return list(of_tokens_BT)


def main() -> int:
    """Act, compare and print."""
    prepare()
    args = _arguments()
    from align.data.scenarios.folder import write

    with tempfile.TemporaryDirectory() as scratch:
        world = args.world or Path(scratch)
        home = write(SCENARIO, world, note=print, steps=20 if args.quick else LESSONS)
        versions = Versions(home / "base")
        open_engine = _pool if args.backend == "vllm" else _in_process
        with open_engine(home / "base") as engine:
            groups = list(act(engine, versions, home, args))
    tokens, ends = compare(groups, versions), _ends(groups)
    largest = report(tokens, ends, args)
    save(args.json, "turns_parity", args, {"tokens": tokens, "episodes": ends})
    return int(largest > LARGEST)


@contextmanager
def _pool(model: Path) -> Iterator[EnginePool]:
    from launch.cluster.cluster import connect
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool

    config = VLLMConfig(model=str(model), max_num_seqs=64, kv_cache_mb=128, max_model_len=128)
    with (
        connect("local", num_cpus=2, note=print),
        closing(EnginePool(config, in_flight=True)) as pool,
    ):
        yield pool


@contextmanager
def _in_process(model: Path) -> Iterator[TransformersEngine]:
    from rollouts.engines.transformers import TransformersConfig

    with closing(TransformersConfig(model=str(model), max_num_seqs=64).start()) as engine:
        yield engine


def act(
    engine: EnginePool | TransformersEngine,
    versions: Versions,
    home: Path,
    args: argparse.Namespace,
) -> Iterator[tuple[RolloutGroup, str]]:
    """Yield the groups of all batches, each with the newest version when its batch ended."""
    from align.config.data import PromptsConfig
    from align.config.policy import PolicyConfig
    from align.data.base_model import load_encoder
    from rewards.environments.environments import WorkerEnvironments
    from rewards.environments.plan import EnvironmentsPlan
    from rollouts.collect import begin
    from rollouts.episodes.environment import EpisodeRules
    from rollouts.prompts import load_prompts
    from rollouts.types import Sampling

    files = [PromptsConfig(source=str(home / f"{task}.jsonl")) for task in TASKS]
    prompts = [p for file in files for p in load_prompts(file, {}, None, "new")][:: len(TASKS)]
    encoder = load_encoder(home / "base", PolicyConfig(model=str(home / "base")))
    plan = EnvironmentsPlan(tools=tuple(f"{WORLD}:{tool}" for tool in TOOLS))
    size = args.episodes // args.batches // GROUP
    with WorkerEnvironments(plan, EpisodeRules(turns=TURNS, parser="hermes")) as environments:
        for number in range(args.batches):
            engine.sync(versions.update())
            chosen = [prompts[(number * size + i) % len(prompts)] for i in range(size)]
            pending = begin(
                engine, chosen, [GROUP] * size, encoder, Sampling(max_tokens=TOKENS), number,
                versions.newest, environments=environments,
            )  # fmt: skip
            if number % 2:
                versions.step()
                # An engine of this process samples only while its groups are waited for.
                Timer(args.late_s, engine.deposit, [versions.update()]).start()
            yield from ((group, versions.newest) for group in pending.groups())
            versions.step()


def compare(groups: Sequence[tuple[RolloutGroup, str]], versions: Versions) -> list[SampledToken]:
    """Compare every sampled token with its own weights."""
    by_version: dict[str, list[tuple[RolloutGroup, Completion, str]]] = {}
    for group, newest in groups:
        for completion in group.completions_G:
            for version in {span.version for span in completion.weight_versions}:
                by_version.setdefault(version, []).append((group, completion, newest))
    tokens: list[SampledToken] = []
    for version, samples in by_version.items():
        for start in range(0, len(samples), ROWS):
            part = samples[start : start + ROWS]
            sequences = [(*group.prompt_ids, *each.token_ids) for group, each, _ in part]
            own = versions.logprobs(version, sequences)
            for (group, completion, newest), own_T in zip(part, own, strict=True):
                answer_T = own_T[len(group.prompt_ids) - 1 :]
                tokens += _tokens(completion, version, answer_T, _number(newest))
    return tokens


def _tokens(
    completion: Completion, version: str, own_T: Tensor, newest: int
) -> Iterator[SampledToken]:
    """Yield the tokens of a completion that a version sampled."""
    observed = {at for span in completion.observed for at in range(*span)}
    sampled = [at for at in range(len(completion.token_ids)) if at not in observed]
    of_version = {
        at
        for span in completion.weight_versions
        if span.version == version
        for at in range(span.start, span.end)
    }
    for at, said in zip(sampled, completion.logprobs_T, strict=True):
        if at in of_version:
            turn = 1 + sum(span.end <= at for span in completion.observed)
            gap = abs(float(own_T[at]) - said) / max(1.0, abs(said))
            yield SampledToken(turn, newest - _number(version), gap)


def _number(version: str) -> int:
    return int(version.removeprefix("v/"))


def _ends(groups: Sequence[tuple[RolloutGroup, str]]) -> Mapping[str, int]:
    """Count episodes, those of three turns, and those that more than one version sampled."""
    completions = [each for group, _ in groups for each in group.completions_G]
    episodes = [each for each in completions if each.episode is not None and each.detail is None]
    return {
        "episodes": len(episodes),
        "failed": len(completions) - len(episodes),
        "three turns": sum(e.episode is not None and e.episode.turns == TURNS for e in episodes),
        "two versions": sum(len({s.version for s in e.weight_versions}) > 1 for e in episodes),
    }


def report(
    tokens: Sequence[SampledToken], ends: Mapping[str, int], args: argparse.Namespace
) -> float:
    """Print the table and the verdict; return the largest gap."""
    kinds = {
        **{f"turn {turn}": [t for t in tokens if t.turn == turn] for turn in range(1, TURNS + 1)},
        "of the newest weights": [t for t in tokens if t.age == 0],
        "of older weights": [t for t in tokens if t.age > 0],
        "all": tokens,
    }
    rows = [
        [name, f"{len(kind):,}", f"{max((t.gap for t in kind), default=0.0):.1e}"]
        for name, kind in kinds.items()
    ]
    largest = max(token.gap for token in tokens)
    show(
        f"{ends['episodes']:,} episodes of at most {TURNS} turns ({ends['three turns']:,} of {TURNS}), "
        f"{args.batches} syncs, {ends['two versions']:,} episodes that two versions sampled, "
        f"{ends['failed']} failed; {args.backend} against a forward pass, 0.4M parameters, float32",
        ["tokens", "number", "largest gap, nats"],
        rows,
        f"no token further than {LARGEST:g} from its own weights: {verdict(largest <= LARGEST)}",
    )
    return largest


def _arguments() -> argparse.Namespace:
    options = parser("Logprobs of multi-turn episodes against the weights that sampled them.")
    options.add_argument("--episodes", type=int, default=1000)
    options.add_argument("--batches", type=int, default=10, help="batches of episodes, a sync each")
    options.add_argument("--backend", choices=["vllm", "transformers"], default="vllm")
    options.add_argument(
        "--late-s",
        type=float,
        default=0.4,
        help="seconds after which new weights come into a batch",
    )
    options.add_argument(
        "--world", type=Path, help="folder of worlds; a base that lies there is kept"
    )
    args = options.parse_args()
    if args.quick:
        args.episodes, args.batches = 32, 2
    return args


if __name__ == "__main__":
    raise SystemExit(main())
