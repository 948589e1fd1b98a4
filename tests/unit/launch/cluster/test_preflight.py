"""Fit of a campaign on a cluster: sums by hand, and the messages."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.api.running import runs_in_process
from align.config.campaign import CampaignConfig
from align.config.policy import EngineConfig, ResourcesConfig
from launch.cluster.engines import custom_of
from launch.cluster.preflight import (
    ClusterNode,
    Demand,
    check_room,
    demands_of,
    node_table,
    problems,
    shortages,
)
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds


def node(name: str, free: dict[str, float] | None = None, **total: float) -> ClusterNode:
    return ClusterNode(name=name, total=total, free=total if free is None else free)


def engines(count: int, **bundle: float) -> Demand:
    return Demand(what="engine", bundle=bundle, count=count)


def ranks(count: int, nodes: int = 1, **bundle: float) -> Demand:
    return Demand(what="learner rank", bundle=bundle, count=count, nodes=nodes)


@pytest.mark.parametrize(
    ("config", "gpus", "bundle"),
    [
        ({}, False, {"CPU": 1.0}),
        ({}, True, {"CPU": 1.0, "GPU": 1.0}),
        ({"gpus": 0}, True, {"CPU": 1.0}),
        ({"gpus": 0.5, "cpus": 2}, True, {"CPU": 2.0, "GPU": 0.5}),
        ({"gpus": 1}, False, {"CPU": 1.0, "GPU": 1.0}),
        ({"custom": {"a100": 1}}, False, {"CPU": 1.0, "a100": 1.0}),
    ],
)
def test_what_a_process_takes(config: dict[str, object], gpus: bool, bundle: object) -> None:
    assert ResourcesConfig.model_validate(config).bundle(gpus=gpus) == bundle


@pytest.mark.parametrize(
    ("executor", "what", "count", "cpus"),
    [("processes", "engine", 2, 8.0), ("ray", "engine worker", 8, 2.0)],
)
def test_an_engine_on_four_devices_takes_four_times_as_much(
    tmp_path: Path, executor: str, what: str, count: int, cpus: float
) -> None:
    """Its own processes must have it on one node; Ray workers may have it on several."""
    engines = {"engines": 2, "tensor_parallel": 2, "pipeline_parallel": 2, "executor": executor}
    config = campaign(tmp_path, rollouts={**engines, "resources": {"cpus": 2}})
    (only,) = demands_of(config, gpus=False)
    assert (only.what, only.count, only.bundle) == (what, count, {"CPU": cpus})


def test_a_learner_of_one_process_asks_for_nothing(tmp_path: Path) -> None:
    (only,) = demands_of(campaign(tmp_path), gpus=False)
    assert (only.what, only.count, only.nodes) == ("engine", 1, None)
    several = campaign(tmp_path, policy={"model": "demo://digits", "ranks": 2})
    assert [d.what for d in demands_of(several, gpus=False)] == ["learner rank", "engine"]


@pytest.mark.parametrize(
    ("nodes", "demands", "reason"),
    [
        ([node("a", CPU=4)], [engines(1, CPU=1, GPU=1)], "one engine asks for GPU, which no node"),
        (
            [node("a", CPU=4)],
            [engines(1, CPU=8)],
            "one engine asks for 8 CPU; the largest node has 4",
        ),
        ([node("a", CPU=2)], [engines(3, CPU=1)], "there is room for 2 of 3 x engine"),
        (
            [node("a", CPU=2), node("b", CPU=2)],
            [ranks(4, CPU=1)],
            "4 learner ranks on one node asks for 4 CPU; the largest node has 2",
        ),
        (
            [node("a", CPU=4), node("b", CPU=1)],
            [ranks(3, CPU=1), engines(3, CPU=1)],
            "there is room for 2 of 3 x engine (1 CPU each) beside 3 x learner rank",
        ),
        (
            [node("a", CPU=8), node("b", GPU=8)],
            [ranks(2, CPU=1, GPU=1)],
            "no single node has room for 2 x learner rank",
        ),
        (
            [node("a", CPU=4), node("b", CPU=1)],
            [ranks(4, nodes=2, CPU=1)],
            "1 of 2 nodes have room for 2 each of 4 x learner rank (1 CPU each, 2 on each of 2 nodes)",
        ),
        ([], [engines(1, CPU=1)], "which no node has"),
    ],
)
def test_what_does_not_fit_and_why(
    nodes: list[ClusterNode], demands: list[Demand], reason: str
) -> None:
    found = problems(nodes, demands)
    assert len(found) == 1 and reason in found[0], found


def test_the_ranks_go_where_they_leave_most_room() -> None:
    """The ranks do not go to the large node, where they would leave no room for an engine of four CPUs."""
    nodes = [node("large", CPU=4), node("small", CPU=2)]
    assert problems(nodes, [ranks(2, CPU=1), engines(1, CPU=4)]) == []


def test_a_busy_cluster_is_not_one_that_is_too_small() -> None:
    nodes = [node("a", free={"CPU": 1}, CPU=2)]
    demands = [engines(2, CPU=1)]
    assert problems(nodes, demands) == []
    assert shortages(nodes, demands) == ["there is room for 1 of 2 x engine (1 CPU each)"]


def test_ranks_on_a_busy_node() -> None:
    nodes = [node("a", free={"CPU": 1}, CPU=4)]
    demands = [ranks(2, CPU=1)]
    assert problems(nodes, demands) == []
    (reason,) = shortages(nodes, demands)
    assert reason.startswith("no single node has room for 2 x learner rank")


def test_shares_of_a_gpu_add_up() -> None:
    assert problems([node("a", CPU=10, GPU=1)], [engines(3, CPU=1, GPU=1 / 3)]) == []
    assert problems([node("a", CPU=10, GPU=1)], [engines(4, CPU=1, GPU=1 / 3)]) != []


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    group=st.integers(1, 4),
    num_groups=st.integers(1, 2),
    singles=st.integers(1, 5),
)
def test_the_sum_is_exact(sizes: list[int], group: int, num_groups: int, singles: int) -> None:
    """Against trying every place for every process."""
    nodes = [node(str(i), CPU=size) for i, size in enumerate(sizes)]
    places = range(len(sizes))
    fits = any(
        all(sizes[p] >= group * (p in homes) + chosen.count(p) for p in places)
        for homes in combinations(places, num_groups)
        for chosen in product(places, repeat=singles)
    )
    demands = [ranks(group * num_groups, num_groups, CPU=1), engines(singles, CPU=1)]
    assert (problems(nodes, demands) == []) is fits


def test_the_table_says_what_every_node_has() -> None:
    nodes = [node("one", free={"CPU": 1}, CPU=4, GPU=1), node("two", CPU=2)]
    assert node_table(nodes, [engines(2, CPU=1, GPU=1)]).splitlines() == [
        "    node  CPU     GPU     engines",
        "    one   1 of 4  0 of 1  0",
        "    two   2 of 2  0 of 0  0",
    ]


def test_room_that_comes_in_time(tmp_path: Path) -> None:
    config = campaign(tmp_path, rollouts={"engines": 2})
    looks = [[], [node("a", CPU=1)], [node("a", CPU=1), node("b", CPU=1)]]
    notes: list[str] = []
    rest = iter(looks)
    check_room(config, wait_s=60, look=lambda: next(rest), note=notes.append, sleep=lambda _: None)
    assert len(notes) == 1 and "waiting up to 60 s" in notes[0]


def test_room_that_does_not_come(tmp_path: Path) -> None:
    config = campaign(tmp_path, rollouts={"engines": 2})
    with pytest.raises(UserError) as caught:
        check_room(config, look=lambda: [node("a", CPU=1)])
    text = str(caught.value)
    assert "room for 1 of 2 x engine" in text
    assert "asked: 2 x engine (1 CPU each)" in text
    assert "a     1 of 1  1" in text
    assert "--wait" in text and "other work" not in text


def test_room_that_others_have_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other work has taken the room"):
        check_room(campaign(tmp_path), look=lambda: [node("a", free={}, CPU=1)])


def test_a_cluster_of_ones_own_has_every_label(tmp_path: Path) -> None:
    config = campaign(
        tmp_path,
        policy={"model": "demo://digits", "ranks": 2, "resources": {"custom": {"big": 0.5}}},
        rollouts={"engines": 3, "resources": {"custom": {"big": 1, "fast": 2}}},
    )
    assert custom_of(demands_of(config, gpus=False)) == {"big": 4.0, "fast": 6.0}


def test_resources_do_not_change_what_a_campaign_is(tmp_path: Path) -> None:
    other = campaign(
        tmp_path,
        policy={"model": "demo://digits", "resources": {"cpus": 4}},
        rollouts={"resources": {"custom": {"a100": 1}}},
    )
    assert other.hash() == campaign(tmp_path).hash()
    acting = [acting_campaign(tmp_path, workers=2, **placing) for placing in ({}, PLACED)]
    assert acting[0].hash() == acting[1].hash()


PLACED = {"resources": {"cpus": 0.5, "custom": {"desk": 1}}, "files": ["stock.txt"]}


def acting_campaign(folder: Path, **episode: object) -> CampaignConfig:
    acts = {"environment": "desk.py:Desk", "episode": episode}
    suite = {"name": "desk", "prompts": "demo://rev", "environment": "desk.py:Desk"}
    return campaign(
        folder,
        rounds=rounds({"name": "plain"}, {"name": "one", **acts}, {"name": "two", **acts}),
        suites=[{**suite, "episode": {**episode, "workers": 3}}],
    )


def test_environments_on_nodes_take_room_beside_engines(tmp_path: Path) -> None:
    assert [d.what for d in demands_of(acting_campaign(tmp_path, workers=2), gpus=True)] == [
        "engine"
    ]
    config = acting_campaign(tmp_path, workers=2, **PLACED)
    engine, desk = demands_of(config, gpus=False)
    # Both rounds, of which the later replays the earlier, and the suite beside them.
    assert str(desk) == "7 x environment (0.5 CPU, 1 desk each)" and engine.count == 1
    assert custom_of([engine, desk]) == {"desk": 7.0}
    assert runs_in_process(acting_campaign(tmp_path), None, None) is False
    here = config.model_copy(update={"rollouts": EngineConfig(backend="transformers")})
    with pytest.raises(UserError) as refused:
        runs_in_process(here, wish=True, address=None)
    assert "episode.resources place environments" in str(refused.value)
    most = {"CPU": 4.5, "desk": 7}
    assert problems([node("a", **most)], [engine, desk]) == []
    (reason,) = problems([node("a", **{**most, "CPU": 4})], [engine, desk])
    assert reason.endswith("ask for 4.5 CPU together, and there are 4")
    (reason,) = problems([node("a", **{**most, "desk": 6})], [engine, desk])
    assert reason == f"there is room for 6 of {desk}"


@pytest.mark.parametrize("wrong", [{"gpus": 2}, {"cpus": 0}, {"custom": {"a": 0}}, {"gpu": 1}])
def test_resources_that_make_no_sense(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"gpus|cpus|custom|gpu"):
        campaign(tmp_path, rollouts={"resources": wrong})
