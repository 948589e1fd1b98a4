"""Sampling of measured answers: bounds and stop texts for suites, stop texts in training."""

from __future__ import annotations

from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.config.gate import AnswerSampling
from align.config.learning import BOUNDING, SamplingConfig
from align.data.demo.world import demo_prompts
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.suites import build_suites
from align.round.plan import RoundPlan
from rollouts.collect import collect
from rollouts.engines.protocol import SampleRequest
from rollouts.engines.scripted import ScriptedEngine
from rollouts.engines.vllm_format import sampling_params
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt, Sampling
from tests.unit.chats import IDS, build, ids

BOUNDED = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.05, "stop": ["x", "y z"]}


def campaign(suite: Any, round_suite: Any = None, **more: Any) -> CampaignConfig:
    round = {
        "name": "reverse", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1,
        "suite": {"items": 8, **(round_suite or {})},
    }  # fmt: skip
    general = {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 8}
    return CampaignConfig.model_validate(
        {
            "name": "bounds",
            "policy": {"model": "demo://digits"},
            "rounds": [round],
            "suites": [{**general, **suite}],
            **more,
        }
    )


def test_suites_sample_as_they_say() -> None:
    config = campaign(BOUNDED, {**BOUNDED, "temperature": 0.5, "stop": "x"})
    general, reverse = build_suites(config, {"demo": demo_prompts}, PromptEncoder(build()))
    whole = Sampling(
        max_tokens=64, temperature=0.7, top_p=0.9, top_k=5, min_p=0.05, stop_texts=("x", "y z")
    )
    assert general.sampling == whole
    assert reverse.sampling is not None and reverse.sampling.stop_texts == ("x",)
    assert reverse.sampling.temperature == 0.5


@pytest.mark.parametrize(
    "changed", [{"top_p": 0.8}, {"top_k": 4}, {"min_p": 0.0}, {"stop": []}, {"temperature": 0.6}]
)
def test_every_bound_is_part_of_the_suites_hash(changed: dict[str, Any]) -> None:
    one, other = (
        build_suites(campaign(suite), {"demo": demo_prompts}, PromptEncoder(build()))[0].hash
        for suite in (BOUNDED, BOUNDED | changed)
    )
    assert one != other


def test_vllm_is_asked_for_every_bound() -> None:
    pytest.importorskip("vllm")
    sampling = AnswerSampling.model_validate(BOUNDED).sampling(9)
    asked = sampling_params(SampleRequest(id="r", prompt_ids=(1,), n=1, sampling=sampling, seed=0))
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (0.7, 0.9, 5, 0.05)
    assert (asked.stop, asked.detokenize, asked.max_tokens) == (["x", "y z"], True, 9)


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        ((), "a b c d", "length"),
        (("b c",), "a ", "stop"),
        (("d", "b"), "a ", "stop"),
        (("zzz",), "a b c d", "length"),
    ],
)
def test_an_answer_is_cut_before_its_first_stop_text(
    stop: tuple[str, ...], text: str, finish: str
) -> None:
    """Also where the engine does not know texts and went on."""
    engine = ScriptedEngine(lambda prompt, seed: (ids("a b c d"), (-1.0,) * 4))
    sampling = Sampling(max_tokens=4, stop_texts=stop)
    (group,) = collect(
        engine, [Prompt(id="p", text="a")], [1], PromptEncoder(build()), sampling, 0, policy="base"
    )
    (completion,) = group.completions_G
    assert (completion.text, completion.finish_reason) == (text, finish)
    assert completion.token_ids == ids("a b c d")


def test_a_stop_text_that_is_a_special_token_stops_at_the_token() -> None:
    ended = PromptEncoder(build()).ended(Sampling(max_tokens=1, stop_texts=("<|endoftext|>", "b")))
    assert (ended.stop_token_ids, ended.stop_texts) == ((IDS["<|endoftext|>"],), ("b",))


@pytest.mark.parametrize("name", BOUNDING)
def test_training_samples_the_policy_itself(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: a round learns from the policy's own"):
        SamplingConfig.model_validate({name: 0.9})


@pytest.mark.parametrize("stop", ["x", ["x", "y z"]])
def test_training_may_end_at_a_text_and_its_suite_ends_there_too(stop: Any) -> None:
    sampling = SamplingConfig.model_validate({"stop": stop})
    assert sampling.stop == tuple([stop] if isinstance(stop, str) else stop)
    assert "stop" not in SamplingConfig().model_dump()
    spec = campaign({}).rounds[0].model_copy(update={"sampling": sampling})
    plan = RoundPlan.__new__(RoundPlan)
    object.__setattr__(plan, "spec", spec)
    assert plan.sampling.stop_texts == sampling.stop
    suite = AnswerSuite.of_round(spec, 0, {"demo": demo_prompts})
    assert suite.sampling is not None and suite.sampling.stop_texts == sampling.stop


def test_the_reason_is_told_once_for_a_default(tmp_path: Any) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(
        "name: a\npolicy: {model: 'demo://digits'}\ndefaults: {sampling: {top_p: 0.9}}\n"
        "rounds: [{name: r, prompts: 'demo://rev', rewards: [exact_match], steps: 1}]\n"
    )
    with pytest.raises(UserError) as caught:
        load_campaign(path)
    assert str(caught.value).count("learns from the policy's own distribution") == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.9}, "always takes the likeliest"),
        ({"top_k": 5}, "always takes the likeliest"),
        ({"min_p": 0.1}, "always takes the likeliest"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p"),
        ({"temperature": 1.0, "top_k": -2}, "top_k"),
        ({"temperature": 1.0, "min_p": 1.0}, "min_p"),
        ({"stop": [""]}, "stop"),
        ({"stop": [3]}, "stop"),
    ],
)
def test_bounds_that_cannot_be_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerSampling.model_validate(values)


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "stop"])
def test_suites_that_sample_nothing_or_by_a_task_take_no_bounds(name: str) -> None:
    bound = {"temperature": 0.7, name: BOUNDED[name]}
    with pytest.raises(ValueError, match=f"remove {name}"):
        campaign({"prompts": None, "metric": None, "text": "file.txt", **bound})
    with pytest.raises(ValueError, match=f"remove {name}"):
        campaign({"prompts": None, "metric": None, "harness": {"task": "ifeval"}, **bound})


def test_how_it_is_served_decides_no_verdict() -> None:
    plain = campaign({})
    assert campaign({}, serving={"temperature": 0.7, "top_p": 0.9}).hash() == plain.hash()
