"""Memory within control groups and limits, and the share of it that weights travel through."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollouts.machine import memory
from rollouts.machine.memory import available_memory, cgroup_usage, total_memory
from rollouts.machine.object_store import GIB, LEAST, MIB, needed_bytes, shortage, store_bytes

SMOLLM2 = 538_060_032
"""Bytes of its weights in float32."""


def group(folder: Path, limit: str, used: int, version: int = 2) -> None:
    names = {2: ("memory.max", "memory.current"),
             1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")


@pytest.mark.parametrize(
    ("membership", "below", "version"),
    [
        ("0::/\n", "", 2),
        ("0::/kubepods/pod7/box\n", "kubepods/pod7", 2),
        ("0::/kubepods/pod7/box\n", "kubepods/pod7/box", 2),
        ("12:cpu,cpuacct:/a\n5:memory:/docker/77\n", "memory/docker/77", 1),
        ("5:memory:/docker/77\n", "memory", 1),
        ("0::/../../elsewhere\n", "", 2),
    ],
)
def test_every_group_above_a_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, below: str, version: int
) -> None:
    (tmp_path / "self").write_text(membership)
    group(tmp_path / "cg" / below, str(300 * MIB), 100 * MIB, version)
    assert list(cgroup_usage(tmp_path / "cg", tmp_path / "self")) == [(300 * MIB, 100 * MIB)]
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cg")
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "self")
    assert total_memory() == 300 * MIB
    assert available_memory() == 200 * MIB


@pytest.mark.parametrize(("limit", "version"), [("max", 2), ("9223372036854771712", 1)])
def test_a_group_without_a_limit_counts_for_nothing(
    tmp_path: Path, limit: str, version: int
) -> None:
    group(tmp_path / "cg" / ("memory" if version == 1 else ""), limit, 5, version)
    assert list(cgroup_usage(tmp_path / "cg", tmp_path / "no proc")) == []


@pytest.mark.parametrize("shared", [None, 0, 64 * MIB, 512 * MIB, 2 * GIB, 100 * GIB])
@pytest.mark.parametrize("weights", [0, 2 * MIB, SMOLLM2, 14 * GIB])
def test_two_versions_of_the_weights_always_fit(weights: int, shared: int | None) -> None:
    size = store_bytes(weights, memory=64 * GIB, shared=shared)
    assert size >= max(LEAST, 2 * weights)
    if shared is not None and shared >= needed_bytes(weights):
        assert size <= shared, "what fits shared memory stays in it"


@pytest.mark.parametrize(
    ("weights", "shared", "words"),
    [
        (SMOLLM2, 64 * MIB, ("/dev/shm has 64 MiB free", "take 1154 MiB", "--shm-size=2g")),
        (SMOLLM2, None, ("there is no /dev/shm", "many times slower")),
        (0, 64 * MIB, ("take 80 MiB", "--shm-size=1g")),
    ],
)
def test_too_little_shared_memory_is_said_with_the_remedy(
    weights: int, shared: int | None, words: tuple[str, ...]
) -> None:
    told = shortage(weights, shared)
    assert told is not None
    assert all(word in told for word in words)


def test_enough_shared_memory_is_not_spoken_of() -> None:
    assert shortage(SMOLLM2, 2 * GIB) is None
    assert shortage(0, 80 * MIB) is None
