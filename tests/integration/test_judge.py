"""The judges against vLLM's own OpenAI server, on loopback.

The model is random, so its verdicts mean nothing. What is shown is that the server takes our requests, that
its grammar holds the answers to the schema, and that what cannot be read abstains.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rewards.library.judge.pairwise import PairwiseJudge
from rewards.library.judge.score import LLMJudge
from rollouts.engines.vllm import engine_environment
from rollouts.errors import UserError
from tests.patience import patient

START_S = patient(240.0)
"""Seconds that a busy machine may take to start the server."""
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama over bytes: it can write any JSON, and would write none by itself."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("judge")
    words = {"<pad>": 0, "<eos>": 1}
    words |= {c: 2 + i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(judge_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that is ready; it asks for a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    environment = os.environ | engine_environment(str(judge_model), "cpu") | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": "sk-test", "VLLM_LOGGING_LEVEL": "INFO",
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server",
             "--model", str(judge_model), "--served-model-name", "judge", "--dtype", "float32",
             "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096",
             "--max-num-seqs", "8", "--enforce-eager",
             # A random model would fill its answer with the white space that JSON allows.
             "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'],
            env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patient(20))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with (
            suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(url, timeout=patient(5)),
        ):
            return
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", "sk-test")
    return "JUDGE_KEY"


def test_scores_follow_the_schema(server: str, key: str) -> None:
    judge = LLMJudge(
        base_url=server, model="judge", api_key_env=key, criteria="Kind.", scale=5, max_tokens=900
    )
    scores = asyncio.run(judge(["Hi"] * 3, ["Hello!", "Go away.", ""]))
    assert set(scores) <= {0.0, 0.25, 0.5, 0.75, 1.0}, scores
    assert len(judge.cache) == 3


def test_a_verdict_that_is_cut_abstains(server: str, key: str) -> None:
    judge = LLMJudge(
        base_url=server, model="judge", api_key_env=key, criteria="Kind.", max_tokens=4
    )
    assert asyncio.run(judge(["Hi"], ["Hello!"])) == [None]


def test_without_the_grammar_a_random_model_abstains(server: str, key: str) -> None:
    judge = LLMJudge(
        base_url=server, model="judge", api_key_env=key, criteria="Kind.", structured=False, max_tokens=32
    )  # fmt: skip
    assert asyncio.run(judge(["Hi"], ["Hello!"])) == [None]


def test_pairs_are_compared_in_both_orders(server: str, key: str) -> None:
    judge = PairwiseJudge(
        base_url=server, model="judge", api_key_env=key, criteria="Kind.", max_tokens=900
    )
    (value,) = asyncio.run(judge(["Hi"], ["Hello!"], ["Go away."]))
    assert value in {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(judge.cache) == 2


def test_a_wrong_key_and_a_wrong_model_are_for_a_person(
    server: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="status 404") as caught:
        unknown = LLMJudge(base_url=server, model="other", api_key_env=key, criteria="Kind.")
        asyncio.run(unknown(["Hi"], ["Hello!"]))
    assert "other" in str(caught.value)
    monkeypatch.setenv(key, "sk-wrong")
    with pytest.raises(UserError, match="status 401"):
        judge = LLMJudge(base_url=server, model="judge", api_key_env=key, criteria="Kind.")
        asyncio.run(judge(["Hi"], ["Hello!"]))
