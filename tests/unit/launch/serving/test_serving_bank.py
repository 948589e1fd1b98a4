"""Banks that are served: names of adapters, retrieval by the prompt, vLLM's arguments and the proxy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from align.bank.bank import ADAPTERS, Bank, KeyedAdapter, write_keys
from align.bank.encoder import PolicyEncoder
from align.bank.keys import train_keys
from align.config.campaign import CampaignConfig
from align.data.base_model import load_encoder
from align.data.demo import BASE_MODEL
from align.data.demo.world import demo_prompts
from align.learner.bank.encoding import encoder_of
from launch.serving.bank import BankChooser, ServedBank, served_bank, write_modules, zeros_name
from launch.serving.command import vllm_arguments
from launch.serving.route import Route
from launch.serving.served_alias import ServedSnapshot
from rollouts.engines.decoding.gated import rank_in
from rollouts.engines.protocol import ADAPTER_WEIGHTS
from rollouts.errors import UserError
from tests.unit.backends import Echo, proxied
from tests.unit.campaigns import raw_campaign
from tests.unit.rollouts.engines.test_gated import write_adapter

ROUNDS = {"first": "rev", "second": "inc"}
PINNED = "digits@0"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CampaignConfig:
    policy = {"model": "demo://digits", "lora": {"rank": 2}, "bank": {"keys": 2}}
    raw = raw_campaign(tmp_path_factory.mktemp("campaign"), policy=policy)
    raw["defaults"]["replay"] = {"past": 0.0}
    return CampaignConfig.model_validate(raw)


@pytest.fixture(scope="module")
def folder(config: CampaignConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two adapters, each with two keys that were trained on prompts of its task."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, bank = tmp_path_factory.mktemp("bank"), config.policy.bank
    assert bank is not None
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    encoder, prompts = encoder_of(bank, model, BASE_MODEL), load_encoder(BASE_MODEL, config.policy)
    assert isinstance(encoder, PolicyEncoder)
    adapters = []
    for number, (name, task) in enumerate(ROUNDS.items()):
        target = folder / ADAPTERS / name
        write_adapter(target, number)
        tokens = [prompts.encode(prompt) for prompt in demo_prompts(f"demo://{task}?n=60")]
        keys_GPC = train_keys(encoder.encode(tokens), bank, seed=0)
        write_keys(target, keys_GPC)
        adapters.append(KeyedAdapter(name=name, folder=target, keys_GPC=keys_GPC))
    identity = encoder.identity
    Bank(base=identity.sha256, encoder=identity, groups=4, top_k=1, adapters=tuple(adapters)).write(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def chooser(folder: Path, config: CampaignConfig) -> BankChooser:
    return BankChooser(folder, BASE_MODEL, config, name="digits", pinned=PINNED)


def chosen(chooser: BankChooser, **request: Any) -> str:
    return str(json.loads(chooser.choose(json.dumps(request).encode()))["model"])


@pytest.mark.parametrize("model", ["digits", "auto", PINNED])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_prompt_retrieves_the_adapter_of_its_round(
    model: str, name: str, chooser: BankChooser
) -> None:
    prompts = demo_prompts(f"demo://{ROUNDS[name]}?split=eval&n=20")
    models = [chosen(chooser, model=model, prompt=prompt.text) for prompt in prompts]
    assert all(answer.startswith(f"{PINNED}/{name}.") for answer in models)


def test_an_adapter_that_is_named_answers_whatever_is_asked(chooser: BankChooser) -> None:
    prompt = demo_prompts("demo://rev?n=1")[0].text
    assert chosen(chooser, model="digits/second", prompt=prompt).startswith(f"{PINNED}/second.")
    assert chosen(chooser, model="digits/first", prompt=prompt).startswith(f"{PINNED}/first.")
    assert chosen(chooser, model=f"{PINNED}/first.1", prompt=prompt) == f"{PINNED}/first.1"
    assert chosen(chooser, model="digits/third", prompt=prompt) == "digits/third"
    assert chosen(chooser, model=f"base-of-{PINNED}", prompt=prompt) == zeros_name(PINNED)


def test_tokens_and_texts_retrieve_alike(chooser: BankChooser, config: CampaignConfig) -> None:
    prompt = demo_prompts("demo://inc?n=1")[0]
    tokens = load_encoder(BASE_MODEL, config.policy).encode(prompt)
    texts = chosen(chooser, model="auto", prompt=prompt.text)
    assert chosen(chooser, model="auto", prompt=list(tokens)) == texts


@pytest.mark.parametrize("body", [b"[", b"[]", b'{"model": "auto"}', b'{"model": ["auto"]}'])
def test_what_is_no_request_is_left_to_vllm(body: bytes, chooser: BankChooser) -> None:
    assert chooser.choose(body) == body


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        ({"prompt": ["a", "b"]}, "2 prompts, and each retrieves an adapter"),
        ({"messages": ["hello"]}, "the model has no chat template"),
    ],
)
def test_a_request_that_cannot_be_routed_is_refused(
    request_body: dict[str, Any], words: str, chooser: BankChooser
) -> None:
    with pytest.raises(UserError, match=words):
        chosen(chooser, model="auto", **request_body)


def test_every_increment_is_a_module_of_vllm(
    folder: Path, config: CampaignConfig, tmp_path: Path
) -> None:
    bank = served_bank(folder, "production")
    assert bank.rank == 2
    modules = write_modules(bank, PINNED, tmp_path)
    increments = [f"{PINNED}/{name}.{n}" for name in ROUNDS for n in (0, 1)]
    assert sorted(modules) == sorted([*increments, zeros_name(PINNED)])
    zeros = weights_in(modules[zeros_name(PINNED)])
    assert zeros.keys() == weights_in(modules[increments[0]]).keys()
    assert not any(tensor.any() for tensor in zeros.values())
    assert {rank_in(path) for path in modules.values()} == {2}
    served = ServedBank(folder=folder, rank=2, targets=("q_proj",), modules=modules)
    words = arguments(served, config)
    assert words[words.index("--max-cpu-loras") + 1] == "5"
    named = [json.loads(word)["name"] for word in words[words.index("--lora-modules") + 1 :]]
    assert named == list(modules)
    assert words[words.index("--served-model-name") + 1] == f"base-of-digits@{'0' * 16}"


def weights_in(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / ADAPTER_WEIGHTS)


def test_a_bank_without_adapters_is_its_base(folder: Path, config: CampaignConfig) -> None:
    words = arguments(ServedBank(folder=folder, rank=1, targets=()), config)
    assert "--enable-lora" not in words


def arguments(bank: ServedBank, config: CampaignConfig) -> list[str]:
    target = ServedSnapshot(snapshot="0" * 64, name="digits", folder=BASE_MODEL, bank=bank)
    return vllm_arguments(target, config, port=1, device="cpu", gpu_memory_utilization=0.9)


def test_a_bank_that_mixes_is_refused(folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(folder, tmp_path / "bank")
    path = tmp_path / "bank" / "bank.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_k": 2}))
    with pytest.raises(UserError, match="vLLM serves one adapter for each request"):
        served_bank(tmp_path / "bank", "production")


class ChoosingEcho(Echo):
    """A backend of several models; it remembers the bodies that it chose for."""

    def __init__(self, snapshot: str) -> None:
        super().__init__(snapshot)
        self.bodies: list[bytes] = []

    async def choose(self, body: bytes) -> bytes:
        self.bodies.append(body)
        if b"refuse" in body:
            raise UserError("no model answers this")
        return body.replace(b"auto", b"adapter")


def test_the_proxy_lets_the_backend_choose_for_completions_alone() -> None:
    async def scene() -> None:
        backend, route = await ChoosingEcho("a").start(), Route()
        route.switch(backend)
        try:
            async with proxied(route) as client:
                for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
                    assert (await client.post(path, json={"model": "auto"})).status_code == 200
                assert [json.loads(body) for body in backend.bodies] == [{"model": "auto"}] * 2
                sizes = [int(headers["content-length"]) for _, headers in backend.asked]
                assert sizes[0] == sizes[1] == sizes[2] + len("adapter") - len("auto")
                refused = await client.post("/v1/completions", json={"model": "refuse"})
                assert refused.status_code == 400
                assert refused.json()["error"]["message"] == "no model answers this"
                assert len(backend.asked) == 3
        finally:
            await backend.stop()

    asyncio.run(scene())
