"""The setting ``retention`` of a campaign file: spellings, inheritance, hashes, refusals."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.config.retention.methods import EWCConfig, L2SPConfig
from align.config.retention.registry import RETENTION
from align.learner.folder.sizes import artifact_bytes, learner_memory, num_trained
from align.round.records.artifacts import stateless_lines
from align.store.changes.earlier_versions import as_read
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign

EWC: dict[str, Any] = {"name": "ewc", "lambda": 100.0}
PAST = [{"to": "owner", "beta": 2.0}]


def made(defaults: dict[str, Any], *rounds: dict[str, Any], **changes: Any) -> CampaignConfig:
    """The small campaign with settings of its defaults and of its rounds."""
    raw = raw_campaign(Path("nowhere"), **changes)
    raw["defaults"] |= defaults
    for spec, change in zip(raw["rounds"], rounds, strict=False):
        spec |= change
    return CampaignConfig.model_validate(raw)


def names(config: CampaignConfig, index: int = 0) -> list[str]:
    """Methods that hold anything in a round."""
    spec = config.rounds[index]
    anchors = spec.anchors.new or spec.anchors.past or spec.anchors.general
    return [m.name for m in spec.methods if m.name != "kl_anchors" or anchors]


def test_anchors_are_short_for_an_entry() -> None:
    long = made({"retention": [{"name": "kl_anchors", "past": PAST}]})
    short = made({"anchors": {"past": PAST}})
    assert long.rounds == short.rounds
    assert long.hash() == short.hash()
    assert long.training_hash("second") == short.training_hash("second")


def test_a_campaign_without_the_setting_has_the_content_it_always_had() -> None:
    content = made({}).content()
    assert all("retention" not in part for part in (content["defaults"], *content["rounds"]))
    assert made({"retention": ["kl_anchors"]}).hash() == made({}).hash()
    # In a round after it, another method changes nothing of what decided an earlier round.
    later = made({}, {}, {"retention": ["kl_anchors", EWC]})
    assert later.training_hash("first") == made({}).training_hash("first")
    assert later.training_hash("second") != made({}).training_hash("second")


def test_a_list_stands_for_all_methods() -> None:
    assert names(made({"retention": [EWC]})) == ["ewc"]
    assert names(made({"retention": []})) == []
    assert names(made({"retention": EWC})) == ["ewc"]
    assert names(made({"retention": ["kl_anchors", EWC, "l2_sp"]})) == [
        "kl_anchors",
        "ewc",
        "l2_sp",
    ]
    assert names(made({"retention": [EWC], "anchors": {"past": PAST}})) == ["kl_anchors", "ewc"]


def test_a_round_replaces_the_list_of_the_defaults() -> None:
    config = made({"retention": ["kl_anchors", EWC]}, {"retention": ["l2_sp"]}, {})
    assert (names(config, 0), names(config, 1)) == (["l2_sp"], ["kl_anchors", "ewc"])


def test_anchors_of_a_round_change_the_entry_of_the_defaults() -> None:
    entry = {"name": "kl_anchors", "past": PAST}
    config = made({"retention": [entry, EWC]}, {"anchors": {"general": []}})
    anchors = config.rounds[0].anchors
    assert [a.beta for a in anchors.past] == [2.0] and not anchors.general
    assert names(config) == ["kl_anchors", "ewc"]


@pytest.mark.parametrize(
    "settings",
    [
        ({"retention": ["kl_anchors", EWC]}, {"retention": []}, {}),
        ({"retention": [EWC]}, {}, {"anchors": {"past": PAST}}),
        ({}, {"retention": [EWC]}, {}),
    ],
)
def test_what_a_store_keeps_is_read_back_as_it_was(settings: tuple[dict[str, Any], ...]) -> None:
    content = made(*settings).content()
    assert as_read(content) == content


def test_lambda_is_spelt_as_in_the_papers() -> None:
    (method,) = made({"retention": [EWC]}).rounds[0].retention
    assert method == EWCConfig(strength=100.0)
    assert method.model_dump(mode="json")["lambda"] == 100.0


REFUSED: dict[str, tuple[Any, str]] = {
    "another name": ([{"name": "ewcc"}], "no retention method 'ewcc'; did you mean 'ewc'"),
    "no name": ([{"to": "base"}], "no retention method is named; add name: "),
    "no lambda": (["ewc"], "lambda: is missing"),
    "a lambda of nothing": ([{**EWC, "lambda": 0}], "expected a number above 0, got 0"),
    "a gamma above 1": ([{**EWC, "gamma": 1.5}], "at most 1, got 1.5"),
    "another key": ([{**EWC, "gama": 0.5}], "gama: unknown key; did you mean 'gamma'"),
    "a misspelt lambda": (
        [{"name": "ewc", "lamda": 5}],
        "lamda: unknown key; did you mean 'lambda'",
    ),
    "another snapshot": (
        [{"name": "l2_sp", "to": "owner"}],
        "expected parent or base, got 'owner'",
    ),
    "directions that push each other out": (
        [{"name": "ogd", "samples": 9, "most": 4}],
        "samples is 9 and most is 4",
    ),
    "a share of everything": (
        [{"name": "hft", "share": 1.0}],
        "a number above 0 and below 1, got 1.0",
    ),
    "an entry twice": (["l2_sp", "l2_sp"], "lists 'l2_sp' twice"),
}


CHANGING = sorted(name for name, config in RETENTION.items() if config.changes_step)


@pytest.mark.parametrize("pair", list(combinations(CHANGING, 2)), ids="+".join)
def test_two_methods_that_change_the_step_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="each change the optimizer's step") as error:
        made({"retention": ["kl_anchors", *pair]})
    assert all(name in str(error.value) for name in pair) and "keep one" in str(error.value)


@pytest.mark.parametrize("name", CHANGING)
def test_one_method_that_changes_the_step_goes_with_penalties(name: str) -> None:
    chosen = ["kl_anchors", "si", "mas", "cpo_mask", EWC, "l2_sp", name]
    policy: dict[str, Any] = {"model": "demo://digits"}
    if RETENTION[name].needs_fresh_adapter:
        chosen = ["kl_anchors", "n_lora", "l2_sp", name]
        policy["lora"] = {"merge": True}
    assert names(made({"retention": chosen}, policy=policy))[-1] == name


UNREPLAYED: dict[str, dict[str, Any]] = {
    "no replay": {"retention": ["kl_anchors", "agem"], "replay": {"past": 0.0}},
    "no loss": {"retention": ["agem"]},
    "general prompts without a loss": {
        "retention": [{"name": "kl_anchors", "past": [], "general": []}, "agem"],
    },
}  # fmt: skip


@pytest.mark.parametrize("case", UNREPLAYED)
def test_a_reference_gradient_of_nothing_is_refused(case: str) -> None:
    with pytest.raises(ValidationError, match="agem compares the gradient with that of replayed"):
        made(UNREPLAYED[case])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_once_with_its_place(tmp_path: Path, case: str) -> None:
    retention, message = REFUSED[case]
    raw = raw_campaign(tmp_path)
    raw["rounds"][1]["retention"] = retention
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as error:
        load_campaign(path)
    text = str(error.value)
    assert message in text and "rounds.1" in text
    assert text.count(message) == 1


def test_anchors_beside_their_own_entry_are_refused() -> None:
    with pytest.raises(ValidationError, match="anchors is short for the entry kl_anchors"):
        made({}, {"anchors": {"past": PAST}, "retention": ["kl_anchors"]})


ADAPTERS: dict[str, tuple[dict[str, Any], Any, str]] = {
    **{
        f"{name}, merged": (
            {"merge": True}, EWC if name == "ewc" else name, "fresh adapter in every round",
        )
        for name, config in RETENTION.items()
        if config.keeps_artifact and config.stores_weights and not config.needs_fresh_adapter
    },
    "l2_sp to a base that moves": (
        {"merge": True}, {"name": "l2_sp", "to": "base"}, "adds every round's update to it",
    ),
    "l2_sp, dora": ({"dora": True}, "l2_sp", "DoRA also rescales their rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_penalties_that_an_adapter_has_no_weights_for_are_refused(case: str) -> None:
    lora, method, message = ADAPTERS[case]
    policy = {"model": "demo://digits", "lora": lora}
    with pytest.raises(ValidationError, match=message):
        made({"retention": [method]}, policy=policy)
    made({"retention": [{"name": "l2_sp"} if "dora" not in lora else EWC]}, policy=policy)


FRESH = sorted(name for name, config in RETENTION.items() if config.needs_fresh_adapter)
UNFIT: dict[str, tuple[dict[str, Any] | None, str]] = {
    "full weights": (None, "policy.lora is not set.*set policy.lora to {merge: true}.*gpm, ogd or ewc"),
    "one adapter for all rounds": ({}, "set policy.lora.merge to true.*gpm, ogd or ewc"),
    "dora": ({"merge": True, "dora": True}, "set policy.lora.dora to false"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("name", FRESH)
def test_what_keeps_adapters_apart_needs_a_plain_one_for_each_round(name: str, case: str) -> None:
    lora, message = UNFIT[case]
    with pytest.raises(ValidationError, match=f"rounds.0.retention: {name} .*{message}"):
        made({"retention": [name]}, policy={"model": "demo://digits", "lora": lora})
    fresh = {"rslora": True, "targets": ["q_proj", "down_proj"], "merge": True}
    made({"retention": [name]}, policy={"model": "demo://digits", "lora": fresh})


def test_directions_that_are_frozen_are_turned_away_from_nothing() -> None:
    policy = {"model": "demo://digits", "lora": {"merge": True}}
    with pytest.raises(ValidationError, match=r"o_lora turns .* inflora chooses .* keep one"):
        made({"retention": ["o_lora", "inflora"]}, policy=policy)
    assert names(made({"retention": ["o_lora", "n_lora"]}, policy=policy)) == ["o_lora", "n_lora"]


FLOAT32 = sorted(name for name, config in RETENTION.items() if config.needs_float32)
SAMPLES = sorted(name for name, config in RETENTION.items() if config.needs_samples)
FROM_A_FILE: dict[str, dict[str, Any]] = {
    "pairs": {"algorithm": {"name": "dpo", "pairs": "file"}},
    "ratings": {"algorithm": {"name": "kto", "ratings": "file"}},
    "demonstrations": {"algorithm": "sft"},
    "texts": {"algorithm": "pretrain"},
}
"""Rounds that draw no samples, by what they learn from."""


@pytest.mark.parametrize("name", FLOAT32)
def test_what_measures_less_than_rounding_needs_float32(name: str) -> None:
    def policy(dtype: str) -> dict[str, str]:
        return {"model": "demo://digits", "dtype": dtype}

    # By the defaults it is a method of every round that lists no others.
    cases: list[tuple[dict[str, Any], ...]] = [
        ({}, {}, {"retention": [name]}),
        ({"retention": [name]}, {"retention": []}),
    ]
    for settings in cases:
        with pytest.raises(ValidationError, match=f"rounds.1.retention: {name} .*set policy.dtype"):
            made(*settings, policy=policy("bfloat16"))
        made(*settings, policy=policy("float32"))
    made({}, {}, {"retention": [EWC]}, policy=policy("bfloat16"))


@pytest.mark.parametrize("material", FROM_A_FILE)
@pytest.mark.parametrize("name", SAMPLES)
def test_what_reads_samples_is_refused_in_a_round_that_draws_none(name: str, material: str) -> None:
    spec = {**FROM_A_FILE[material], "data": "rows.jsonl", "prompts": None, "rewards": []}
    with pytest.raises(ValidationError, match=f"rounds.1.retention: {name} .*{material} of a file"):
        made({}, {}, {**spec, "retention": ["kl_anchors", name]})
    # Defaults may be meant for the other rounds; the check names those that they do nothing in.
    config = made({"retention": ["kl_anchors", name]}, {}, spec)
    (line,) = stateless_lines(config.rounds, {})
    assert line.startswith(f"warning: round second: {name} does nothing") and material in line
    assert list(stateless_lines(config.rounds, {"second": "accepted"})) == []


def test_a_note_says_that_the_default_anchors_are_gone(tmp_path: Path) -> None:
    raw, path = raw_campaign(tmp_path), tmp_path / "campaign.yaml"
    for retention, notes in (([EWC], 1), (["kl_anchors", EWC], 0), ([], 1)):
        raw["defaults"]["retention"] = retention
        path.write_text(yaml.safe_dump(raw))
        actual = load_campaign(path).notes
        assert [note for note in actual if "kl_anchors" in note] == list(actual)
        assert len(actual) == notes


def test_an_override_reaches_into_the_list(tmp_path: Path) -> None:
    raw, path = raw_campaign(tmp_path), tmp_path / "campaign.yaml"
    raw["defaults"]["retention"] = ["kl_anchors", EWC]
    path.write_text(yaml.safe_dump(raw))
    config = load_campaign(path, ["defaults.retention.ewc.lambda=7"]).config
    assert config.rounds[0].retention == (EWCConfig(strength=7.0),)


def test_sizes_count_what_the_methods_keep() -> None:
    from align.data.base_model import resolve_model

    config = made({"retention": [EWC, "l2_sp"]}, {"retention": []})
    model = resolve_model(config.policy)
    trained = 4 * num_trained(model, config.policy)
    sizes = [learner_memory(model, config.policy, spec).retention for spec in config.rounds]
    assert sizes == [0, 3 * trained]
    kept = [artifact_bytes(model, config.policy, spec) for spec in config.rounds]
    assert kept == [0, trained]
    assert L2SPConfig().weight_copies == 1


def test_sizes_count_bases_of_inputs_and_the_adapters_of_all_rounds() -> None:
    """An adapter of rank 2 on q_proj, with as many outputs as inputs."""
    from align.data.base_model import resolve_model
    from align.learner.model.targets import adaptation_of

    lora = {"rank": 2, "merge": True, "targets": ["q_proj"]}
    config = made({"retention": ["inflora"]}, {}, {"retention": ["o_lora"]}, policy={
        "model": "demo://digits", "lora": lora,
    })  # fmt: skip
    model = resolve_model(config.policy)
    adapted = adaptation_of(model, config.policy)
    assert adapted is not None
    width = adapted.trained // (2 * 2 * adapted.layers)
    square = adapted.layers * width**2
    first, second = config.rounds
    assert (
        learner_memory(model, config.policy, first).retention == 4 * adapted.trained + 12 * square
    )
    assert artifact_bytes(model, config.policy, first) == 4 * (adapted.trained + square)
    assert artifact_bytes(model, config.policy, second, earlier=1) == 4 * 2 * adapted.trained


def test_the_check_says_what_the_methods_take() -> None:
    from align.data.base_model import resolve_model
    from align.report.forecast.check import held_weights

    plain = made({})
    model = resolve_model(plain.policy)
    assert held_weights(plain, model) == []
    copies = num_trained(model, plain.policy) * 4 / 2**20
    (line,) = held_weights(made({"retention": [EWC]}), model)
    assert line == (
        f"retention: takes {2 * copies:,.1f} MiB of memory on each rank, and {copies:,.1f} MiB of disk "
        "for each accepted round"
    )
