"""The engine contract, on real models of many architectures in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rollouts.engines import ENGINES
from rollouts.engines.decoding.batch import CachedBatch, RereadBatch
from rollouts.engines.protocol import (
    InFlightEngine,
    RolloutEngine,
    SampleRequest,
    ScoreRequest,
    StreamingEngine,
    WeightLoadError,
    WeightUpdate,
)
from rollouts.engines.stored_tensor import LowRankUpdate, StoredTensor
from rollouts.engines.transfer.host import to_host
from rollouts.engines.transformers import TransformersConfig, TransformersEngine
from rollouts.errors import UserError
from rollouts.types import Completion, Sampling, WeightSpan
from tests.unit.model_kinds import KINDS, REFUSED_ON_CPU, save_folder

TOLERANCE = 1e-4
"""Largest difference of a logprob between an engine and the learner in float32, in nats."""
CONTEXT = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model folders by kind, each written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        path = root / kind
        return path if path.exists() else save_folder(path, kind)

    return folder


def config(folder: Path, **options: Any) -> TransformersConfig:
    options = {"device": "cpu", "max_model_len": CONTEXT, "kv_cache_mb": 16, **options}
    return TransformersConfig(model=str(folder), **options)


@pytest.fixture
def engine(folders: Callable[[str], Path]) -> TransformersEngine:
    return config(folders("llama")).start()


def ask(
    id: str = "a",
    *,
    prompt: tuple[int, ...] = (3, 4, 5),
    n: int = 4,
    seed: int = 5,
    **sampling: Any,
) -> SampleRequest:
    sampling = {"max_tokens": 12, **sampling}
    return SampleRequest(id=id, prompt_ids=prompt, n=n, sampling=Sampling(**sampling), seed=seed)


def mixed_requests() -> list[SampleRequest]:
    """Requests of many lengths, group sizes and samplings."""
    bounds: list[dict[str, Any]] = [
        {}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.2}, {"temperature": 0.0},
    ]  # fmt: skip
    return [
        ask(
            str(i), prompt=tuple(range(3, 4 + 3 * (i % 4))), n=1 + i % 3, seed=i,
            max_tokens=4 + 5 * (i % 3), **bounds[i % len(bounds)],
        )
        for i in range(12)
    ]  # fmt: skip


def only(engine: RolloutEngine, request: SampleRequest) -> tuple[Completion, ...]:
    (result,) = engine.generate([request])
    assert result.id == request.id
    assert len(result.completions) == request.n
    return result.completions


def reference(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Logprobs of a completion by one forward pass without padding or cache."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logprobs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    positions = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logprobs[positions, ids[0, len(prompt) :]]


def plain_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perturbed(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Move a model's weights, and return them by name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gap(model: Any, prompt: tuple[int, ...], completions: tuple[Completion, ...]) -> float:
    return max(
        (torch.tensor(c.logprobs_T) - reference(model, prompt, c.token_ids)).abs().max().item()
        for c in completions
    )


def test_it_speaks_every_protocol_of_an_engine(engine: TransformersEngine) -> None:
    assert isinstance(engine, StreamingEngine)
    assert isinstance(engine, InFlightEngine)
    assert ENGINES["transformers"] is TransformersConfig


@pytest.mark.parametrize("kind", [*KINDS, *REFUSED_ON_CPU])
def test_every_architecture_says_what_it_computes(
    folders: Callable[[str], Path], kind: str
) -> None:
    """Decoded in a padded batch, logprobs are those of one plain pass, and so are scores."""
    folder = folders(kind)
    engine, model = config(folder).start(), plain_model(folder)
    requests = [ask(str(i), prompt=tuple(range(3, 5 + 4 * i)), n=2, seed=i) for i in range(3)]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        assert gap(model, request.prompt_ids, result.completions) < TOLERANCE
        scored = engine.score(
            [
                ScoreRequest(prompt_ids=request.prompt_ids, completion_ids=c.token_ids)
                for c in result.completions
            ]
        )
        for completion, scores in zip(result.completions, scored, strict=True):
            assert scores == pytest.approx(completion.logprobs_T, abs=TOLERANCE)


def test_models_with_a_plain_cache_decode_with_it(folders: Callable[[str], Path]) -> None:
    kinds = {
        kind: config(folders(kind)).start()._kind for kind in ("llama", "gpt2", "mistral", "rwkv")
    }
    assert kinds == {
        "llama": CachedBatch, "gpt2": CachedBatch, "mistral": CachedBatch, "rwkv": RereadBatch,
    }  # fmt: skip


@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 3}, {"max_num_seqs": 1}])
def test_results_depend_on_seeds_and_on_no_batch_mate(
    folders: Callable[[str], Path], limits: dict[str, int]
) -> None:
    engine = config(folders("llama"), **limits).start()
    requests = mixed_requests()
    together = engine.generate(requests)
    backwards = engine.generate(requests[::-1])[::-1]
    alone = [engine.generate([request])[0] for request in requests]
    for results in (backwards, alone):
        for one, other in zip(together, results, strict=True):
            assert one.id == other.id
            for a, b in zip(one.completions, other.completions, strict=True):
                assert a.token_ids == b.token_ids
                assert a.logprobs_T == pytest.approx(b.logprobs_T, abs=TOLERANCE)


def test_a_small_cache_makes_rows_wait_and_changes_nothing(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = config(folders("llama")).start()
    requests = [ask(str(i), n=4, seed=i, max_tokens=40) for i in range(4)]
    roomy = engine.generate(requests)
    rows: list[int] = []
    step = CachedBatch.step

    def counted(self: CachedBatch, tokens: Any) -> Any:
        rows.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(CachedBatch, "step", counted)
    monkeypatch.setattr(engine, "_capacity", lambda: 3 * CONTEXT)
    tight = engine.generate(requests)
    assert [[c.token_ids for c in r.completions] for r in tight] == [
        [c.token_ids for c in r.completions] for r in roomy
    ]
    assert max(rows) <= 3 * CONTEXT // 4
    assert min(rows[:5]) > 1


def test_seeds_make_completions_repeatable_and_distinct(engine: TransformersEngine) -> None:
    first, again = only(engine, ask(seed=1)), only(engine, ask(seed=1))
    neighbour = only(engine, ask(seed=2))
    assert first == again
    assert len({c.token_ids for c in (*first, *neighbour)}) == 8


def test_tokens_are_drawn_from_the_distribution(engine: TransformersEngine) -> None:
    """First tokens, and second ones after the most frequent first."""
    model, prompt, draws = plain_model(Path(engine._config.model)), (3, 4, 5), 6000
    completions = only(engine, ask(prompt=prompt, n=draws, seed=3, max_tokens=2))
    firsts = [c.token_ids[0] for c in completions]
    check_frequencies(model, prompt, firsts)
    most = max(set(firsts) - engine._stops.ends, key=firsts.count)
    seconds = [c.token_ids[1] for c in completions if c.token_ids[0] == most]
    assert len(seconds) > 300
    check_frequencies(model, (*prompt, most), seconds)


def check_frequencies(model: Any, prompt: tuple[int, ...], tokens: list[int]) -> None:
    """Test next tokens against a model's distribution; rare tokens count as one."""
    from scipy.stats import chisquare

    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).double()
    wanted = expected * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    often = wanted >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([wanted[often], wanted[~often].sum()[None]])
    assert chisquare(observed, wanted / wanted.sum() * len(tokens)).pvalue > 1e-3


