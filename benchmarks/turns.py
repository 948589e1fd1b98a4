"""Claim: turns cost what their tokens cost, and engines sample while tools run.

The same tokens are sampled in one turn and in three, with observed tokens between them, by one real engine
behind the pool. The prefix cache holds what an episode has read and said, so a later turn reads its new
tokens only; one row does without it. With tools of 50 ms an episode's next turn joins those that the engine
is sampling; one row asks for whole waves of turns instead. The tools only sleep: what is measured is how
busy they leave the engine.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import middle, parser, prepare, save, show, spread, verdict, write_model
from benchmarks.given import TOKEN_IDS
from rollouts.engines.protocol import Conversation, RolloutEngine, SampleRequest
from rollouts.engines.turns import OpenRequest, Waves
from rollouts.engines.vllm import VLLMConfig, VLLMEngine
from rollouts.types import Sampling

if TYPE_CHECKING:
    from rollouts.engines.vllm import Work
    from rollouts.pool.pool import EnginePool

LEAST_RATE = 0.75
"""Least rate of three turns, as a share of that of one turn of the same tokens."""
LEAST_BUSY = 0.9
"""Least share of the time in which the engine steps while every turn but the last calls a tool."""
UNCACHED = "uncached"
"""Beginning of the ids of requests that read nothing from the prefix cache."""
POLL_S = 0.005
"""Longest wait for the engine while a tool runs."""


class MeasuredEngine(VLLMEngine):
    """An engine that counts the seconds of its steps and the prompt tokens that its prefix cache had."""

    def __init__(self, config: VLLMConfig) -> None:
        super().__init__(config)
        self._counts = {"busy_s": 0.0, "prompt": 0.0, "cached": 0.0}

    def step(self) -> None:
        """Step, and count the seconds."""
        began = time.perf_counter()
        super().step()
        self._counts["busy_s"] += time.perf_counter() - began

    def about(self) -> Mapping[str, str]:
        """Return the counts beside what every engine says of itself."""
        return {**super().about(), **{name: repr(count) for name, count in self._counts.items()}}

    def _add(self, work: Work, receive: Any, owner: object) -> str:
        token_ids, params, _ = work
        if isinstance(owner, OpenRequest) and owner.request.id.startswith(UNCACHED):
            params.skip_reading_prefix_cache = True

        def counted(output: Any) -> None:
            self._counts["prompt"] += len(token_ids)
            self._counts["cached"] += getattr(output, "num_cached_tokens", None) or 0
            receive(output)

        return super()._add(work, counted, owner)


@dataclass(kw_only=True, slots=True)
class Play:
    """One episode under way."""

    number: int
    prompt_ids: tuple[int, ...]
    turn: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the table."""

    turns: int
    tool_s: float = 0.0
    """Seconds that the tool takes after every turn but the last."""
    uses_cache: bool = True
    in_waves: bool = False
    """True if turns are asked for together, once all earlier ones and their tools are done."""


CASES = {
    "one turn": Case(turns=1),
    "three turns": Case(turns=3),
    "three turns, no prefix cache": Case(turns=3, uses_cache=False),
    "three turns, 50 ms tools": Case(turns=3, tool_s=0.05),
    "three turns, 50 ms tools, in waves": Case(turns=3, tool_s=0.05, in_waves=True),
}
"""Rows by what they are called."""


