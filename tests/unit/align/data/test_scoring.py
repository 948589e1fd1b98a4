"""Rewards that are asked as groups finish: begun early, and the same in the end as all at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.campaign import run_campaign
from align.config.campaign import RewardConfig, RoundConfig
from align.data.mixture import Draw
from align.data.scorer import Scorer
from align.round.inputs import Inputs, load_inputs
from align.round.sampler import StepSampler
from rewards.base import RewardPart
from rewards.failures import FailureLog, RewardFailure
from rewards.isolation.reward import IsolatedReward
from rewards.rubric import Rubric, build_rubric
from rollouts.collect import BATCHES, begin
from rollouts.engines.protocol import Arrivals, SampleRequest, SampleResult, StreamTicket
from rollouts.errors import RunError
from rollouts.types import Completion, Prompt, RolloutGroup, Sampling, ScoredGroup
from tests.patience import patient
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.rollouts.engines.test_collect import encoder

DEADLINE_S = patient(60.0)
"""After which a test that waits for something has failed."""


def answer(request: SampleRequest) -> SampleResult:
    said = Completion(token_ids=(2, 0), logprobs_T=(0.0, 0.0), text="", finish_reason="stop")
    return SampleResult(id=request.id, completions=(said,) * request.n)


class Streaming:
    """An engine that finishes its requests one by one, in ``order``, each after ``before(place)``."""

    def __init__(
        self, order: Sequence[int], before: Callable[[int], None] = lambda _: None
    ) -> None:
        self.order, self.before = order, before

    def submit(self, requests: Sequence[SampleRequest]) -> StreamTicket:
        engine = self

        class Ticket:
            def __call__(self) -> list[SampleResult]:
                return [answer(request) for request in requests]

            def arrivals(self) -> Arrivals:
                for place in engine.order:
                    engine.before(place)
                    yield [(place, answer(requests[place]))]

        return Ticket()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text="a", columns={"place": i}) for i in range(count)]


def taken(
    engine: Any, rubric: Rubric, count: int, **sampling: Any
) -> tuple[list[ScoredGroup], Any]:
    """Score one step with ``count`` groups of two through a step sampler."""
    spec = RoundConfig.model_validate(
        {
            "name": "r", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1,
            "sampling": {"group_size": 2, "repairs": 0, **sampling},
        }
    )  # fmt: skip
    draw = Draw(prompts=tuple(prompts(count)), group_sizes=(2,) * count, stored=[])
    plan: Any = SimpleNamespace(
        spec=spec, seed=3, scorer=Scorer(new=rubric, past={}),
        mixture=SimpleNamespace(draw=lambda step: draw, spare=lambda *_: draw),
        sampling=Sampling(max_tokens=spec.sampling.max_tokens), version=str, environments=None,
    )  # fmt: skip
    weights: Any = None
    sampler = StepSampler(
        plan=plan, engine=engine, weights=weights, encoder=encoder(), note=[].append
    )
    return list(sampler.take(0).scored), plan


def part(function: Callable[..., Any]) -> RewardPart:
    return RewardPart(name=function.__name__, weight=1.0, function=function)


# overlap


def test_groups_are_scored_while_others_are_sampled() -> None:
    """The engine goes on to a group only when an async reward has been asked about the one before."""
    asked = [threading.Event() for _ in range(4)]

    async def slow(completions: list[str], place: list[int]) -> list[float]:
        for one in place:
            asked[one].set()
        return [1.0] * len(completions)

    def wait(place: int) -> None:
        assert place == 0 or asked[place - 1].wait(DEADLINE_S)

    scored, _ = taken(Streaming(range(4), wait), Rubric([part(slow)]), 4)
    assert [s.value for group in scored for s in group.scores_G] == [1.0] * 8


def test_worker_processes_score_while_others_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes leave a file for every group that they were asked about."""
    monkeypatch.chdir(tmp_path)
    Path("marks.py").write_text(
        "from pathlib import Path\n"
        "def marks(completions, place, folder):\n"
        "    for one in place:\n"
        "        (Path(folder) / f'seen-{one}').touch()\n"
        "    return [float(one) for one in place]\n"
    )
    spec = RewardConfig(name="marks.py:marks", options={"folder": str(tmp_path)}, workers=2)
    rubric = build_rubric([spec])

    def wait(place: int) -> None:
        until = time.monotonic() + DEADLINE_S
        while place and not (tmp_path / f"seen-{place - 1}").exists():
            assert time.monotonic() < until
            time.sleep(0.02)

    try:
        scored, _ = taken(Streaming(range(4), wait), rubric, 4)
    finally:
        rubric.close()
    assert [s.value for group in scored for s in group.scores_G] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_batches_share_the_workers_of_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two batches of one call waits for the other to be asked: one worker would never get on."""
    monkeypatch.chdir(tmp_path)
    Path("meets.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def meets(completions, place, folder):\n"
        "    (Path(folder) / f'here-{place[0]}').touch()\n"
        "    while len(list(Path(folder).glob('here-*'))) < 2:\n"
        "        time.sleep(0.01)\n"
        "    return [1.0] * len(completions)\n"
    )
    options = {"folder": str(tmp_path)}
    rubric = build_rubric(
        [RewardConfig(name="meets.py:meets", options=options, workers=2, deadline_s=DEADLINE_S)]
    )
    try:
        scored, _ = taken(Streaming(range(2)), rubric, 2)
    finally:
        rubric.close()
    assert {s.status for group in scored for s in group.scores_G} == {"scored"}


def groups(places: Sequence[int]) -> dict[int, RolloutGroup]:
    said = Completion(token_ids=(1,), logprobs_T=(0.0,), text="x", finish_reason="stop")
    return {
        i: RolloutGroup(
            prompt=prompts(i + 1)[i], prompt_ids=(1,), completions_G=(said,) * 2, policy="p", seed=0
        )
        for i in places
    }


def chatty(completions: list[str], place: list[int], log_metric: Any, log_extra: Any) -> list[Any]:
    for one in place:
        log_metric("place", one)
    log_extra("twice", [2 * one for one in place])
    return [None if one == 1 else float("nan") if one == 2 else 0.5 * one for one in place]


@given(
    count=st.integers(1, 6), data=st.data(),
)  # fmt: skip
def test_in_any_batches_and_order_the_result_is_that_of_one(count: int, data: Any) -> None:
    at_once, in_parts = Rubric([part(chatty)]), Rubric([part(chatty)])
    whole = Scorer(new=at_once, past={}).score(list(groups(range(count)).values()))
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=count)) | {count})
    scoring = Scorer(new=in_parts, past={}).open()
    for first, last in zip([0, *cuts], cuts, strict=False):
        scoring.add(groups(order[first:last]))
    assert scoring.result() == whole
    assert in_parts.metrics == pytest.approx(at_once.metrics)
    assert sorted(in_parts.extras["chatty/twice"]) == at_once.extras["chatty/twice"]
    assert in_parts.failures.samples == at_once.failures.samples
    assert in_parts.failures.counts == at_once.failures.counts


def test_what_is_logged_for_each_sample_stands_with_its_score() -> None:
    scored = Scorer(new=Rubric([part(chatty)]), past={}).score(list(groups([0, 1, 2]).values()))
    assert [s.extras for s in scored[2].scores_G] == [{"chatty/twice": 4}] * 2

    def uneven(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("one", ["only"])
        return [0.0] * len(completions)

    (one,) = Scorer(new=Rubric([part(uneven)]), past={}).score(list(groups([0]).values()))
    assert [s.extras for s in one.scores_G] == [{}, {}]


# the batches of a step


@pytest.mark.parametrize("order", [range(20), range(19, -1, -1)])
def test_batches_hold_the_same_neighbours_in_whatever_order_groups_finish(
    order: Sequence[int],
) -> None:
    pending = begin(
        Streaming(order), prompts(20), [1] * 20, encoder(), Sampling(max_tokens=4), 0, "p"
    )  # type: ignore[arg-type]
    batches = list(pending.arriving())
    assert len(batches) <= BATCHES
    assert sorted(tuple(batch) for batch in batches) == [
        (0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14), (15, 16, 17), (18, 19),
    ]  # fmt: skip
    whole = {place: group for batch in batches for place, group in batch.items()}
    assert [whole[place] for place in range(20)] == pending.groups()


def test_a_stream_that_answers_something_else_is_found_out() -> None:
    class Lying(Streaming):
        def submit(self, requests: Sequence[SampleRequest]) -> StreamTicket:
            return super().submit(requests[::-1])

    pending = begin(Lying(range(2)), prompts(2), [1, 1], encoder(), Sampling(max_tokens=4), 0, "p")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the engine was asked"):
        list(pending.arriving())


# what could not be scored


def broken(completions: list[str]) -> list[float]:
    raise ZeroDivisionError("nothing to divide by")


def test_a_repaired_group_counts_once() -> None:
    """Two turns of repairs ask twelve more samples; the share that failed is still of the first eight."""
    _, plan = taken(Streaming(range(4)), Rubric([part(broken)]), 4, repairs=2)
    log = plan.scorer.new.failures
    assert (log.samples, log.failed, log.replaced, log.replaced_failed) == (8, 8, 16, 16)
    assert plan.scorer.metrics["failures/replaced_failed"] == 16.0
    with pytest.raises(RewardFailure, match=r"failed on 8 of 8 samples; 100\.0%"):
        plan.scorer.check_budget(0.99)


def test_the_budget_is_of_all_samples_the_round_will_have() -> None:
    """8 failures after a tenth of the steps are a tenth of the 80 samples that are to come."""
    scorer = Scorer(new=Rubric([part(broken)]), past={})
    scorer.score(list(groups(range(4)).values()))
    scorer.check_budget(0.1, done=0.1)
    with pytest.raises(RewardFailure, match=r"10\.0% could not be scored, the budget is 9\.9%"):
        scorer.check_budget(0.099, done=0.1)


def test_failures_survive_as_json() -> None:
    scorer = Scorer(new=Rubric([part(broken)]), past={"old": Rubric([part(chatty)])})
    scorer.score(list(groups(range(4)).values()))
    saved = json.loads(json.dumps(scorer.failures()))
    again = Scorer(new=Rubric([part(broken)]), past={"old": Rubric([part(chatty)])})
    again.recall(saved)
    assert again.new is not None and scorer.new is not None
    assert again.new.failures == scorer.new.failures
    again.recall({})
    assert again.new.failures == FailureLog()


def picky(completions: list[str]) -> list[float]:
    """Cannot score answers that begin with an even digit, but for the 30 items of a suite."""
    even = [] if len(completions) == 30 else "02468"
    return [float("nan") if c[:1] in even else 1.0 for c in completions]


def test_a_round_that_goes_on_counts_on(tmp_path: Path) -> None:
    """Stopped and resumed, it has failed as often as one that was never stopped."""
    changes = {
        "rewards": [{"name": f"{__name__}:picky", "isolation": "inline"}],
        "steps": 4, "checkpoint_every": 2, "failed_budget": 1.0, "sampling": {"repairs": 0},
    }  # fmt: skip

    def counts(folder: Path, stop_at: tuple[str, int] | None = None) -> dict[str, float]:
        config = campaign(folder, rounds=rounds(changes))
        if stop_at is not None:
            with pytest.raises(RuntimeError, match="stopped by the test"):
                run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at))
        run_campaign(config, start_engine=Starter(), observer=Watcher())
        attempt = 1 if stop_at is None else 2
        path = folder / f"store/rounds/00-round0/attempt-{attempt}/metrics.jsonl"
        line = json.loads(path.read_text().splitlines()[-1])
        return {name: value for name, value in line.items() if name.startswith("failures/")}

    whole = counts(tmp_path / "whole")
    assert whole["failures/samples"] == 4 * 16
    assert 0 < whole["failures/failed"] < 4 * 16
    assert counts(tmp_path / "stopped", ("round0", 2)) == whole


def test_the_workers_that_measure_suites_end_with_the_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while somebody still holds what the campaign read."""
    from align.schedule import checked as module

    held: list[Inputs] = []

    def keep(*arguments: Any, **named: Any) -> Inputs:
        held.append(load_inputs(*arguments, **named))
        return held[-1]

    monkeypatch.setattr(module, "load_inputs", keep)
    metric = {"name": "regex_match", "options": {"pattern": "5"}}
    suite = {"name": "general", "prompts": "demo://general", "metric": metric, "items": 30}
    config = campaign(tmp_path, rounds=rounds({}), suites=[suite])
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    (measured,) = (suite for suite in held[0].suites if suite.name == "general")
    assert measured.rubric is not None
    (part,) = measured.rubric.parts
    assert isinstance(part.function, IsolatedReward)
    assert part.function.pool._crew._lanes == []
