"""Engines in a pool against the learner, see `tests.unit.engine_parity`.

The engines of all cases start at once and are shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rollouts.engines import backend_named
from rollouts.pool.pool import EnginePool
from tests.unit.engine_parity import CASES, ENGINES, check_parity, save_models

pytestmark = pytest.mark.usefixtures("ray_cluster")

POOLED = [*(("vllm", name) for name in ENGINES), ("transformers", "tied")]
"""Backend and model of every engine; the other models meet the transformers backend in a unit test."""


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"), tiny_llama)


@pytest.fixture(scope="module")
def engines(
    ray_cluster: None, models: dict[str, Path]
) -> Iterator[dict[tuple[str, str], EnginePool]]:
    pools = {
        (backend, name): EnginePool(
            backend_named(backend)(
                model=str(models[name]),
                max_num_seqs=32,
                kv_cache_mb=64,
                device="cpu",
                **ENGINES[name],
            ),
            bundle={"CPU": 0.5},
        )
        for backend, name in POOLED
    }
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_engine_and_learner_agree_after_every_sync(
    engines: dict[tuple[str, str], EnginePool],
    models: dict[str, Path],
    tmp_path: Path,
    case: str,
    temperature: float,
) -> None:
    name, lora = CASES[case]
    check_parity(engines["vllm", name], models[name], lora, temperature, tmp_path)


def test_the_transformers_backend_agrees_in_a_pool(
    engines: dict[tuple[str, str], EnginePool], models: dict[str, Path], tmp_path: Path
) -> None:
    _, lora = CASES["lora_merged"]
    check_parity(engines["transformers", "tied"], models["tied"], lora, 1.0, tmp_path)