@dataclass(kw_only=True)
class Stage:
    """Episodes that act until all have had their turns."""

    case: Case
    conversation: Conversation
    args: argparse.Namespace
    seed: int
    _tools: list[tuple[float, int, Play]] = field(default_factory=list)
    """Episodes whose tools run, by the monotonic time at which they answer."""
    _sampling: dict[str, Play] = field(default_factory=dict)
    tokens: int = 0
    """Tokens that were sampled."""

    def act(self) -> None:
        """Act to the end."""
        self._ask([self._opening(number) for number in range(self.args.episodes)])
        while self._sampling or self._tools:
            for result in self.conversation.arrivals(POLL_S if self._tools else 1.0):
                self._take(self._sampling.pop(result.id), result.completions[0].token_ids)
            now = time.monotonic()
            if self._tools and not self._sampling:
                # Nothing else can happen; a wave waits for the slowest tool.
                wake = max(self._tools)[0] if self.case.in_waves else self._next_answer()
                time.sleep(max(0.0, wake - now))
                now = max(now, wake)
            elif self.case.in_waves:
                continue
            ready = []
            while self._tools and self._next_answer() <= now:
                ready.append(heapq.heappop(self._tools)[2])
            self._ask(ready)

    def _next_answer(self) -> float:
        return self._tools[0][0]

    def _take(self, play: Play, token_ids: Sequence[int]) -> None:
        self.tokens += len(token_ids)
        play.turn += 1
        if play.turn < self.case.turns:
            play.prompt_ids += (*token_ids, *self._tokens(play, self.args.observed))
            answers_at = time.monotonic() + self.case.tool_s
            heapq.heappush(self._tools, (answers_at, play.number, play))

    def _ask(self, plays: Sequence[Play]) -> None:
        requests, kind = [], "cached" if self.case.uses_cache else UNCACHED
        for play in plays:
            name = f"{kind}/{self.seed}/{play.number}"
            request = SampleRequest(
                id=f"{name}/{play.turn}",
                prompt_ids=play.prompt_ids,
                n=1,
                sampling=Sampling(max_tokens=self.args.tokens // self.case.turns),
                seed=self.seed + 10 * play.number + play.turn,
                follows=f"{name}/{play.turn - 1}" if play.turn else None,
            )
            self._sampling[request.id] = play
            requests.append(request)
        if requests:
            self.conversation.ask(requests)

    def _opening(self, number: int) -> Play:
        play = Play(number=number, prompt_ids=())
        play.prompt_ids = self._tokens(play, self.args.prompt)
        return play

    def _tokens(self, play: Play, count: int) -> tuple[int, ...]:
        """Make up tokens that no other episode or turn of the measurement has in this place."""
        start = self.seed * 31 + play.number * 7 + play.turn * 3
        digits = [start // len(TOKEN_IDS) ** k % len(TOKEN_IDS) for k in range(4)]
        return tuple(TOKEN_IDS[(digits[i % 4] + i * i) % len(TOKEN_IDS)] for i in range(count))


def measure(case: Case, engine: Any, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Let episodes act once; return tokens a second, and shares of time and of prompt tokens."""
    before = _counts(engine)
    conversation = Waves(engine) if case.in_waves else engine.open()
    with closing(conversation):
        stage = Stage(case=case, conversation=conversation, args=args, seed=seed)
        began = time.perf_counter()
        stage.act()
        seconds = time.perf_counter() - began
    spent = {name: count - before[name] for name, count in _counts(engine).items()}
    return {
        "rate": stage.tokens / seconds,
        "busy": spent["busy_s"] / seconds,
        "cached": spent["cached"] / spent["prompt"],
        "tokens": stage.tokens,
    }


def _counts(engine: RolloutEngine) -> dict[str, float]:
    about = engine.about()  # type: ignore[attr-defined]
    return {name: float(about[name]) for name in ("busy_s", "prompt", "cached")}


def main() -> None:
    """Measure in turns and print."""
    prepare()
    args = _arguments()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", args.size)
        config = VLLMConfig(
            model=str(model), max_num_seqs=args.max_num_seqs, dtype=args.dtype, max_model_len=512
        )
        with _pool(config) as pool:
            few = argparse.Namespace(**{**vars(args), "episodes": args.max_num_seqs // 2})
            for number in range(args.turns + 1):
                for name, case in CASES.items():
                    figures = measure(case, pool, args if number else few, 1 + number)
                    measured[name] += [figures] if number else []  # The first round warms up.
    report(measured, args)
    save(args.json, "turns", args, measured)


@contextmanager
def _pool(config: VLLMConfig) -> Iterator[EnginePool]:
    """Start a pool of one engine on a cluster of its own."""
    from launch.cluster.cluster import connect
    from rollouts.pool.pool import EnginePool

    factory = partial(MeasuredEngine, config)
    with (
        connect("local", num_cpus=2, note=print),
        closing(EnginePool(config, engine_factory=factory)) as pool,
    ):
        yield pool


def report(measured: Mapping[str, Sequence[Mapping[str, float]]], args: argparse.Namespace) -> None:
    """Print the table and the verdicts."""
    rows = [
        [name, *(spread([run[key] for run in runs], digits) for key, digits in _COLUMNS.items())]
        for name, runs in measured.items()
    ]
    rates, busy = (
        {name: middle([run[key] for run in runs]) for name, runs in measured.items()}
        for key in ("rate", "busy")
    )
    ratio = rates["three turns"] / rates["one turn"]
    share = busy["three turns, 50 ms tools"]
    show(
        f"{args.episodes} episodes of {args.tokens} sampled tokens, {args.size} parameters, {args.dtype}, "
        f"one engine that samples {args.max_num_seqs} at a time; prompts of {args.prompt} tokens, "
        f"{args.observed} observed ones between turns",
        ["", "tokens/s, median [min, max]", "engine busy", "prompt tokens from the cache"],
        rows,
        f"three turns sample at {ratio:.2f} of the rate of one, at least {LEAST_RATE}: "
        f"{verdict(ratio >= LEAST_RATE)}",
        f"beside tools of 50 ms the engine is busy {share:.0%} of the time, at least {LEAST_BUSY:.0%}: "
        f"{verdict(share >= LEAST_BUSY)}",
    )


_COLUMNS = {"rate": 0, "busy": 2, "cached": 2}
"""Digits of the figures in the table, by name."""


def _arguments() -> argparse.Namespace:
    options = parser(
        "The same tokens in one turn and in three, and the engine's idle time beside tools."
    )
    options.add_argument(
        "--size", choices=["3M", "28M"], default="28M", help="parameters of the model"
    )
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--episodes", type=int, default=64)
    options.add_argument("--max-num-seqs", type=int, default=32, help="completions at a time")
    options.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    options.add_argument("--tokens", type=int, default=48, help="sampled tokens of an episode")
    options.add_argument("--observed", type=int, default=32, help="tokens between two turns")
    options.add_argument("--turns", type=int, default=2, help="how often every row is measured")
    args = options.parse_args()
    if args.quick:
        args.size, args.turns, args.episodes, args.max_num_seqs = "3M", 1, 16, 8
    return args


if __name__ == "__main__":
    main()
