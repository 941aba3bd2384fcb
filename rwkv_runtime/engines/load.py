"""From a weights file to an engine with its fingerprint.

Whatever decides bits is either fixed here or goes into the fingerprint. The default profile names
the weights, the engine's revision, device type, dtype and chunk sizes: machines that share it agree
to rounding. The strict profile adds the number of threads, the processor's capability, model and
instructions, the library's version and what the environment asks of the libraries' choice of
instructions: machines that share it agree to the last bit. A kernel of our own is named with its
revision in both; as none of that decides its bits, its strict profile is the default one, except
where states are rounded, which is PyTorch's.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from rwkv_runtime.engines.base import Engine
from rwkv_runtime.engines.lossy import LossyEngine
from rwkv_runtime.engines.rwkv7 import ENGINE_NAME, NUMERICS_REVISION, Rwkv7Engine
from rwkv_runtime.engines.switches import machine, switches
from rwkv_runtime.errors import DeviceError, WeightsError
from rwkv_runtime.names import DEVICES, KERNELS, DeviceName, DTypeName, KernelName, Lossy
from rwkv_runtime.native import REVISION as KERNEL_REVISION
from rwkv_runtime.native import Arranger, Kernel, library
from rwkv_runtime.weights import Architecture, read_weights, weights_files
from rwkv_runtime.weights.digests import FileIdentity, Progress, check_unchanged, weights_digest
from rwkv_runtime.weights.tuned import read_tuned
from statestore.errors import SettingsError
from statestore.keys import ChunkRule, Fingerprint

MAX_THREADS = 1024  # with very many OpenMP ends the process
DTYPE_NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_engine(
    path: str | Path,
    dtype: DTypeName = "fp32",
    device: DeviceName = "cpu",
    *,
    rule: ChunkRule | None = None,
    strict: bool = False,
    threads: int | None = None,
    initial: str | Path | None = None,
    lossy: Lossy | None = None,
    kernel: KernelName = "torch",
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Load RWKV-7 weights: `.pth`, `.safetensors`, or a directory as Hugging Face has it.

    Args:
        path: The weights file, or the directory with ``config.json`` and safetensors.
        dtype: What to compute in; the recurrence is fp32 throughout.
        device: "cpu", or "cuda" for the first GPU.
        rule: How prompts are cut into chunks.
        strict: Share states only between machines that agree to the last bit.
        threads: How many threads torch computes with on the CPU; ``None`` leaves torch's setting,
            except that a strict engine keeps to the number it found.
        initial: A state-tuned file to begin from; ``None`` begins with zeros.
        lossy: Round the state at each chunk end to "fp16", "bf16" or "int8", and keep only that.
        kernel: What computes: "torch", or "native", a thousand lines of C, compiled when they are
            first asked for; faster, with other bits and states of its own.
        progress: Told (bytes done, bytes in all) while the file is hashed; not called where its
            digest is known.
        cache_dir: Where digests of files are remembered; by default the user's cache directory.

    Raises:
        WeightsError: the file is no such weights file, or changes meanwhile.
        DeviceError: this machine does not have the device, or the dtype or threads mean nothing.
        SettingsError: no such kernel, or not for this model, device or dtype, or no C compiler.
    """
    torch_dtype, torch_device = _checked(dtype, device, threads)
    compiled = _library(kernel, dtype, device)
    path = Path(path)
    if strict and threads is None:
        threads = torch.get_num_threads()
    rule = rule or ChunkRule()
    digest, identities = _digest_of(weights_files(path), cache_dir, progress)
    arranger = None if compiled is None else Arranger()
    weights = read_weights(
        path,
        torch_dtype,
        torch_device,
        rows=rule.chunk,
        on_packed=None if arranger is None else arranger.compare,
    )
    if weights_files(path) != tuple(identities):  # a directory's may have become others
        raise WeightsError(f"{path}: its files changed while they were being read; load it again")
    for file, identity in identities.items():
        check_unchanged(file, identity)
    dimensions = weights.architecture
    tuned = (
        None
        if initial is None
        else read_tuned(
            Path(initial),
            "7",
            dimensions.layers,
            dimensions.heads,
            dimensions.head_size,
            cache_dir=cache_dir,
        )
    )
    fingerprint = Fingerprint(
        weights_digest=digest.hex(),
        architecture="rwkv7",
        shapes=_shapes(weights.architecture),
        engine=ENGINE_NAME,
        revision=NUMERICS_REVISION,
        device=device,
        dtype=dtype,
        chunk=rule.chunk,
        min_chunk=rule.min_chunk,
        initial_state="" if tuned is None else tuned.digest,
        extra=_kernel_named(kernel)
        + switches(device)
        + (machine(device, threads) if strict and (compiled is None or lossy) else ()),
    )
    own = None if compiled is None else Kernel(weights, compiled, arranger)
    engine = Rwkv7Engine(weights, fingerprint, rule, threads, tuned, own)
    return engine if lossy is None else LossyEngine(engine, lossy)


def _digest_of(
    files: tuple[Path, ...], cache_dir: Path | None, progress: Progress | None
) -> tuple[bytes, dict[Path, FileIdentity]]:
    """The digest of one file, or of several files' digests; and the files."""
    found = {file: weights_digest(file, cache_dir=cache_dir, progress=progress) for file in files}
    digests = [digest for digest, _ in found.values()]
    whole = digests[0] if len(files) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return whole, {file: identity for file, (_, identity) in found.items()}


def _checked(dtype: str, device: str, threads: int | None) -> tuple[torch.dtype, torch.device]:
    if dtype not in DTYPE_NAMES:
        raise DeviceError(f"dtype {dtype!r} is not known; there are: {', '.join(DTYPE_NAMES)}")
    if device not in DEVICES:
        raise DeviceError(f"device {device!r} is not known; there are: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device cuda: PyTorch finds no GPU here; use cpu, or a CUDA build of PyTorch"
        )
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise DeviceError(f"threads is {threads}, expected 1 to {MAX_THREADS}")
    return DTYPE_NAMES[dtype], torch.device(device)


def _library(kernel: str, dtype: str, device: str) -> ctypes.CDLL | None:
    """Asked for before the weights are read: a compiler that is not there is told at once."""
    if kernel not in KERNELS:
        raise SettingsError(f"kernel {kernel!r} is not known; there are: {', '.join(KERNELS)}")
    if kernel == "torch":
        return None
    if device != "cpu" or dtype == "fp16":
        raise SettingsError(
            f"kernel native computes in fp32 or bf16 on the CPU, not in {dtype} on {device}; "
            "take --kernel torch"
        )
    return library()


def _kernel_named(kernel: str) -> tuple[tuple[str, str], ...]:
    return () if kernel == "torch" else (("kernel", f"{kernel} {KERNEL_REVISION}"),)


def _shapes(architecture: Architecture) -> tuple[tuple[str, int], ...]:
    return tuple(asdict(architecture).items())
