"""What decides bits besides the engine, the weights and the chunks: settings of PyTorch, variables
of the environment, the machine.
"""

from __future__ import annotations

import os
from typing import Any, Final, TypeAlias

import torch

from rwkv_runtime.engines.processor import processor

Named: TypeAlias = tuple[tuple[str, str], ...]

# By these the libraries take other instructions than the processor's best, with other bits.
_INSTRUCTIONS: Final = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
)
# By these they compute in fewer bits than they are told, or choose another library.
_ENVIRONMENT: Final = {
    "cpu": ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    "cuda": ("NVIDIA_TF32_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_LINALG_PREFER_CUSOLVER"),
}
_GPU_USUAL: Final = {
    "allow_bf16_reduced_precision_reduction": True,
    "allow_fp16_reduced_precision_reduction": True,
    "allow_fp16_accumulation": False,
}


def switches(device: str) -> Named:
    """What trades bits for speed in this process, where it is not at its default."""
    return settings(device) + _told(_ENVIRONMENT.get(device, ()))


def settings(device: str) -> Named:
    """The part of it that a running program can change: PyTorch's own."""
    precision = _precision(device)
    found = [] if precision == "highest" else [("float32_matmul_precision", precision)]
    if device == "cuda":
        matmul: Any = torch.backends.cuda.matmul
        set_ = {name: getattr(matmul, name, usual) for name, usual in _GPU_USUAL.items()}
        found += [
            (name, str(set_[name])) for name, usual in _GPU_USUAL.items() if set_[name] != usual
        ]
    if device == "cpu" and not bool(torch.backends.mkldnn.enabled):
        found.append(("mkldnn", "off"))
    return tuple(found)


def machine(device: str, threads: int | None) -> Named:
    """What a strict fingerprint holds of this machine."""
    common = (("threads", str(threads)), ("torch", str(torch.__version__)), *processor())
    if device == "cuda":
        return (*common, ("gpu", torch.cuda.get_device_name()), ("cuda", str(torch.version.cuda)))
    capability = torch.backends.cpu.get_cpu_capability()
    return (*common, ("cpu", capability), *_told(_INSTRUCTIONS))


def _told(names: tuple[str, ...]) -> Named:
    return tuple((name, os.environ[name]) for name in names if os.environ.get(name))


def _precision(device: str) -> str:
    """In how many bits fp32 is multiplied there; "highest": in all."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the newer names, for which torch has no such word
        places: Any = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
        precision = str(places.matmul.fp32_precision)
        return "highest" if precision in ("none", "ieee") else precision
