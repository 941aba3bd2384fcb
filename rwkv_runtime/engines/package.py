"""The `rwkv` package, loaded so that its global settings stay its own.

Importing ``rwkv.model`` decides by environment variables between version 7 and the older ones, for
the whole process, keeps a model's dtype in a global, and changes torch's settings. So every model
gets a private copy of the module, imported under the variables that it needs; torch's settings are
put back afterwards. Its TorchScript is off, for version 7 too, which the package would always
compile: what is specialised after a few calls may have other bits than the first calls had.
"""

from __future__ import annotations

import importlib.util
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from itertools import count
from types import ModuleType
from typing import Any, Final

import torch

from rwkv_runtime.errors import DeviceError

_MODULE: Final = "rwkv.model"
_SWITCHES: Final = ("RWKV_CUDA_ON", "RWKV_DML_ON")
_copies = count()
_importing = threading.Lock()  # environment and standard output are the process's


def package_version() -> str:
    """The installed release. Raises `DeviceError` where there is none."""
    _require()
    return version("rwkv")


def package_switches() -> tuple[tuple[str, str], ...]:
    """The environment's variables that decide bits, where they are not at their defaults."""
    return tuple((name, os.environ[name]) for name in _SWITCHES if os.environ.get(name) == "1")


def load_model(path_without_suffix: str, strategy: str, version: str) -> Any:  # noqa: ANN401 - the package's own class, untyped
    """The package's model of a `.pth` file of that version.

    Raises:
        DeviceError: the package is not installed, cannot be loaded here, or refuses the strategy.

    Whatever it stumbles over in the file comes out as it is.
    """
    quiet = redirect_stdout(io.StringIO())
    seven = version.startswith("7")
    with _importing, _environment(version), _settings(), _without_torchscript(), quiet:
        module = _private_copy()
        try:
            if seven:
                return module.RWKV(path_without_suffix, strategy)
            return module.RWKV(path_without_suffix, strategy, verbose=False)
        except (ZeroDivisionError, NameError) as error:  # no layer is left for a part; no DirectML
            raise DeviceError(
                f"strategy {strategy!r}: the rwkv package refuses it: {error}"
            ) from error


def _require() -> Any:  # noqa: ANN401 - a module's spec
    try:
        spec = importlib.util.find_spec(_MODULE)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        raise DeviceError("this engine needs the rwkv package: pip install 'rwkv-statestore[rwkv]'")
    return spec


def _private_copy() -> ModuleType:
    found = _require()
    name = f"rwkv_runtime._rwkv_model_{next(_copies)}"
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # it compiles kernels where it is told to
        told = " ".join(f"{name}={value}" for name, value in package_switches())
        raise DeviceError(f"the rwkv package cannot be loaded here ({told}): {error}") from error
    return module


@contextmanager
def _environment(version: str) -> Iterator[None]:
    wanted = {
        "RWKV_V7_ON": "1" if version.startswith("7") else "0",
        "RWKV_DE_VERSION": "1" if version == "7a" else "0",
        "RWKV_JIT_ON": "0",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # the package itself does not ask for it
    }
    os.environ.setdefault("RWKV_CUDA_ON", "0")  # read at every call, too
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_torchscript() -> Iterator[None]:
    """Decorators of torch.jit that give back what they are given."""
    names = ("script", "script_method", "ScriptModule")
    before = [getattr(torch.jit, name) for name in names]
    stand_ins = (_unchanged, _unchanged, torch.nn.Module)
    try:
        for name, stand_in in zip(names, stand_ins, strict=True):
            setattr(torch.jit, name, stand_in)
        yield
    finally:
        for name, original in zip(names, before, strict=True):
            setattr(torch.jit, name, original)


def _unchanged(function: Any) -> Any:  # noqa: ANN401 - any callable
    return function


@contextmanager
def _settings() -> Iterator[None]:
    """Put back what the package sets for every model of the process."""
    cudnn = torch.backends.cudnn
    benchmark, put_back = cudnn.benchmark, _precisions()
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        put_back()


def _precisions() -> Callable[[], None]:
    """What puts the bits of fp32 back to what they are now."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        precision = torch.get_float32_matmul_precision()
        tf32 = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # they were set by the newer names, which say more
        places: tuple[Any, ...] = (matmul, cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
        values = [place.fp32_precision for place in places]

        def newer() -> None:
            for place, value in zip(places, values, strict=True):
                place.fp32_precision = value

        return newer

    def older() -> None:
        cudnn.allow_tf32, matmul.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)  # "medium" says more than the switch

    return older
