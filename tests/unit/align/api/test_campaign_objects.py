"""Campaigns from objects: what a file would state for them, functions, paths, and messages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import align
from align.algorithms import GRPO
from align.algorithms.preference.dpo import DPO
from align.config.campaign import CampaignConfig
from align.settings import StatedPath
from align.store.changes.code import code_of
from tests.unit.campaigns import raw_campaign


def long(completions: Sequence[str], **columns: Any) -> list[float]:
    """Score the length."""
    return [float(len(text)) for text in completions]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def made(**changes: Any) -> align.Campaign:
    return align.Campaign(**raw_campaign(Path(), **changes))


def of_objects(**changes: Any) -> align.Campaign:
    """The campaign of `raw_campaign`, from settings."""
    values: dict[str, Any] = {
        "name": "small",
        "policy": align.PolicyConfig(model="demo://digits"),
        "store": Path("store"),
        "defaults": align.RoundSettings(
            sampling=align.SamplingConfig(group_size=4, prompts_per_step=5, max_tokens=6),
            optimizer=align.OptimizerConfig(lr=3e-4),
            replay=align.ReplayConfig(
                general_prompts=align.PromptsConfig(source="demo://general?n=40"),
                past=0.2,
                general=0.2,
                buffer=12,
            ),
            suite=align.RoundSuiteConfig(items=30, temperature=1.0),
        ),
        "rounds": [
            align.RoundConfig(
                name="first", prompts="demo://rev?n=60", rewards=[align.Reward("exact_match")], steps=2
            ),
            align.RoundConfig(name="second", prompts="demo://inc?n=60", rewards=["exact_match"], steps=2),
        ],
        "suites": [
            align.SuiteConfig(
                name="general", prompts="demo://general", metric="exact_match", items=30
            )
        ],
        "gate": align.GateConfig(mode="observe"),
    } | changes  # fmt: skip
    return align.Campaign(**values)


def test_objects_and_a_file_make_the_same_campaign(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(raw_campaign(Path())))
    by_file = align.load_campaign("campaign.yaml").config
    assert of_objects().config == made().config == by_file
    assert of_objects().config.content() == by_file.content()
    assert of_objects().config.folder == by_file.folder


def test_a_round_overlays_the_defaults_with_what_it_was_given() -> None:
    spec = align.RoundConfig(
        name="one", prompts="demo://rev", rewards=[align.Reward("exact_match", weight=2.0)], steps=1,
        sampling=align.SamplingConfig(temperature=0.5),
    )  # fmt: skip
    (built,) = of_objects(rounds=[spec]).config.rounds
    assert (built.sampling.temperature, built.sampling.group_size) == (0.5, 4)
    assert (built.optimizer.lr, built.suite.items) == (3e-4, 30)
    assert built.rewards[0].weight == 2.0


def test_retention_and_algorithms_are_given_as_objects_or_words() -> None:
    common: dict[str, Any] = {"prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1}
    owner = align.AnchorConfig(to="owner", beta=2.0)
    methods = [align.KLAnchorsConfig(past=[owner]), align.EWCConfig(strength=5)]
    plain = [{"name": "ewc", "lambda": 5}, {"name": "kl_anchors", "past": dict(owner)}]
    rounds = [
        align.RoundConfig(name="a", algorithm=GRPO(scale="none"), retention=methods, **common),
        {"name": "b", "algorithm": DPO(beta=0.3), "retention": methods, **common},
        {"name": "c", "algorithm": {"name": "dpo", "beta": 0.3}, "retention": plain, **common},
    ]
    one, two, three = of_objects(rounds=rounds).config.rounds
    assert one.algorithm == GRPO(scale="none")
    assert two.algorithm == three.algorithm == DPO(beta=0.3)
    assert one.methods == two.methods
    assert one.anchors == three.anchors and one.retention == three.retention


def reward_of(campaign: align.Campaign) -> str:
    return campaign.config.rounds[0].rewards[0].name


def with_reward(reward: Any) -> align.Campaign:
    return of_objects(
        rounds=[{"name": "one", "prompts": "demo://rev", "rewards": [reward], "steps": 1}]
    )


def local_reward(bonus: float) -> Any:
    def polite(completions: Sequence[str], **columns: Any) -> list[float]:
        return [bonus for _ in completions]

    return polite


def test_a_function_is_stated_as_a_file_and_known_by_its_source() -> None:
    campaign = with_reward(align.Reward(local_reward(1.0), weight=0.5, isolation="inline"))
    name = reward_of(campaign)
    assert isinstance(name, StatedPath) and name.stated == "polite.py:polite"
    path = Path(name.rpartition(":")[0])
    assert path.is_file() and path.is_relative_to(Path("user").absolute())
    assert campaign.config.content()["rounds"][0]["rewards"][0]["name"] == "polite.py:polite"
    other = with_reward(local_reward(2.0))
    assert code_of(campaign.config).keys() == code_of(other.config).keys() == {"polite.py"}
    assert code_of(campaign.config) != code_of(other.config)
    assert code_of(with_reward(local_reward(1.0)).config) == code_of(campaign.config)


@pytest.mark.parametrize("given", [local_reward(1.0), align.Reward(local_reward(1.0))])
def test_a_function_alone_is_a_reward_and_a_metric(given: Any) -> None:
    suite = align.SuiteConfig(name="s", prompts="demo://general", metric=given)
    campaign = of_objects(
        suites=[suite, {"name": "t", "prompts": "demo://general", "metric": given}],
        rounds=[{"name": "one", "prompts": "demo://rev", "rewards": [given], "steps": 1}],
    )
    metrics = [s.metric.name for s in campaign.config.suites if s.metric]
    assert [*metrics, reward_of(campaign)] == [metrics[0]] * 3


def test_a_function_of_a_module_keeps_its_name() -> None:
    assert reward_of(with_reward(long)) == f"{__name__}:long"


@pytest.mark.parametrize(
    "file", ["my_package/scores.py", "my_package/scores/__init__.py", "mine.py"]
)
def test_the_code_of_a_module_is_on_record_without_importing_it(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "my_package").mkdir(exist_ok=True)
    (tmp_path / "my_package" / "__init__.py").write_text("")
    path.write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = "mine" if file == "mine.py" else "my_package.scores"
    config = with_reward(f"{module}:polite").config
    before = code_of(config)
    assert before == {module: hashlib.sha256(path.read_bytes()).hexdigest()}
    path.write_text("raise RuntimeError('changed')\n")
    assert code_of(config).keys() == {module} and code_of(config) != before


def test_a_function_of_a_file_is_stated_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("def polite(completions):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import rewards_of_mine  # type: ignore[import-not-found]

    name = reward_of(with_reward(rewards_of_mine.polite))
    assert name == "rewards_of_mine.py:polite"
    assert isinstance(name, StatedPath) and name.stated == name


def test_two_functions_of_one_name_are_refused() -> None:
    with pytest.raises(align.UserError, match="two different functions are named 'polite'"):
        of_objects(
            rounds=[
                {"name": n, "prompts": "demo://rev", "rewards": [local_reward(bonus)], "steps": 1}
                for n, bonus in (("a", 1.0), ("b", 2.0))
            ]
        )


def test_an_algorithm_of_ones_own_is_a_class() -> None:
    class Halved(GRPO):
        """Advantages, halved."""

        name: str = "halved"  # type: ignore[assignment]
        share: float = 0.5
        """Factor of every advantage."""

        def advantages(self, groups: Any) -> Any:
            return super().advantages(groups) * self.share

    spec = {"name": "one", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1}
    campaign = of_objects(rounds=[{**spec, "algorithm": Halved(share=0.25)}])
    algorithm = campaign.config.rounds[0].algorithm
    assert algorithm.model_dump()["share"] == 0.25
    assert campaign.config.content()["rounds"][0]["algorithm"]["name"] == "Halved.py:Halved"


def test_relative_paths_start_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    spec = {"name": "one", "prompts": "prompts.jsonl", "rewards": ["exact_match"], "steps": 1}
    campaign = of_objects(rounds=[spec], folder="project", store="runs/here")
    assert campaign.config.rounds[0].prompts.source == "project/prompts.jsonl"  # type: ignore[union-attr]
    assert campaign.config.folder == Path("project/runs/here")
    assert campaign.config.home == Path("project")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stor": "x"}, ("stor: unknown key", "did you mean 'store'")),
        ({"rounds": []}, ("rounds:",)),
        ({"gate": {"alpha": 2}}, ("gate.alpha", "2")),
        ({"rounds": [{"name": "a", "steps": 1}]}, ("rounds.0", "set prompts")),
        ({"suites": [{"name": "g", "prompts": "demo://general", "metric": lambda c: c}]}, ("a lambda",)),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_message(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(align.UserError) as caught:
        of_objects(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not Path("store").exists()


def test_a_file_takes_overrides_and_its_remarks_are_kept(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(raw_campaign(Path())))
    campaign = align.load_campaign(tmp_path / "campaign.yaml", ["rounds.first.steps=7"])
    assert campaign.config.rounds[0].steps == 7 and campaign.notes == ()
    assert isinstance(campaign.config, CampaignConfig)
    with pytest.raises(align.UserError, match="there is no such campaign file"):
        align.load_campaign("nothing.yaml")


def test_nothing_has_run_yet() -> None:
    campaign = of_objects()
    assert repr(campaign) == "Campaign('small', rounds: first, second, store: store)"
    for read in (campaign.matrix, campaign.rounds, lambda: campaign.steps("first")):
        with pytest.raises(align.UserError, match="no campaign in this store yet"):
            read()
    with pytest.raises(align.UserError, match="no campaign in this store yet"):
        align.open_store("store")
    assert not Path("store").exists()
