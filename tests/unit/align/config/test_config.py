"""Campaign files: what YAML means, what is refused and in which words, what decides the hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.algorithms import GRPO
from align.config.campaign import CampaignConfig, PromptsConfig, overlay
from align.config.file import CampaignFile, load_campaign, parse_value
from align.report.settings import on_a_line, resolved_lines, stated_yaml
from rollouts.errors import UserError

CONFIGS = sorted((Path(__file__).parents[4] / "configs").rglob("*.yaml"))

CAMPAIGN = """\
name: small
policy: {model: demo://digits}
defaults:
  sampling: {group_size: 4, max_tokens: 6}
  optimizer: {lr: 1e-4}
rounds:
  - {name: first, prompts: demo://rev, rewards: [exact_match], steps: 2}
  - name: second
    prompts: demo://sort
    rewards: [exact_match, {name: length, weight: 0.5, part: size}]
    steps: 3
    optimizer: {lr: 2e-4}
suites:
  - {name: general, prompts: demo://general, metric: exact_match}
"""


def load(folder: Path, text: str = CAMPAIGN, overrides: Sequence[str] = ()) -> CampaignFile:
    path = folder / "campaign.yaml"
    path.write_text(text)
    return load_campaign(path, overrides)


def refusal(folder: Path, *overrides: str, text: str = CAMPAIGN) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_campaign_is_valid(path: Path) -> None:
    config = load_campaign(path).config
    assert len(config.rounds) >= 1
    # One page says what a campaign does; a second one would not be read.
    assert len(path.read_text().splitlines()) <= 80


def test_there_are_shipped_campaigns() -> None:
    assert "quickstart" in {path.stem for path in CONFIGS}


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3E5", 3e5), ("1.5e-4", 1.5e-4), ("-2e3", -2e3), (".5", 0.5),
        ("7", 7), ("-7", -7), ("true", True), ("false", False), ("null", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("Yes", "Yes"),
        ("1e", "1e"), ("e5", "e5"), ("[1e-4, on]", [1e-4, "on"]), ("1e-4x", "1e-4x"),
    ],
)  # fmt: skip
def test_yaml_scalars(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_number_in_scientific_notation_reaches_the_config(tmp_path: Path) -> None:
    assert [r.optimizer.lr for r in load(tmp_path).config.rounds] == [1e-4, 2e-4]


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    message = refusal(tmp_path, text=CAMPAIGN + "name: again\n")
    assert "'name' is given twice" in message
    assert "campaign.yaml:15: " in message


def test_a_key_that_stands_twice_further_down(tmp_path: Path) -> None:
    text = CAMPAIGN.replace("{lr: 2e-4}", "{lr: 2e-4, lr: 3e-4}")
    assert "'lr' is given twice" in refusal(tmp_path, text=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "holds a mapping, and this one holds a list"),
        ("", "holds a mapping, and this one holds nothing"),
        ("name: [unclosed\n", "not readable as YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
        ("? {a: 1}\n: 2\n", "not readable as YAML"),
    ],
)
def test_files_that_are_no_campaign(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text=text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such campaign file") as caught:
        load_campaign(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match="not readable as YAML"):
        load_campaign(path)


def test_a_file_of_absurd_size(tmp_path: Path) -> None:
    assert "larger than 1,048,576 bytes" in refusal(tmp_path, text="# " + "x" * (1 << 20))


# keys and values


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("sed=1", "sed", "'seed'"),
        ("policy.lorra.rank=4", "policy.lorra", "'lora'"),
        ("policy.lora.rnk=4", "policy.lora.rnk", "'rank'"),
        ("rounds.0.stepz=1", "rounds.0.stepz", "'steps'"),
        ("rounds.0.optimizer.learning_rate=1", "rounds.0.optimizer.learning_rate", "lr"),
        ("defaults.sampling.groupsize=8", "defaults.sampling.groupsize", "'group_size'"),
        ("rounds.0.replay.genral=0.1", "rounds.0.replay.genral", "'general'"),
        ("rounds.0.anchors.past={to: owner, betta: 1}", "rounds.0.anchors.past.0.betta", "'beta'"),
        ("rounds.0.algorithm={name: grpo, scal: none}", "rounds.0.algorithm.scal", "'scale'"),
        ("suites.0.margn=0.1", "suites.0.margn", "'margin'"),
        ("gate.alfa=0.1", "gate.alfa", "'alpha'"),
        ("rollouts.engine=2", "rollouts.engine", "'engines'"),
    ],
)
def test_a_misspelt_key_names_the_nearest(
    tmp_path: Path, override: str, where: str, nearest: str
) -> None:
    message = refusal(tmp_path, override)
    (line,) = [line for line in message.splitlines() if "unknown key" in line]
    assert line.strip().startswith(f"{where}: unknown key")
    assert nearest in line


def test_a_mistake_in_defaults_is_told_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "defaults.optimizer.lrr=1")
    assert message.count("unknown key") == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds.0.steps=many", "rounds.0.steps: expected a whole number of at least 1"),
        ("rounds.0.steps=0", "rounds.0.steps: expected a whole number of at least 1, got 0"),
        ("rounds.0.steps=2.5", "rounds.0.steps:"),
        (
            "rounds.0.optimizer.lr=fast",
            "rounds.0.optimizer.lr: expected a number above 0 and at most 1",
        ),
        ("rounds.0.optimizer.lr=.nan", "rounds.0.optimizer.lr:"),
        ("rounds.0.rewards=[]", "rounds.0: grpo learns from rewards; set rewards"),
        ("rounds.0.prompts=null", "samples completions of prompts; set prompts"),
        (
            "rounds.0={name: first, prompts: demo://rev, rewards: [exact_match], steps: 2, "
            "algorithm: dpo, anchors: {new: {to: parent, beta: 0}}}",
            "total weight is 0",
        ),
        ("rounds.0.data=pairs.jsonl", "would not read data"),
        ("rounds.0.algorithm={name: dpo, pairs: file}", "learns from pairs of a file; set data"),
        (
            "rounds.0={name: first, prompts: demo://rev, rewards: [exact_match], steps: 2, "
            "sampling: {max_staleness: 1}, importance: {level: none}}",
            "samples of older weights would count",
        ),
        ("rounds.0.sampling={in_flight: true}", "with max_staleness 0 there are none at a sync"),
        ("rounds.0.prompts=3", "rounds.0.prompts:"),
        ("rounds.0.mode=on", "rounds.0.mode: expected add or override, got 'on'"),
        ("rounds=[]", "rounds:"),
        ("rounds=three", "rounds:"),
        ("rounds.0=three", "rounds.0:"),
        ("defaults=three", "defaults:"),
        ("name=Not A Name", "name:"),
        ("name=../escape", "name:"),
        ("policy.dtype=float16", "policy.dtype: expected auto, float32 or bfloat16"),
        ("gate.alpha=0.7", "gate.alpha: expected a number above 0 and below 0.5, got 0.7"),
        ("rounds.0.algorithm=grop", "did you mean 'grpo'?"),
        ("rounds.0.anchors.past={to: nobody, beta: 1}", "rounds.0.anchors.past.0.to:"),
        ("suites.0.metric=null", "a suite over prompts needs a metric"),
        ("suites.0.text=story.txt", "set exactly one"),
        ("suites.0.name=first", "'first' is used twice; rename one"),
        ("rounds.1.name=first", "'first' is used twice; rename one"),
        ("defaults.replay={past: 0.5, general: 0.5}", "must leave room for new prompts"),
        ("defaults.replay.rewards=true", "set samples_per_prompt to the group size"),
    ],
)
def test_a_wrong_value_is_one_message(tmp_path: Path, override: str, words: str) -> None:
    message = refusal(tmp_path, override)
    assert words in message
    assert "campaign.yaml: the campaign is not valid" in message


def test_a_missing_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, text=CAMPAIGN.replace(", steps: 2", ""))
    assert "rounds.0.steps: is missing and has no default" in message


def test_a_problem_is_told_once(tmp_path: Path) -> None:
    """The message does not repeat the problem as a list of rounds that is too short without the valid
    one."""
    message = refusal(
        tmp_path, "rounds=[{name: only, prompts: 'demo://rev', rewards: [exact_match]}]"
    )
    assert message.splitlines()[1:] == ["  rounds.0.steps: is missing and has no default"]
    assert "rounds: expected a list with at least 1 entry" in refusal(tmp_path, "rounds=[]")


def test_many_problems_are_listed_and_then_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, *(f"gate.wrong{i}=1" for i in range(8)))
    assert message.count("unknown key") == 5
    assert "... and 3 more" in message


def test_group_size_one_has_nothing_to_compare(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rounds.1.sampling.group_size=1")
    assert "rounds.1.sampling.group_size: grpo compares completions of one prompt" in message
    assert "use at least 2" in message


def test_weights_in_flight_are_whole_models(tmp_path: Path) -> None:
    in_flight = "rounds.1.sampling={max_staleness: 1, in_flight: true}"
    message = refusal(tmp_path, in_flight, "policy.lora={rank: 4, serve: adapter}")
    assert "rounds.1.sampling: in_flight is on and engines serve adapters" in message
    assert "set policy.lora.serve to merged" in message
    config = load(tmp_path, overrides=[in_flight, "policy.lora={rank: 4, serve: merged}"]).config
    assert [spec.sampling.in_flight for spec in config.rounds] == [False, True]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds.0.anchors.past={to: 'round:second', beta: 1}", "names a round that comes later"),
        ("rounds.1.anchors.new={to: 'round:second', beta: 1}", "names a round that is this one"),
        ("rounds.1.anchors.new={to: 'round:third', beta: 1}", "names a round that does not exist"),
        ("rounds.1.anchors.new={to: 'round:general', beta: 1}", "names a round that"),
        ("rounds.1.anchors.new={to: owner, beta: 1}", "only past prompts have an owner"),
        ("rounds.1.anchors.general={to: owner, beta: 1}", "only past prompts have an owner"),
    ],
)
def test_anchors_that_hold_to_nothing(tmp_path: Path, override: str, words: str) -> None:
    message = refusal(tmp_path, override)
    assert words in message
    assert override.split("anchors")[0] in message


def test_an_anchor_may_name_an_earlier_round(tmp_path: Path) -> None:
    file = load(tmp_path, overrides=["rounds.1.anchors.new={to: 'round:first', beta: 0.1}"])
    assert [a.to for a in file.config.rounds[1].anchors.new] == ["round:first"]


# overrides


def test_overrides_by_index_by_name_and_into_what_is_not_there(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        overrides=[
            "rounds.0.steps=7",
            "rounds.second.optimizer.lr=5e-5",
            "rounds.second.rewards.1.weight=0.25",
            "suites.general.items=50",
            "policy.lora.rank=4",
            "store=/somewhere/else",
        ],
    ).config
    assert config.rounds[0].steps == 7
    assert config.rounds[1].optimizer.lr == 5e-5
    assert config.rounds[1].rewards[1].weight == 0.25
    assert config.suites[0].items == 50
    assert config.policy.lora is not None and config.policy.lora.rank == 4
    assert config.folder == Path("/somewhere/else")


def test_an_override_below_a_word_replaces_it(tmp_path: Path) -> None:
    config = load(tmp_path, overrides=["rounds.0.prompts.source=demo://inc"]).config
    assert config.rounds[0].prompts.source == "demo://inc"
    text = CAMPAIGN.replace("rounds:", "rounds:\n  - three")
    assert "rounds.0.name: is missing" in refusal(tmp_path, "rounds.0.steps=3", text=text)


def test_the_last_override_wins_and_may_replace_a_whole_mapping(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        overrides=["seed=1", "seed=2", "defaults.sampling={group_size: 2, max_tokens: 3}"],
    ).config
    assert config.seed == 2
    assert config.rounds[0].sampling.group_size == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("rounds.secnd.steps=3", "did you mean 'second'?"),
        ("rounds.steps.x=3", "no entry 'steps'"),
        ("rounds.9.steps=3", "no entry '9'"),
        ("rounds.-1.steps=3", "no entry '-1'"),
        ("seed=[1", "--set"),
        ("seed=1: 2: 3", "--set"),
    ],
)
def test_an_override_that_means_nothing(tmp_path: Path, override: str, words: str) -> None:
    message = refusal(tmp_path, override)
    assert words in message
    assert "--set" in message


# what a round inherits, and where a value is from


def test_a_round_is_the_defaults_overlaid(tmp_path: Path) -> None:
    file = load(tmp_path, overrides=["rounds.1.sampling={prompts_per_step: 3}"])
    sampling = file.config.rounds[1].sampling
    assert (sampling.group_size, sampling.prompts_per_step, sampling.max_tokens) == (4, 3, 6)
    assert sampling.temperature == 1.0
    assert file.config.rounds[0].sampling.prompts_per_step == 16


def test_overlay_merges_mappings_and_replaces_the_rest() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}
    above = {"a": {"y": [3]}, "b": {"new": 1}, "c": None}
    assert overlay(below, above) == {"a": {"x": 1, "y": [3]}, "b": {"new": 1}, "c": None}
    assert below["a"] == {"x": 1, "y": [1, 2]}


def test_resolved_settings_say_where_each_is_from(tmp_path: Path) -> None:
    file = load(tmp_path, overrides=["rounds.1.steps=9", "rounds.second.optimizer.eps=1e-6"])
    lines = resolved_lines(file)
    origins = {line.partition(":")[0]: line.rpartition("# ")[2] for line in lines}
    values = {line.partition(":")[0]: line.partition(": ")[2].split("  #")[0] for line in lines}
    assert origins["rounds.0.steps"] == "file"
    assert origins["rounds.1.steps"] == "--set"
    assert values["rounds.1.steps"].strip() == "9"
    assert origins["rounds.0.optimizer.lr"] == "defaults"
    assert origins["rounds.1.optimizer.lr"] == "file"
    assert origins["rounds.1.optimizer.eps"] == "--set"
    assert origins["rounds.0.sampling.temperature"] == "built-in"
    assert origins["rounds.0.prompts.source"] == "file"
    assert origins["gate.alpha"] == "built-in"
    assert set(origins.values()) == {"--set", "file", "defaults", "built-in"}


@pytest.mark.parametrize(
    "value", ["\n", "a\n\nb ", "word " * 60, "a\u2028b", "# no", "on", 3, None]
)
def test_a_resolved_value_stands_on_one_line(value: Any) -> None:
    line = on_a_line(value)
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(line) == value


def test_stated_settings_are_the_file_with_its_overrides(tmp_path: Path) -> None:
    file = load(tmp_path, overrides=["seed=3"])
    assert parse_value(stated_yaml(file)) == parse_value(CAMPAIGN) | {"seed": 3}


# the hash


@pytest.mark.parametrize(
    "override",
    ["store=/somewhere/else", "rollouts.engines=2", "rollouts.max_num_seqs=8"],
)
def test_the_hash_does_not_depend_on_where_and_how_it_runs(tmp_path: Path, override: str) -> None:
    assert load(tmp_path, overrides=[override]).config.hash() == load(tmp_path).config.hash()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "rounds.0.steps=3", "gate.alpha=0.01", "policy.dtype=bfloat16", "name=other"],
)
def test_the_hash_depends_on_what_decides_the_result(tmp_path: Path, override: str) -> None:
    assert load(tmp_path, overrides=[override]).config.hash() != load(tmp_path).config.hash()


def test_short_and_long_spellings_are_one_campaign(tmp_path: Path) -> None:
    long = yaml.safe_load(CAMPAIGN.replace("1e-4", "0.0001").replace("2e-4", "0.0002"))
    long["rounds"][0] |= {
        "prompts": {"source": "demo://rev", "column": "prompt"},
        "rewards": [{"name": "exact_match", "weight": 1.0}],
        "algorithm": {"name": "grpo", "scale": "group"},
        "anchors": {"past": {"to": "owner", "beta": 3.0}},
    }
    config = CampaignConfig.model_validate(long)
    assert config.hash() == load(tmp_path).config.hash()
    assert config.rounds[0].algorithm == GRPO()


def test_content_gives_the_campaign_back(tmp_path: Path) -> None:
    config = load(tmp_path).config
    assert CampaignConfig.model_validate(config.content()).hash() == config.hash()


def test_the_store_has_a_default_of_its_own(tmp_path: Path) -> None:
    assert load(tmp_path).config.folder == tmp_path / "runs" / "small"


def test_sources_are_equal_and_hash_by_value() -> None:
    """Rounds are told apart by what they ask, in sets and as keys."""
    kwargs = {"enable_thinking": False, "level": [1]}
    plain, chat = (
        PromptsConfig(source="a.jsonl", **more) for more in ({}, {"chat_template_kwargs": kwargs})
    )
    again = PromptsConfig(source="a.jsonl", chat_template_kwargs=dict(reversed(kwargs.items())))
    assert chat == again and hash(chat) == hash(again)
    assert len({plain, chat, again}) == 2
