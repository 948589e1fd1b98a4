"""Setup of every test: no network, no telemetry, one thread, and the same examples each run.

Set before anything heavy is imported, because these are read once. A value from outside wins.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

from tests.patience import patient, slowness

ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # Tiny models: more threads are slower, and engines share the machine.
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# A property that fails must fail for everyone, and a slow machine is not a failure.
settings.register_profile("keel", derandomize=True, deadline=None, database=None)
settings.load_profile("keel")


def pytest_configure() -> None:
    """Measure the machine before workers share it."""
    slowness()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scale the timeout of every test to the machine, unless the command line gives one."""
    if config.getoption("timeout") is not None:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = float(marker.args[0] if marker else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(patient(seconds)), append=False)


def pytest_collection_finish() -> None:
    """Leave out what was imported and collected, which stays to the end, of later garbage collections."""
    gc.collect()
    gc.freeze()
