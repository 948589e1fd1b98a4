"""What every test relies on: no network, no telemetry, one thread, and the same examples each run.

Set before anything heavy is imported, because these are read once. A value from outside wins.
"""

from __future__ import annotations

import os

from hypothesis import settings

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
