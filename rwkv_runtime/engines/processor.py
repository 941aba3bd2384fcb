"""The processor, as far as it decides bits: libraries choose their kernels by its maker, its model
and the instructions that it has.

PyTorch's word for it is too coarse: "AVX512" with bfloat16 products or without, with AMX or
without, and their results differ.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
#: Of the instructions those that kernels are written in, on x86 and ARM.
_KERNELS: Final = ("avx", "amx", "fma", "f16c", "asimd", "sve", "sme", "bf16", "i8mm")


def processor() -> tuple[tuple[str, str], ...]:
    """Model and vector instructions of the processor that this runs on."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # away from Linux
        text = ""
    return described(text) or (("processor", platform.processor() or platform.machine()),)


def described(cpuinfo: str) -> tuple[tuple[str, str], ...]:
    """What the text of ``/proc/cpuinfo`` says of the first processor; empty where it says nothing.

    Raises nothing, whatever the text.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    named = ("vendor_id", "model name", "cpu family", "model", "stepping", "CPU implementer")
    model = " ".join(fields[name] for name in (*named, "CPU part") if fields.get(name))
    flags = fields.get("flags", fields.get("Features", "")).split()
    instructions = " ".join(sorted({flag for flag in flags if flag.startswith(_KERNELS)}))
    found = (("processor", model), ("instructions", instructions))
    return tuple((name, value) for name, value in found if value)
