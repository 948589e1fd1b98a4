"""Matrix products in bfloat16: processors with instructions for them, and the dtype ``auto`` means.

Without such instructions a library converts every product by hand. Measured with oneDNN on one thread:
65 GFLOP/s in float32 and 0.9 to 1.6 in bfloat16 on AVX2, 55 and 25 on AVX-512 without BF16, 55 and 145 on
AVX-512 with it. What a GPU computes in is its own affair; every one since Ampere has bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16"]
Bfloat16 = Literal["native", "emulated", "none"]
"""Speed class. ``native``: faster than float32; ``emulated``: half as fast; ``none``: far slower."""

CPUINFO = Path("/proc/cpuinfo")
NATIVE_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
"""Names of the instructions in ``/proc/cpuinfo``; the last is ARM's."""
EMULATING_FLAGS = frozenset({"avx512f", "avx512_f"})
"""Names of AVX-512, the kernel's and torch's."""

ISA_LIMITS: dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset(),
    "AVX2_VNNI": frozenset(),
    "AVX2_VNNI_2": frozenset({"avx_ne_convert"}),
    "AVX512_CORE": EMULATING_FLAGS,
    "AVX512_CORE_VNNI": EMULATING_FLAGS,
    "AVX512_CORE_BF16": EMULATING_FLAGS | {"avx512_bf16"},
    "AVX512_CORE_FP16": EMULATING_FLAGS | {"avx512_bf16"},
}
"""Flags that oneDNN still uses under each value of ONEDNN_MAX_CPU_ISA; other values limit nothing."""

SLOWDOWN: dict[Bfloat16, str] = {
    "native": "",
    "emulated": "about half as fast as",
    "none": "40 to 80 times slower than",
}
"""Speed of products in bfloat16 compared with float32, in words."""


def processor_flags(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the instruction sets that oneDNN may use here, by the kernel's names, else by torch's."""
    environ = os.environ if environ is None else environ
    try:
        flags = flags_in(CPUINFO.read_text())
    except OSError:
        flags = frozenset()
    if not flags:
        with suppress(ImportError):
            from torch.cpu import get_capabilities

            flags = frozenset(name for name, has in get_capabilities().items() if has is True)
    return usable(flags, environ)


def flags_in(cpuinfo: str) -> frozenset[str]:
    """Return the flags that every processor of a ``/proc/cpuinfo`` has; cores may differ.

    >>> sorted(flags_in("flags : fma avx2\\nflags : avx2"))
    ['avx2']
    """
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    rows = [set(value.split()) for key, _, value in pairs if key.strip() in ("flags", "Features")]
    return frozenset(set.intersection(*rows)) if rows else frozenset()


def usable(flags: frozenset[str], environ: Mapping[str, str]) -> frozenset[str]:
    """Return the flags without those for bfloat16 that ONEDNN_MAX_CPU_ISA switches off."""
    limit = environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or ""
    left = ISA_LIMITS.get(limit.upper())
    return flags if left is None else flags - (NATIVE_FLAGS | EMULATING_FLAGS) | (flags & left)


def bfloat16_by(flags: frozenset[str]) -> Bfloat16:
    """Return the speed class of bfloat16 products on a processor with these flags.

    >>> bfloat16_by(frozenset({"avx2", "fma"})), bfloat16_by(frozenset({"avx512_bf16"}))
    ('none', 'native')
    """
    if flags & NATIVE_FLAGS:
        return "native"
    return "emulated" if flags & EMULATING_FLAGS else "none"


def quickest_dtype(device: Literal["cpu", "cuda"], flags: frozenset[str] | None = None) -> Dtype:
    """Return the dtype that ``auto`` means: bfloat16 if the device has instructions for it.

    Args:
        flags: of the processor; None reads this machine's.
    """
    if device == "cuda":
        import torch

        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has else "float32"
    available = processor_flags() if flags is None else flags
    return "bfloat16" if bfloat16_by(available) == "native" else "float32"
