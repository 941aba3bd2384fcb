"""Files of tensors, `.pth` and `.safetensors`, opened without trust: the shapes of all tensors, and
one at a time its values.

The kind of a file is told by its first bytes, not by its name. Files are mapped, and what was read
is let go of on the way. Nothing in a file is run, and nothing is allocated that the file does not
hold. It knows nothing of models.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.weights.digests import FileIdentity

Load = Callable[[str], Tensor]
Opened = tuple[Mapping[str, tuple[int, ...]], Load]

WANTED = "an RWKV-7 weights file, .pth or .safetensors"
FOREIGN_MAGICS = {
    b"GGUF": "a GGUF file",
    b"fmgg": "a file of rwkv.cpp",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself: git lfs pull)",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"\x1f\x8b": "a gzip archive",
}


@contextmanager
def open_tensors(path: Path) -> Iterator[Opened]:
    """The shapes of all tensors in the file, and a function that gives one of them by name.

    Raises:
        WeightsError: it cannot be read, or holds something else than tensors.
    """
    size = FileIdentity.of(path).size
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        tensors = _Mapped(path, partial(_opened_safetensors, path), size)
    elif head.startswith(b"PK\x03\x04"):
        tensors = _Mapped(path, partial(_opened_pth, path, size), size)
    elif head.startswith(b"\x80\x02"):  # from before PyTorch 1.6: no zip archive, cannot be mapped
        yield _opened_pth(path, size, mapped=False)
        return
    else:
        raise WeightsError(f"{path}: expected {WANTED}, found {_described(head)}")
    try:
        yield tensors.shapes, tensors.load
    finally:
        tensors.close()


class _Mapped:
    """Tensors of a mapped file.

    The pages that were read count as memory for as long as the mapping stands, so it is renewed
    after each sixteenth of the file.
    """

    def __init__(self, path: Path, opened: Callable[[], Opened], size: int) -> None:
        self._path = path
        self._load: Load | None
        self.shapes, self._load = opened()
        self._open: Callable[[], Opened] | None = opened
        self._share = self._left = max(size // 16, 16 << 20)  # bytes

    def load(self, name: str) -> Tensor:
        """The tensor, in the mapping's memory, which may go with it."""
        if self._load is None:
            self._renew()
        assert self._load is not None
        tensor = self._load(name)
        self._left -= tensor.nbytes
        if self._left < 0:
            self._load = None
        return tensor

    def close(self) -> None:
        """Nothing can be loaded any more. What was loaded keeps its memory."""
        self._open = self._load = None

    def _renew(self) -> None:
        assert self._open is not None
        shapes, self._load = self._open()
        if shapes != self.shapes:
            raise WeightsError(f"{self._path}: it changed while it was read; load it again")
        self._left = self._share


def _opened_safetensors(path: Path) -> Opened:
    try:
        file: Any = safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or truncated .safetensors file: {error}") from error
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor  # noqa: SIM118 - it is no mapping


def _opened_pth(path: Path, size: int, *, mapped: bool = True) -> Opened:
    if mapped:
        _refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: expected {WANTED}, found a PyTorch file with other objects than tensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{path}: damaged or truncated .pth file: {reason}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected tensors by name, found a {type(content).__name__}")
    if "_strategy" in content:
        raise WeightsError(
            f"{path}: found a model that the rwkv package has converted for one strategy; "
            "take the file that it was made from"
        )
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise WeightsError(
                f"{path}: expected tensors by name, found {name!r}: {type(tensor).__name__}"
            )
        if tensor.layout is not torch.strided or tensor.is_meta:
            how = "without its values" if tensor.is_meta else f"as {tensor.layout}"
            raise WeightsError(f"{path}: {name} is stored {how}, expected a dense tensor")
    # A view may claim what no file holds; copying it would allocate that.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if claimed > size:
        raise WeightsError(f"{path}: its tensors claim {claimed} bytes, more than the file holds")
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    # What is not mapped is given away, so that it goes once it is copied.
    return shapes, content.__getitem__ if mapped else content.pop


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive with compressed members: PyTorch compresses nothing, but unpacks what is
    compressed, and a small file may become any size. Refuse one whose members cannot be listed
    here, too: PyTorch may see others than we do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            kinds = {member.compress_type for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: damaged or truncated .pth file: {error}") from error
    if kinds - {zipfile.ZIP_STORED}:
        raise WeightsError(f"{path}: a compressed archive, which no .pth file is; unpack it")


def _described(head: bytes) -> str:
    if not head:
        return "an empty file"
    for magic, what in FOREIGN_MAGICS.items():
        if head.startswith(magic):
            return what
    return f"a file that begins with {head[:8].hex(' ')}"