def test_ends_are_told_apart(engine: TransformersEngine) -> None:
    cut = only(engine, ask(max_tokens=2, top_k=1, stop_token_ids=()))
    assert {(c.finish_reason, len(c.token_ids)) for c in cut} == {("length", 2)}
    (stopped,) = only(engine, ask(n=1, stop_token_ids=tuple(range(128))))
    assert (stopped.finish_reason, len(stopped.token_ids)) == ("stop", 1)
    (whole,) = only(engine, ask(n=1, prompt=tuple(range(3, 53)), max_tokens=100, seed=9))
    if whole.finish_reason == "length":
        assert len(whole.token_ids) == CONTEXT - 50


def test_the_models_own_end_is_kept_as_the_last_token(
    folders: Callable[[str], Path],
) -> None:
    engine = config(folders("llama")).start()
    completions = only(engine, ask(n=200, max_tokens=60, temperature=5.0))
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] in engine._stops.ends
        assert not set(completion.token_ids[:-1]) & engine._stops.ends


def test_stop_texts_end_a_completion_that_holds_one(engine: TransformersEngine) -> None:
    (free,) = only(engine, ask(n=1, seed=11))
    text = engine._stops.decode(free.token_ids)
    middle = text[len(text) // 2 :][:2]
    (stopped,) = only(engine, ask(n=1, seed=11, stop_texts=("never written", middle)))
    assert stopped.finish_reason == "stop"
    length = len(stopped.token_ids)
    assert stopped.token_ids == free.token_ids[:length]
    assert middle in engine._stops.decode(stopped.token_ids)
    assert middle not in engine._stops.decode(stopped.token_ids[:-1])


def test_what_cannot_be_answered_is_data_and_fails_alone(engine: TransformersEngine) -> None:
    long, empty, foreign, good = engine.generate(
        [
            ask("long", prompt=(3,) * CONTEXT, n=3),
            ask("empty", prompt=()),
            ask("foreign", prompt=(3, 4000)),
            ask("good"),
        ]
    )
    for result, words in ((long, "longer than"), (empty, "empty"), (foreign, "vocabulary")):
        assert {c.finish_reason for c in result.completions} == {"failed"}
        assert words in (result.completions[0].detail or "")
    assert len(long.completions) == 3
    assert all(c.finish_reason != "failed" for c in good.completions)


def test_weights_without_numbers_fail_as_data(
    folders: Callable[[str], Path], engine: TransformersEngine
) -> None:
    model = plain_model(folders("llama"))
    tensors = {n: torch.full_like(p, torch.nan) for n, p in model.named_parameters()}
    engine.sync(WeightUpdate(version="broken", tensors=tensors))
    assert {c.detail for c in only(engine, ask())} == {"the model's logits are not finite"}


@pytest.mark.parametrize("completion", [(4,) * (CONTEXT - 1), (4000,)])
def test_what_cannot_be_scored_is_refused(
    engine: TransformersEngine, completion: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="could not be scored"):
        engine.score([ScoreRequest(prompt_ids=(3,), completion_ids=completion)])


def test_scores_of_many_lengths_and_of_nothing(
    engine: TransformersEngine, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollouts.engines.decoding import reader

    requests = [
        ScoreRequest(prompt_ids=(3,) * (1 + i % 5), completion_ids=tuple(range(4, 4 + 3 * i)))
        for i in range(10)
    ]
    model = plain_model(folders("llama"))
    expected = [reference(model, r.prompt_ids, r.completion_ids).tolist() for r in requests]
    whole = engine.score(requests)
    # Bounds that cut passes into single rows, and their logits into single positions.
    monkeypatch.setattr(reader, "LOGITS_BYTES", 4 * 128)
    monkeypatch.setattr(reader, "TOKENS_PER_PASS", 20)
    for scores in (whole, engine.score(requests)):
        for values, want in zip(scores, expected, strict=True):
            assert values == pytest.approx(want, abs=TOLERANCE)
    assert whole[0] == ()


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt_neox", "gpt2"])
def test_syncs_change_what_is_said_and_the_base_comes_back(
    folders: Callable[[str], Path], kind: str
) -> None:
    """Files name some of these models' tensors otherwise than the model in memory does."""
    from align.learner.model.mapping import stored_form

    folder = folders(kind)
    engine, model = config(folder).start(), plain_model(folder)
    base = only(engine, ask())
    for seed in (1, 2):
        tensors = stored_form(model, perturbed(model, seed))
        report = engine.sync(WeightUpdate(version=f"r/{seed}", tensors=to_host(tensors)))
        assert (report.version, report.num_engines) == (f"r/{seed}", 1)
        completions = only(engine, ask())
        assert gap(model, (3, 4, 5), completions) < TOLERANCE
        assert gap(plain_model(folder), (3, 4, 5), completions) > 0.01
        spans = {c.weight_versions for c in completions}
        assert spans == {(WeightSpan(f"r/{seed}", 0, len(c.token_ids)),) for c in completions}
    engine.sync(WeightUpdate(version="base"))
    again = only(engine, ask())
    assert [c.token_ids for c in again] == [c.token_ids for c in base]
    assert [c.logprobs_T for c in again] == [c.logprobs_T for c in base]


def test_stored_tensors_with_low_rank_updates_are_added(folders: Callable[[str], Path]) -> None:
    folder = folders("llama")
    engine, model = config(folder).start(), plain_model(folder)
    file = str(folder / "model.safetensors")
    tensors = {n: StoredTensor(file=file, name=n) for n, _ in model.named_parameters()}
    name = "model.layers.0.self_attn.q_proj.weight"
    for version in (1, 2):
        generator = torch.Generator().manual_seed(version)
        left, right = (torch.randn(s, generator=generator) for s in ((64, 2), (2, 64)))
        update = LowRankUpdate(left=left.numpy(), right=right.numpy(), scale=0.5)
        changed = {**tensors, name: replace(tensors[name], update=update)}
        engine.sync(WeightUpdate(version=str(version), tensors=changed))
        fresh = plain_model(folder)
        with torch.no_grad():
            fresh.get_parameter(name).add_(0.5 * left @ right)
        assert gap(fresh, (3, 4, 5), only(engine, ask())) < TOLERANCE
    engine.sync(WeightUpdate(version="plain", tensors=tensors))
    assert gap(model, (3, 4, 5), only(engine, ask())) < TOLERANCE


def test_adapters_are_swapped_and_taken_off(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = folders("llama")
    engine = config(folder, lora_rank=4).start()
    wrapped = get_peft_model(
        plain_model(folder),
        LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    ).eval()
    for version in (1, 2):
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        wrapped.save_pretrained(tmp_path / str(version))
        update = WeightUpdate(version=f"lora/{version}", adapter=str(tmp_path / str(version)))
        engine.sync(update)
        completions = only(engine, ask())
        assert gap(wrapped, (3, 4, 5), completions) < TOLERANCE
    plain = plain_model(folder)
    assert gap(plain, (3, 4, 5), completions) > 0.01
    engine.sync(WeightUpdate(version="base"))
    assert gap(plain, (3, 4, 5), only(engine, ask())) < TOLERANCE
    with pytest.raises(ValueError, match="takes no full weights"):
        engine.sync(WeightUpdate(version="full", tensors={}))


def test_an_update_that_lacks_tensors_is_refused_until_a_whole_one(
    folders: Callable[[str], Path], engine: TransformersEngine
) -> None:
    tensors = dict(plain_model(folders("llama")).named_parameters())
    part = {name: tensor for name, tensor in tensors.items() if "mlp" not in name}
    with pytest.raises(ValueError, match="mlp"):
        engine.sync(WeightUpdate(version="part", tensors=part))
    with pytest.raises(RuntimeError, match="sync again"):
        engine.generate([ask()])
    engine.sync(WeightUpdate(version="whole", tensors=tensors))
    assert only(engine, ask())[0].weight_versions[0].version == "whole"
    with pytest.raises(ValueError, match="takes no adapters"):
        engine.sync(WeightUpdate(version="lora", adapter="somewhere"))


def test_weights_that_come_in_flight_are_used_from_the_next_token_on(
    folders: Callable[[str], Path], engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_model(folders("llama"))
    before = plain_model(folders("llama"))
    tensors, steps, step = perturbed(model, 5), [0], CachedBatch.step

    def counted(self: CachedBatch, tokens: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:  # Four tokens are there when it is loaded.
            update = WeightUpdate(version="new", tensors=tensors)
            sender = threading.Thread(target=engine.deposit, args=(update,))
            sender.start()
            sender.join()
        return step(self, tokens)

    monkeypatch.setattr(CachedBatch, "step", counted)
    completions = only(engine, ask(n=3, max_tokens=30, seed=8))
    longest = max(completions, key=lambda c: len(c.token_ids))
    end = len(longest.token_ids)
    assert longest.weight_versions == (WeightSpan("base", 0, 4), WeightSpan("new", 4, end))
    old = reference(before, (3, 4, 5), longest.token_ids)
    new = reference(model, (3, 4, 5), longest.token_ids)
    assert longest.logprobs_T == pytest.approx(
        [*old[:4].tolist(), *new[4:].tolist()], abs=TOLERANCE
    )
    engine.deposit(
        WeightUpdate(version="bad", tensors={"model.norm.weight": tensors["model.norm.weight"]})
    )
    with pytest.raises(WeightLoadError, match="bad"):
        engine.generate([ask()])


def test_results_come_as_they_are_finished(engine: TransformersEngine) -> None:
    requests = [
        ask("long", max_tokens=40, n=1, top_k=1, temperature=1.0),
        ask("short", n=1, stop_token_ids=tuple(range(128))),
        ask("bad", prompt=(3,) * CONTEXT, n=1),
    ]
    arrivals = [place for found in engine.stream(requests) for place, _ in found]
    assert arrivals == [2, 1, 0]


def test_an_abandoned_call_leaves_nothing_behind(engine: TransformersEngine) -> None:
    expected = engine.generate([ask()])
    stream = engine.stream([ask("left", n=2, max_tokens=40), ask("short", max_tokens=1)])
    next(stream)
    stream.close()
    assert engine.generate([ask()]) == expected


def test_a_cache_without_room_for_one_sequence_is_refused(folders: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"holds [\d,]+ tokens") as error:
        config(folders("llama"), max_model_len=60_000).start()
    assert error.value.where == "rollouts.kv_cache_mb"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        config(tmp_path).start()
