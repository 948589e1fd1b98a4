"""Files of an adapter: the same bytes, and so the same snapshot, in every process and in every folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from tests.unit.tiny import save_model

PUBLISH = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from align.config.campaign import LoraConfig
from align.learner.model.adapter import save_adapter, with_adapter
from align.store.snapshots.manifest import Provenance
from align.store.snapshots.snapshots import SnapshotStore

store = Path(sys.argv[1])
torch.manual_seed(0)
model = with_adapter(AutoModelForCausalLM.from_pretrained(store / "snapshots" / "base"), LoraConfig(rank=2))
snapshot = SnapshotStore(store).publish(lambda at: save_adapter(model, at), Provenance(kind="adapter"))
print(snapshot.path)
"""


@pytest.mark.slow
def test_the_same_adapter_is_the_same_snapshot_in_every_process(tmp_path: Path) -> None:
    save_model(tmp_path / "one" / "snapshots" / "base")
    copytree(tmp_path / "one", tmp_path / "two" / "deeper")
    stores = {"1": tmp_path / "one", "2": tmp_path / "two" / "deeper"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(store)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, store in stores.items()
    ]
    folders = [Path(process.communicate()[0].strip()) for process in processes]
    assert folders[0].name == folders[1].name
    assert folders[0] != folders[1]
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert len(config["target_modules"]) > 2, "one or two names may be in order by chance"
    assert (folders[0] / config["base_model_name_or_path"]).resolve().name == "base"
    assert str(tmp_path) not in json.dumps(config)
