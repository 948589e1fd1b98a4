"""Full weights over four ranks, in processes over gloo: read, written, and never whole on one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from align.config.campaign import PolicyConfig
from align.learner.model.policy import Policy
from align.learner.ranks.ranks import SOLO, Ranks
from tests.unit.tiny import save_model

SIZE = 4
IMPORTED = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
)
"""Modules that take seconds, and that all ranks share."""
LAYERS, WIDTH = 6, 384


def save_large(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model of 60 MB in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=500, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for f in sorted(folder.glob("*.safetensors")) for k, t in load_file(f).items()}


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


@contextmanager
def peak_bytes(peaks: dict[str, int], name: str) -> Iterator[None]:
    """Largest memory in a block beyond what the process had before."""
    ended, most = Event(), [anonymous_bytes()]
    start = most[0]

    def watch() -> None:
        while not ended.is_set():
            most[0] = max(most[0], anonymous_bytes())
            time.sleep(0.003)

    Thread(target=watch, daemon=True).start()
    yield
    ended.set()
    peaks[name] = max(most[0], anonymous_bytes()) - start


def a_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=60),
    )
    peaks: dict[str, int] = {}
    config, device = PolicyConfig(model="large", ranks=SIZE), torch.device("cpu")
    # What a first model takes besides its weights does not count.
    small = Policy(folder / "small", config, device=device, ranks=Ranks(rank, SIZE))
    small.save(folder / "small again")
    with peak_bytes(peaks, "all"):
        policy = Policy(folder / "base", config, device=device, ranks=Ranks(rank, SIZE))
        policy.save(folder / "base again")
        policy.load(folder / "half")
        policy.save(folder / "half again")
    (folder / f"peaks-{rank}.json").write_text(json.dumps(peaks))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(tmp_path: Path) -> None:
    sources = {
        "base": save_large(tmp_path / "base", 0),
        "half": save_large(tmp_path / "half", 2, torch.bfloat16),
    }
    save_model(tmp_path / "small")
    size = sum(tensor.nbytes for tensor in tensors(sources["base"]).values())
    multiprocessing.get_context("forkserver").set_forkserver_preload([*IMPORTED, __name__])
    multiprocessing.start_processes(  # type: ignore[no-untyped-call,attr-defined]
        a_rank, args=(tmp_path,), nprocs=SIZE, start_method="forkserver"
    )
    for rank in range(SIZE):
        (peak,) = json.loads((tmp_path / f"peaks-{rank}.json").read_text()).values()
        # A quarter that lives, a quarter that is written, a layer on its way, and some 15 MB of libraries.
        assert size // 4 < peak < 0.95 * size, (rank, peak / size)
    for name, source in sources.items():
        written, expected = tensors(tmp_path / f"{name} again"), tensors(source)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[n], t.float()) for n, t in expected.items()), name
        files = sorted(f.name for f in (tmp_path / f"{name} again").glob("*.safetensors"))
        assert files == [f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)]
        sizes = [(tmp_path / f"{name} again" / file).stat().st_size for file in files]
        assert max(sizes) < 0.45 * sum(sizes)
    for name in {f.name for f in sources["base"].iterdir()} - {"model.safetensors"}:
        again = (tmp_path / "base again" / name).read_text()
        assert json.loads(again) == json.loads((sources["base"] / name).read_text())
    alone = Policy(
        sources["base"], PolicyConfig(model="large"), device=torch.device("cpu"), ranks=SOLO
    )
    alone.load(tmp_path / "half again")
    loaded, expected = alone.named_parameters(), tensors(sources["half"])
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[n], t.float()) for n, t in expected.items())
