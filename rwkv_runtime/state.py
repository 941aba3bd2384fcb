"""Torch tensors <-> `statestore.State`: the only bridge between an engine's tensors and stored
bytes.

Nothing is copied on the CPU, in either direction, since states are values: engines never write to
one, and neither must whoever made the tensors or lends the bytes.

* On the way out the stored state *is* the memory of tensors that lie contiguous.
* On the way in a tensor *is* the stored bytes where they begin at a multiple of 64 bytes, as
  torch's own memory does. The bits of a matrix product may depend on alignment, so a resumed run
  must see its state lie as a cold run's does: what lies otherwise is copied into torch's memory.

bfloat16, which NumPy lacks, crosses as plain bytes like every other dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statestore.buffers import ALIGNMENT
from statestore.errors import StateError
from statestore.schema import OUTPUT_HIDDEN, DType, Schema, State
from statestore.schema import Tensor as StoredTensor

TORCH_DTYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I32: torch.int32,
    DType.I8: torch.int8,
}
DTYPES = {torch_dtype: dtype for dtype, torch_dtype in TORCH_DTYPES.items()}


def to_stored(
    schema: Schema,
    tensors: Mapping[str, Tensor],
    output: Tensor | None = None,
    *,
    output_name: str = OUTPUT_HIDDEN,
) -> State:
    """A state to store. Its buffers are the tensors' own memory where they lie contiguous on the
    CPU.

    Args:
        schema: which tensors there are, in which order.
        tensors: by the schema's names; dtypes and shapes are the schema's.
        output: what the engine's `logits` takes, [n], or ``None`` where it is not kept.
        output_name: `OUTPUT_HIDDEN` or `OUTPUT_LOGITS`.

    Raises:
        StateError: names every tensor that is missing, misshapen or unknown.
    """
    stored = tuple(_stored(name, tensor) for name, tensor in tensors.items())
    kept = None if output is None else _stored(output_name, output)
    state = State(schema.id, stored, kept)
    schema.validate(state)
    return state


def from_stored(
    schema: Schema, state: State, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors by name, and the output where it is kept. They share the state's memory where it
    is aligned: nobody may write to them.

    Raises:
        StateError: the state is not one of `schema`; names every difference.
    """
    schema.validate(state)
    tensors = {tensor.spec.name: _loaded(tensor, device) for tensor in state.tensors}
    return tensors, None if state.output is None else _loaded(state.output, device)


def _stored(name: str, tensor: Tensor) -> StoredTensor:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise StateError(f"{name} holds {tensor.dtype}; a state holds one of {list(DTYPES)}")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return StoredTensor.of(name, dtype, tensor.shape, flat.view(torch.uint8).numpy())


def _loaded(stored: StoredTensor, device: torch.device | str) -> Tensor:
    dtype, shape = TORCH_DTYPES[stored.spec.dtype], stored.spec.shape
    data = np.frombuffer(stored.data, np.uint8)
    if data.size and data.ctypes.data % ALIGNMENT == 0:
        return _lent(data).view(dtype).view(shape).to(device)
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    tensor.view(-1).view(torch.uint8).numpy()[:] = data
    return tensor.to(device)


def _lent(data: NDArray[np.uint8]) -> Tensor:
    """The same memory as a tensor [bytes], which keeps it alive."""
    return torch.from_numpy(np.asarray(_Writable(data)))


@dataclass(frozen=True, slots=True)
class _Writable:
    """Read-only bytes, shown as if they were not: torch has no read-only tensors and warns of
    what they would be made from.
    """

    data: NDArray[np.uint8]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.data.__array_interface__ | {"data": (self.data.ctypes.data, False)}
