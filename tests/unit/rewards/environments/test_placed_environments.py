"""Environments in processes elsewhere: the same episodes, on the least busy of them, and losses."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rewards.environments.cluster import placed
from rewards.environments.cluster.actor import EnvironmentActor, HostAnswer
from rewards.environments.cluster.code import TravellingCode
from rewards.environments.cluster.placed import PlacedEnvironments
from rewards.environments.describe import DescribedEnvironment
from rewards.environments.environments import DeadEnvironment, WorkerEnvironments
from rewards.environments.plan import EnvironmentLimits, EnvironmentsPlan
from rewards.pending import LoopThread
from rollouts.errors import UserError
from tests.patience import patient
from tests.unit.described import WORLDS, describe_here
from tests.unit.rewards.environments.test_worker_environments import answer, asks, call

GONE = ConnectionError("the node is gone\nand nobody knows why")


class HereHost:
    """An actor with its real workers, in this process; ``kill`` loses it as a node's power cut would."""

    def __init__(
        self, plan: EnvironmentsPlan, described: Mapping[str, DescribedEnvironment]
    ) -> None:
        self.actor = EnvironmentActor(plan.travelling(), described)
        self.is_lost = self.is_silent = False
        self._answers: list[Future[HostAnswer]] = []
        self._loop = LoopThread()

    def ask(self, request: str, *arguments: Any) -> Future[HostAnswer]:
        if self.is_lost:
            raise GONE
        if self.is_silent:
            return Future()
        requested: Coroutine[Any, Any, HostAnswer] = getattr(self.actor, request)(*arguments)
        answer: Future[HostAnswer] = Future()
        self._answers.append(answer)
        self._loop.submit(requested).add_done_callback(
            lambda done: None if self.is_lost else answer.set_result(done.result())
        )
        return answer

    def kill(self) -> None:
        self.is_lost = True
        for pending in self._answers:
            if not pending.done():
                pending.set_exception(GONE)

    def end(self, patience_s: float) -> None:
        self._loop.submit(self.actor.end()).result(patient(60.0))


class Hosts(list[HereHost]):
    """Hosts that were launched, in order; the first ``num_lost`` are lost before they start."""

    num_lost = 0

    def __call__(
        self, plan: EnvironmentsPlan, described: Mapping[str, DescribedEnvironment]
    ) -> HereHost:
        host = HereHost(plan, described)
        host.is_lost = len(self) < self.num_lost
        self.append(host)
        return host


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


def plan_of(monkeypatch: pytest.MonkeyPatch, workers: int = 2, **settings: Any) -> EnvironmentsPlan:
    limits = EnvironmentLimits(workers=workers, bundle={"CPU": 1.0})
    plan = EnvironmentsPlan(
        tools=(f"{WORLDS}:python",),
        environments={"": f"{WORLDS}:Counter"},
        limits=limits,
        **settings,
    )
    describe_here(monkeypatch, plan)
    return plan


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch, hosts: Hosts) -> Iterator[PlacedEnvironments]:
    with PlacedEnvironments(plan_of(monkeypatch), launch=hosts) as made:
        yield made


def episode(environments: Any, key: str) -> tuple[Any, ...]:
    """Act an episode out; return all that it brought but its seconds."""
    text = environments.open(key, asks(start=3)).result(patient(60.0))
    calls = [call("python", code="random.random()"), call("increment", by=2), call("none")]
    observations = answer(environments.call(key, calls))
    outcome = environments.close(key, ({"role": "user", "content": "Go."},)).result(patient(60.0))
    return text, [each._replace(seconds=0.0) for each in observations], outcome


def test_an_episode_is_the_same_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch, environments: PlacedEnvironments, hosts: Hosts
) -> None:
    with WorkerEnvironments(plan_of(monkeypatch)) as here:
        expected = [episode(here, key) for key in ("a", "b")]
        metrics = here.metrics
    assert [episode(environments, key) for key in ("a", "b")] == expected
    assert environments.metrics == metrics != {}
    assert expected[0][1][0] != expected[1][1][0]  # Random numbers follow from the key.
    assert len(hosts) == 2


def test_episodes_are_spread_and_a_lost_process_fails_its_own_alone(
    environments: PlacedEnvironments, hosts: Hosts
) -> None:
    keys = ["a", "b", "c", "d"]
    opening = [environments.open(key, asks(start=1)) for key in keys]
    assert [each.result(patient(60.0)) for each in opening] == ["Count from 1."] * 4
    homes = {key: environments._episodes[key].host for key in keys}
    assert sorted(map(hosts.index, homes.values())) == [0, 0, 1, 1]  # type: ignore[arg-type]
    lost = [key for key in keys if homes[key] is hosts[0]]
    hanging = environments.call(lost[0], [call("python", code="__import__('time').sleep(1000)")])
    hosts[0].kill()
    with pytest.raises(DeadEnvironment, match="is lost"):
        hanging.result(patient(60.0))
    with pytest.raises(DeadEnvironment, match="is lost"):
        answer(environments.call(lost[1], [call("increment", by=1)]))
    for key in set(keys) - set(lost):
        assert answer(environments.call(key, [call("increment", by=1)]))[0].text == "2"
    assert episode(environments, "e")[0] == "Count from 3."
    assert environments.metrics["environment/lost_processes"] == 1.0
    assert len(hosts) == 3


