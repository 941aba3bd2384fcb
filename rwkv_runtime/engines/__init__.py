"""What computes: the port, and the engines behind it."""

from __future__ import annotations

from rwkv_runtime.engines.adapter import PackageEngine, load_package_engine
from rwkv_runtime.engines.base import Engine, EngineState, check_tokens
from rwkv_runtime.engines.load import load_engine
from rwkv_runtime.engines.lossy import LossyEngine
from rwkv_runtime.engines.rwkv7 import NUMERICS_REVISION, Rwkv7Engine
from rwkv_runtime.names import KERNELS, LOSSY, DeviceName, DTypeName, KernelName, Lossy

__all__ = [
    "KERNELS",
    "LOSSY",
    "NUMERICS_REVISION",
    "DTypeName",
    "DeviceName",
    "Engine",
    "EngineState",
    "KernelName",
    "Lossy",
    "LossyEngine",
    "PackageEngine",
    "Rwkv7Engine",
    "check_tokens",
    "load_engine",
    "load_package_engine",
]
