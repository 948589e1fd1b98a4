"""Judging models behind OpenAI-compatible endpoints: the same answers, logprobs, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.demo import BASE_MODEL
from rollouts.engines.endpoint.client import EndpointClient
from rollouts.engines.endpoint.engine import EndpointEngine
from rollouts.engines.endpoint.text import TextEncoder
from rollouts.engines.protocol import SampleRequest
from rollouts.errors import UserError
from rollouts.types import Prompt, Sampling
from tests.unit.align.judge.judging import changed_model, judged, raw_suites, write_suites
from tests.unit.align.judge.model_server import ModelServer, serving
from tests.unit.campaigns import Starter

BASE = "demo://digits"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(ModelServer(BASE_MODEL)) as running:
        yield running


def with_text(folder: Path) -> Path:
    """Write a file with a suite of answers and one of the likelihood of a text."""
    (folder / "text.txt").write_text("copy 1 2 3 4 = 1 2 3 4\n" * 60)
    likelihood = {"name": "text", "text": "text.txt", "window": 16, "margin": 0.05, "budget": 0.05}
    return write_suites(folder, 60, suites=[*raw_suites(60)["suites"], likelihood])


def test_a_served_copy_answers_and_scores_as_the_folder_does(
    tmp_path: Path, server: ModelServer
) -> None:
    suites, starter = with_text(tmp_path), Starter()
    judgement = judged(
        f"{server.url}#tiny", BASE, suites, tmp_path / "cache", starter=starter, tokenizer=BASE
    )
    own, other = judgement.candidate_results, judgement.incumbent_results
    assert own["general"].values == other["general"].values
    assert own["text"].values == pytest.approx(other["text"].values, abs=1e-5)
    assert len(own["text"].values) >= 8
    assert len(starter.engines) == 1
    assert judgement.verdict.outcome != "rejected"


def test_a_damaged_model_behind_an_endpoint_is_rejected(tmp_path: Path) -> None:
    damaged = changed_model(tmp_path / "damaged", torch.zeros_like)
    with serving(ModelServer(damaged)) as server:
        judgement = judged(server.url, BASE, write_suites(tmp_path), tmp_path / "cache")
    assert judgement.exit_code == 1


def test_an_incumbent_endpoint_is_measured_every_time(tmp_path: Path, server: ModelServer) -> None:
    suites = write_suites(tmp_path, 40)
    for _ in range(2):
        asked = len(server.bodies)
        judgement = judged(BASE, server.url, suites, tmp_path / "cache")
        assert judgement.incumbent.reused == ()
        assert len(server.bodies) - asked >= 40
    assert not list((tmp_path / "cache").rglob("*tiny*"))


def test_what_may_pass_is_asked_again(tmp_path: Path, server: ModelServer) -> None:
    server.statuses = [503, 429]
    judgement = judged(server.url, BASE, write_suites(tmp_path), tmp_path / "cache")
    assert judgement.exit_code == 0


def test_a_suite_of_likelihood_needs_the_tokenizer(tmp_path: Path, server: ModelServer) -> None:
    with pytest.raises(UserError, match="--tokenizer"):
        judged(server.url, BASE, with_text(tmp_path), tmp_path / "cache")


def test_a_suite_of_likelihood_needs_logprobs_of_prompts(
    tmp_path: Path, server: ModelServer
) -> None:
    server.echoes = False
    starter = Starter()
    with pytest.raises(UserError, match=r"(?s)suite 'text' needs the logprobs.*echo and logprobs"):
        judged(
            server.url, BASE, with_text(tmp_path), tmp_path / "cache", tokenizer=BASE,
            starter=starter,
        )  # fmt: skip
    assert not starter.engines


HARNESS: dict[str, dict[str, Any]] = {
    "answers": {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}],
                "generation_kwargs": {"until": ["rev"], "max_gen_toks": 6, "do_sample": False}},
    "likelihoods": {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]},
    "choices": {"output_type": "multiple_choice", "doc_to_choice": ["1 2 3 4 5", "5 4 3 2 1"],
                "doc_to_target": 0, "metric_list": [{"metric": "acc"}]},
    "texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "",
              "metric_list": [{"metric": "word_perplexity"}]},
}  # fmt: skip
"""Harness tasks of every type, over the digits world."""


def with_harness(folder: Path, kind: str) -> Path:
    """Write a file with one harness task of a type."""
    docs = [{"question": f"copy _ {n} 2 3 4 5 =", "answer": f"{n} 2 3 4 5"} for n in range(8)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {"task": "digits", "dataset_path": "json", "test_split": "test",
            "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", **HARNESS[kind]}  # fmt: skip
    (folder / "digits.yaml").write_text(json.dumps(task))
    harness = {"task": "digits", "include_path": str(folder), "data_files": {"test": "docs.jsonl"}}
    suite = {"name": "digits", "items": 8, "margin": 0.4, "budget": 0.4, "harness": harness}
    return write_suites(folder, suites=[suite])


@pytest.mark.parametrize("kind", HARNESS)
def test_a_harness_task_is_measured_behind_an_endpoint_as_in_a_folder(
    tmp_path: Path, server: ModelServer, kind: str
) -> None:
    judgement = judged(
        f"{server.url}#tiny", BASE, with_harness(tmp_path, kind), tmp_path / "cache", tokenizer=BASE
    )
    own, other = judgement.candidate_results["digits"], judgement.incumbent_results["digits"]
    assert own.values == pytest.approx(other.values, abs=1e-5)
    assert set(own.statuses) == {"scored"}


REFUSED = [
    (kind, lack, said)
    for kind in HARNESS
    for lack, said in (("echoes", "needs the logprobs"), ("takes_ids", "asks by token ids"))
    if (kind, lack) != ("answers", "echoes")
]


@pytest.mark.parametrize(("kind", "lack", "said"), REFUSED)
def test_a_harness_task_that_an_endpoint_cannot_answer_is_refused_before_anything_starts(
    tmp_path: Path, server: ModelServer, kind: str, lack: str, said: str
) -> None:
    setattr(server, lack, False)
    starter = Starter()
    with pytest.raises(UserError, match=f"(?s)suite 'digits'.*{said}"):
        judged(
            f"{server.url}#tiny", BASE, with_harness(tmp_path, kind), tmp_path / "cache",
            tokenizer=BASE, starter=starter,
        )  # fmt: skip
    assert not starter.engines


def test_a_harness_task_needs_the_tokenizer(tmp_path: Path, server: ModelServer) -> None:
    with pytest.raises(UserError, match="--tokenizer"):
        judged(server.url, BASE, with_harness(tmp_path, "answers"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("model", "said"), [("#other", "no model 'other'"), ("", "several models")]
)
def test_a_model_that_the_server_does_not_have(
    tmp_path: Path, server: ModelServer, model: str, said: str
) -> None:
    server.names = ("tiny", "small")
    with pytest.raises(UserError, match=said):
        judged(f"{server.url}{model}", BASE, write_suites(tmp_path), tmp_path / "cache")


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="does not answer"):
        judged("http://127.0.0.1:9/v1#m", BASE, write_suites(tmp_path), tmp_path / "cache")


def test_the_key_is_sent_and_never_shown(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "abc-secret-key"
    suites = write_suites(tmp_path, 40)
    monkeypatch.setenv("TINY_KEY", "abc-secret-key")
    judged(server.url, BASE, suites, tmp_path / "cache", api_key_env="TINY_KEY")
    monkeypatch.setenv("TINY_KEY", "abc-other-key")
    with pytest.raises(UserError, match="refuses") as caught:
        judged(server.url, BASE, suites, tmp_path / "cache", api_key_env="TINY_KEY")
    assert "abc-other-key" not in str(caught.value)


def test_a_chat_is_sent_as_messages(server: ModelServer) -> None:
    engine = EndpointEngine(client=EndpointClient(base_url=server.url), model="tiny")
    encoder = TextEncoder(system="Be brief.")
    prompt = Prompt(id="1", messages=({"role": "user", "content": "Grüße"},))
    request = SampleRequest(
        id="1", prompt_ids=encoder.encode(prompt), n=2, seed=(1 << 31) - 1,
        sampling=Sampling(max_tokens=5, temperature=0.7, stop_texts=("\n",)),
    )  # fmt: skip
    (result,) = engine.generate([request])
    assert [encoder.decode(c.token_ids) for c in result.completions] == ["2 turns", "2 turns"]
    (first, body), (second, other) = server.bodies
    assert first == second == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"},
    ]  # fmt: skip
    assert sorted((body["seed"], other["seed"])) == [0, (1 << 31) - 1]
    assert body["stop"] == ["\n"] and "top_k" not in body and "min_p" not in body