def test_processes_that_do_not_start_are_replaced_within_limits(
    monkeypatch: pytest.MonkeyPatch, hosts: Hosts
) -> None:
    with PlacedEnvironments(plan_of(monkeypatch, workers=1), launch=hosts) as environments:
        hosts.num_lost = 2
        assert episode(environments, "a")[0] == "Count from 3."
        assert len(hosts) == 3
        hosts.num_lost = 100
        hosts[-1].kill()
        for _ in range(2):
            with pytest.raises(DeadEnvironment, match=r"no node holds .* the node is gone$"):
                environments.open("b", asks()).result(patient(60.0))
        assert len(hosts) == 3 + placed.MOST_LOSSES


def test_a_process_that_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, environments: PlacedEnvironments, hosts: Hosts
) -> None:
    assert episode(environments, "a")[0] == "Count from 3."
    environments.open("b", asks(start=1)).result(patient(60.0))
    monkeypatch.setattr(placed, "NETWORK_S", 0.1 - environments.plan.limits.episode_s)
    for host in hosts:
        host.is_silent = True
    with pytest.raises(DeadEnvironment, match="no answer within"):
        environments.close("b").result(patient(60.0))
    assert environments.metrics["environment/lost_processes"] == 1.0


def test_processes_that_find_no_room_say_what_they_wait_for(
    monkeypatch: pytest.MonkeyPatch, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placed, "SLOW_S", 0.01)
    monkeypatch.setattr(placed, "PLACE_S", 0.5)
    monkeypatch.setattr(placed, "NETWORK_S", 0.0)
    monkeypatch.setattr(placed, "MOST_LOSSES", 0)
    monkeypatch.setattr(HereHost, "ask", lambda self, request, *arguments: Future())
    with (
        PlacedEnvironments(plan_of(monkeypatch), launch=hosts) as environments,
        pytest.raises(
            DeadEnvironment, match=r"no node had room for it and started it within 0.5 s"
        ),
    ):
        environments.open("a", asks()).result(patient(60.0))
    (message,) = {record.getMessage() for record in caplog.records}
    assert "2 of 2 processes wait for a node with 1 CPU free" in message
    assert "at most 0.5 s; episode.resources" in message


def test_an_episode_that_is_given_up_frees_its_place(
    environments: PlacedEnvironments, hosts: Hosts
) -> None:
    environments.open("a", asks(start=1)).result(patient(60.0))
    environments.drop("a")
    environments.drop("unknown")
    with pytest.raises(DeadEnvironment, match="not open"):
        environments.close("a").result(patient(60.0))
    assert environments.open("a", asks(start=7)).result(patient(60.0)) == "Count from 7."
    environments.shutdown()
    with pytest.raises(DeadEnvironment, match="not open"):
        environments.close("a").result(patient(60.0))
    assert episode(environments, "c")[0] == "Count from 3."  # New ones have started.
    assert len(hosts) == 4


READER = '''
"""An environment that reads files beside it, when it is imported and later."""
from pathlib import Path

HERE = Path(__file__).parent
STOCK = (HERE / "data" / "stock.txt").read_text()


class Shop:
    """A shop."""

    def reset(self, **row) -> str:
        return STOCK

    def price(self) -> str:
        """Tell the price."""
        return (HERE / "price.txt").resolve().read_text()
'''


@pytest.mark.parametrize("is_absolute", [False, True])
def test_code_and_its_files_travel_in_their_places(
    monkeypatch: pytest.MonkeyPatch, hosts: Hosts, tmp_path: Path, is_absolute: bool
) -> None:
    shop, here = tmp_path / "shop", tmp_path / "work"
    (shop / "data").mkdir(parents=True)
    here.mkdir()
    (shop / "shop.py").write_text(READER)
    (shop / "data" / "stock.txt").write_text("apples")
    (shop / "price.txt").write_text("3")
    monkeypatch.chdir(here)
    below = str(shop) if is_absolute else "../shop"
    plan = EnvironmentsPlan(
        environments={"": f"{below}/shop.py:Shop"},
        files=(f"{below}/data", f"{below}/price.txt"),
        limits=EnvironmentLimits(bundle={"CPU": 1.0}),
    )
    describe_here(monkeypatch, plan)
    travelling = plan.travelling()
    assert set(travelling.code.contents) == {  # type: ignore[union-attr]
        "shop/shop.py", "shop/data/stock.txt", "shop/price.txt"
    }  # fmt: skip
    with PlacedEnvironments(plan, launch=hosts) as environments:
        hosts_began = environments.open("warm", asks()).result(patient(60.0))
        assert hosts_began == "apples"
        for file in shop.rglob("*.txt"):
            file.unlink()  # As on a machine that never had them.
        assert answer(environments.call("warm", [call("price")]))[0].text == "3"
        (folder,) = {worker._worker._temporary for worker in hosts[0].actor._environments._workers}  # type: ignore[union-attr]
        assert Path(folder, "shop", "price.txt").exists()
    assert not Path(folder).exists()


def test_files_that_cannot_travel_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"rounds.0.episode.files: there is no gone.txt to send"):
        TravellingCode.read(["gone.txt"], "rounds.0.episode.files")
    monkeypatch.setattr("rewards.environments.cluster.code.LARGEST_CODE", 3)
    (tmp_path / "four").write_bytes(b"1234")
    with pytest.raises(UserError, match="at most 0 travel"):
        TravellingCode.read(["four"], "files")
