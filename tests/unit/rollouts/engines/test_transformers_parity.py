"""The transformers engine against the learner, in this process; see `tests.unit.engine_parity`."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.demo import BASE_MODEL
from rollouts.engines.transformers import TransformersConfig
from tests.unit.engine_parity import CASES, ENGINES, check_parity, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"), BASE_MODEL)


@pytest.mark.parametrize("case", CASES)
def test_engine_and_learner_agree_after_every_sync(
    models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    name, lora = CASES[case]
    engine = TransformersConfig(
        model=str(models[name]), device="cpu", max_model_len=64, **ENGINES[name]
    ).start()
    check_parity(engine, models[name], lora, 0.7, tmp_path)
