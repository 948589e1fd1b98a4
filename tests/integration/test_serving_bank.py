"""``keel serve`` of a bank with a real vLLM: every name answers as itself, whoever else is in its batch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from tests.integration.test_nightly import PATIENCE_S, staying
from tests.unit.align.round.test_bank_rounds import Banks
from tests.unit.campaigns import Watcher, raw_campaign, rounds

TASKS = {"first": "rev", "second": "inc"}
TOKENS = 12
POLICY = {
    "model": "demo://digits",
    "lora": {"rank": 2, "alpha": 4.0},
    "bank": {"keys": 1, "top_k": 1},
}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign whose two rounds, at a high learning rate, left adapters that differ."""
    folder = tmp_path_factory.mktemp("bank")
    raw = raw_campaign(
        folder,
        policy=POLICY,
        rollouts={"backend": "transformers", "kv_cache_mb": 64},
        suites=[],
        rounds=rounds(
            *({"name": name, "prompts": f"demo://{task}?n=60"} for name, task in TASKS.items())
        ),
    )
    raw["defaults"] |= {
        "replay": {"general_prompts": "demo://general?n=40", "general": 0.2},
        "optimizer": {"lr": 0.05},
        "suite": {"items": 10, "temperature": 1.0},
    }
    run_campaign(CampaignConfig.model_validate(raw), start_engine=Banks(), observer=Watcher())
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(raw))
    return path


def ask(client: httpx.Client, model: str, task: str) -> tuple[float, ...]:
    """Return the logprobs of the most likely tokens."""
    body = {"model": model, "prompt": f"{task} _ 1 2 3 4 5 =", "max_tokens": TOKENS,
            "ignore_eos": True, "temperature": 0, "logprobs": 0}  # fmt: skip
    answer = client.post("/completions", json=body)
    assert answer.status_code == 200, answer.text
    values: dict[str, Any] = answer.json()["choices"][0]["logprobs"]
    return tuple(values["token_logprobs"])


def test_every_name_of_a_bank_answers_as_itself(campaign: Path) -> None:
    with staying("serve", str(campaign), "--port", "0") as served:
        url = served.url()
        served.until(lambda: served.heard("serving "))
        key = (campaign.parent / "store" / "serving" / "key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S
        ) as client:
            names = [model["id"] for model in client.get("/models").json()["data"]]
            (base,) = (n for n in names if n.startswith("base-of-") and "." not in n)
            models = [base, "small/first", "small/second", "auto"]
            questions = [(model, task) for model in models for task in TASKS.values()]
            alone = {each: ask(client, *each) for each in questions}
            with ThreadPoolExecutor(len(questions)) as senders:
                mixed = list(senders.map(lambda each: ask(client, *each), questions * 4))
    for each, values in zip(questions * 4, mixed, strict=True):
        assert values == pytest.approx(alone[each], abs=1e-3), each
    for task in TASKS.values():
        answers = [alone[model, task] for model in models[:3]]
        gaps = [
            max(abs(a - b) for a, b in zip(left, right, strict=True))
            for left, right in combinations(answers, 2)
        ]
        assert min(gaps) > 0.05
        assert alone["auto", task] in answers
