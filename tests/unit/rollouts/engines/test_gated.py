"""Several adapters on one base: every row under its own mix, in one pass, equal to merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.demo import BASE_MODEL
from rollouts.engines.protocol import BankAdapter, SampleRequest, ScoreRequest, WeightUpdate
from rollouts.engines.transformers import TransformersConfig, TransformersEngine
from rollouts.engines.vllm_bank import IncrementServer, write_increment
from rollouts.types import Increment, Sampling

RANK, ALPHA = 4, 8.0
PROMPT, ANSWER = (10, 15, 3, 1, 4), (5, 1, 4)


def write_adapter(folder: Path, seed: int) -> BankAdapter:
    """Write an adapter of two increments of rank 2 with random weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder))
    return BankAdapter(str(folder), 2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BankAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def engine(bank: dict[str, BankAdapter]) -> TransformersEngine:
    engine = started()
    engine.sync(WeightUpdate(version="bank", bank=bank))
    return engine


def started() -> TransformersEngine:
    return TransformersConfig(
        model=str(BASE_MODEL), max_model_len=32, lora_rank=RANK, kv_cache_mb=16
    ).start()


def score(engine: Any, *mixes: tuple[Increment, ...] | None) -> list[tuple[float, ...]]:
    requests = [ScoreRequest(prompt_ids=PROMPT, completion_ids=ANSWER, mix=mix) for mix in mixes]
    return [tuple(row) for row in engine.score(requests)]


def by_hand(bank: dict[str, BankAdapter], mix: tuple[Increment, ...]) -> tuple[float, ...]:
    """Add ``w alpha / R * B_i A_i`` to every weight and read the logprobs off the plain model."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    state = model.state_dict()
    for name, index, weight in mix:
        tensors = load_file(Path(bank[name].folder) / "adapter_model.safetensors")
        rows = slice(2 * index, 2 * index + 2)
        for key in (k for k in tensors if "lora_A" in k):
            right, left = tensors[key][rows], tensors[key.replace("lora_A", "lora_B")][:, rows]
            layer = key.removeprefix("base_model.model.").replace("lora_A.", "")
            state[layer] += weight * ALPHA / RANK * left @ right
    tokens = torch.tensor([[*PROMPT, *ANSWER]])
    with torch.no_grad():
        logprobs = model(input_ids=tokens).logits.log_softmax(-1)[0]
    return tuple(float(logprobs[len(PROMPT) + t - 1, a]) for t, a in enumerate(ANSWER))


MIXES: list[tuple[Increment, ...]] = [
    (),
    (Increment("a", 0, 1.0),),
    (Increment("b", 1, 1.0),),
    (Increment("a", 1, 0.75), Increment("b", 0, 0.25)),
    (Increment("a", 0, 0.5), Increment("a", 1, 0.5)),
]


def test_rows_of_one_pass_have_the_weights_of_their_own_mix(
    engine: TransformersEngine, bank: dict[str, BankAdapter]
) -> None:
    together = score(engine, *MIXES)
    for mix, row in zip(MIXES, together, strict=True):
        assert row == pytest.approx(by_hand(bank, mix), abs=2e-4)
        assert score(engine, mix)[0] == pytest.approx(row, abs=1e-5)
    assert len({row[0] for row in together}) == len(MIXES)


def test_completions_of_one_call_are_sampled_under_their_own_mix(
    engine: TransformersEngine,
) -> None:
    """What is sampled scores the same, whatever is decoded beside it."""
    requests = [
        SampleRequest(
            id=str(i), prompt_ids=PROMPT, n=2, sampling=Sampling(max_tokens=5), seed=i, mix=mix
        )
        for i, mix in enumerate(MIXES)
    ]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        (alone,) = engine.generate([request])
        for completion, lonely in zip(result.completions, alone.completions, strict=True):
            assert completion.token_ids == lonely.token_ids
            (again,) = engine.score(
                [
                    ScoreRequest(
                        prompt_ids=PROMPT, completion_ids=completion.token_ids, mix=request.mix
                    )
                ]
            )
            assert completion.logprobs_T == pytest.approx(again, abs=1e-4)


def test_an_adapter_that_is_not_held_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(ValueError, match="adapter 'c' is not held; adapters: a, b"):
        score(engine, (Increment("c", 0, 1.0),))
    with pytest.raises(ValueError, match="increment 2 of adapter 'a' is not held"):
        score(engine, (Increment("a", 2, 1.0),))


def test_a_bank_is_replaced_as_a_whole(bank: dict[str, BankAdapter], tmp_path: Path) -> None:
    """The same name in another folder has other weights; a name that is missing is gone."""
    engine = started()
    (plain,) = score(engine, None)
    engine.sync(WeightUpdate(version="1", bank={"a": bank["a"]}))
    (before,) = score(engine, (Increment("a", 0, 1.0),))
    engine.sync(WeightUpdate(version="2", bank={"a": bank["b"]}))
    (after,) = score(engine, (Increment("a", 0, 1.0),))
    assert after == pytest.approx(by_hand(bank, (Increment("b", 0, 1.0),)), abs=2e-4)
    assert after != pytest.approx(before, abs=1e-3)
    engine.sync(WeightUpdate(version="3"))
    with pytest.raises(ValueError, match="adapters: none"):
        score(engine, (Increment("a", 0, 1.0),))
    assert score(engine, None)[0] == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"bank": {}, "adapter": "x"}, "adapter or bank, not both"),
        ({"bank": {}, "tensors": {}}, "tensors or bank, not both"),
    ],
)
def test_an_update_of_two_kinds_is_refused(
    engine: TransformersEngine, update: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        engine.sync(WeightUpdate(version="wrong", **update))


@pytest.mark.parametrize("number", [0, 1])
def test_an_increment_on_its_own_is_what_it_is_within_its_adapter(
    number: int, engine: TransformersEngine, bank: dict[str, BankAdapter], tmp_path: Path
) -> None:
    """Rank 2 and alpha 4 keep the scale of rank 4 and alpha 8; vLLM loads such folders."""
    write_increment(Path(bank["a"].folder), number, 2, tmp_path / "increment")
    alone = started()
    alone.sync(WeightUpdate(version="one", adapter=str(tmp_path / "increment")))
    (expected,) = score(engine, (Increment("a", number, 1.0),))
    assert score(alone, None)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ((Increment("a", 0, 0.6), Increment("a", 1, 0.4)), "not a mix of 2"),
        ((Increment("a", 0, 0.6),), "one adapter for each request"),
        ((Increment("a", 0, 1.0),), "is not held; adapters: none"),
    ],
)
def test_one_request_of_vllm_has_one_increment(mix: tuple[Increment, ...], words: str) -> None:
    server = IncrementServer(None)
    assert server.request_of(()) is None
    with pytest.raises(ValueError, match=words):
        server.request_of(mix)
