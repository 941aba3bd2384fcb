"""What an engine's options are called: words that commands, settings and engines share. Loads no
model library.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

DTypeName: TypeAlias = Literal["fp32", "bf16", "fp16"]
DeviceName: TypeAlias = Literal["cpu", "cuda"]
KernelName: TypeAlias = Literal["torch", "native"]
Lossy: TypeAlias = Literal["fp16", "bf16", "int8"]

DTYPES: Final[tuple[DTypeName, ...]] = get_args(DTypeName)
DEVICES: Final[tuple[DeviceName, ...]] = get_args(DeviceName)
KERNELS: Final[tuple[KernelName, ...]] = get_args(KernelName)
LOSSY: Final[tuple[Lossy, ...]] = get_args(Lossy)
