"""``keel judge`` for real: engines on a cluster of its own, and vLLM's own server as an endpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.demo import BASE_MODEL
from launch.serving.vllm_server import SERVER
from rollouts.engines.vllm import engine_environment
from tests.patience import patient
from tests.unit.align.judge.judging import changed_model, raw_suites, write_suites
from tests.unit.align.judge.quantised import int4_model, int8_model

KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of suites, and beside it the measurements: the incumbent of both tests is measured once."""
    folder = tmp_path_factory.mktemp("judge")
    (folder / "text.txt").write_text("copy 1 2 3 4 = 1 2 3 4\n" * 60)
    likelihood = {"name": "text", "text": "text.txt", "window": 16, "margin": 0.05, "budget": 0.05}
    engines = {"max_num_seqs": 64, "kv_cache_mb": 64}
    write_suites(folder, suites=[*raw_suites(200)["suites"], likelihood], rollouts=engines)
    return folder


def judge(
    folder: Path, candidate: str, *words: str, against: str = "demo://digits"
) -> tuple[int, dict[str, Any], str]:
    """Run the command; exit code, what it printed as JSON, and its messages."""
    words = (
        candidate,
        "--against",
        against,
        "--suites",
        str(folder / "suites.yaml"),
        *words,
    )
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [*KEEL, "judge", *words, "--json", "--cache", str(folder / "cache")],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=patient(240),
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.fixture(scope="module")
def damaged(folder: Path) -> tuple[int, dict[str, Any], str]:
    """A damaged model, judged against the demo's."""
    return judge(folder, str(changed_model(folder / "damaged", torch.zeros_like)))


def test_a_damaged_model_is_rejected_by_real_engines(
    damaged: tuple[int, dict[str, Any], str],
) -> None:
    code, said, error = damaged
    assert (code, said.get("outcome")) == (1, "rejected"), error


@pytest.mark.slow
def test_quantised_copies_are_measured_by_engines_as_they_are(
    folder: Path, damaged: tuple[int, dict[str, Any], str]
) -> None:
    """W8A8 and W4A16, each compared with the demo's model in full precision."""
    int8, int4 = str(int8_model(folder / "int8")), str(int4_model(folder / "int4"))
    code, said, error = judge(folder, int8, against=int4)
    assert code in (0, 1, 3), error
    assert error.count("quantised (compressed-tensors), in bfloat16") == 2
    general, plain = general_of(said), general_of(damaged[1])["incumbent"]
    assert plain > 0.5
    assert general["candidate"] == pytest.approx(plain, abs=0.05)
    assert general["incumbent"] == pytest.approx(plain, abs=0.05)


def general_of(judgement: dict[str, Any]) -> dict[str, float]:
    (suite,) = [suite for suite in judgement["suites"] if suite["suite"] == "general"]
    return dict(suite)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the demo's model by vLLM's OpenAI-compatible server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ["--model", str(BASE_MODEL), "--host", "127.0.0.1", "--port", str(port),
                 "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
                 "--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "32"]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *SERVER, *arguments], stdout=output, stderr=output,
            env={**os.environ, **engine_environment(str(BASE_MODEL), "cpu")},
        )  # fmt: skip
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + patient(180)
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=patient(5)).close()
                break
            time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(patient(30))


@pytest.mark.slow
def test_a_served_copy_is_measured_as_the_folder_is(folder: Path, endpoint: str) -> None:
    code, said, error = judge(folder, f"{endpoint}#tiny", "--tokenizer", "demo://digits")
    assert code in (0, 3), error
    for suite in said["suites"]:
        assert suite["candidate"] == pytest.approx(suite["incumbent"], abs=0.02), suite
