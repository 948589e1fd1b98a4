"""Detection of processors with bfloat16 products, from the kernel's description."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollouts.machine import processor
from rollouts.machine.processor import (
    ISA_LIMITS,
    Bfloat16,
    bfloat16_by,
    flags_in,
    processor_flags,
    quickest_dtype,
    usable,
)

AVX2 = "fpu sse4_2 avx f16c fma avx2 bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq avx512_vnni"

MACHINES: dict[str, tuple[str, Bfloat16]] = {
    "EPYC of the third generation": (f"flags\t\t: {AVX2}", "none"),
    "Skylake": (f"flags\t\t: {AVX512}", "emulated"),
    "EPYC of the fourth generation": (f"flags\t\t: {AVX512} avx512_bf16", "native"),
    "Sapphire Rapids": (f"flags\t\t: {AVX512} avx512_bf16 amx_bf16 amx_tile", "native"),
    "Sierra Forest": (f"flags\t\t: {AVX2} avx_vnni avx_ne_convert", "native"),
    "Graviton 2": ("Features\t: fp asimd evtstrm aes asimdhp cpuid asimdrdm", "none"),
    "Graviton 3": ("Features\t: fp asimd sve asimdfhm i8mm bf16 dgh rng", "native"),
    "a machine that says nothing of flags": ("processor\t: 0\ncpu\t: POWER9", "none"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_kind_of_processor(name: str) -> None:
    text, expected = MACHINES[name]
    flags = flags_in(f"processor\t: 0\nmodel name\t: made by hand\n{text}\n\n")
    assert bfloat16_by(flags) == expected
    assert quickest_dtype("cpu", flags) == ("bfloat16" if expected == "native" else "float32")


def test_cores_that_differ_have_what_all_of_them_have() -> None:
    large, small = f"flags : {AVX512} avx512_bf16", f"flags : {AVX2}"
    assert bfloat16_by(flags_in(f"{large}\n\n{small}\n")) == "none"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("AVX2", "none"), ("avx2", "none"), ("AVX2_VNNI_2", "none"), ("AVX512_CORE", "emulated"),
     ("AVX512_CORE_BF16", "native"), ("AVX10_1_512", "native"), ("ALL", "native"), ("", "native")],
)  # fmt: skip
def test_an_emulated_processor_has_what_the_emulation_leaves(
    limit: str, expected: Bfloat16
) -> None:
    flags = flags_in(f"flags : {AVX512} avx512_bf16")
    assert bfloat16_by(usable(flags, {"ONEDNN_MAX_CPU_ISA": limit})) == expected
    assert bfloat16_by(usable(flags, {"DNNL_MAX_CPU_ISA": limit})) == expected


@pytest.mark.parametrize("limit", ISA_LIMITS)
def test_no_limit_gives_a_processor_what_it_lacks(limit: str) -> None:
    assert usable(flags_in(f"flags : {AVX2}"), {"ONEDNN_MAX_CPU_ISA": limit}) == set(AVX2.split())


def test_without_proc_torch_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False, "cores": 2}
    )
    assert processor_flags({}) == {"avx512_bf16"}
    assert processor_flags({"ONEDNN_MAX_CPU_ISA": "AVX2"}) == set()


def test_this_machine_answers() -> None:
    assert bfloat16_by(processor_flags()) in ("native", "emulated", "none")
    assert bfloat16_by(processor_flags({"ONEDNN_MAX_CPU_ISA": "AVX2"})) == "none"
