"""Torch tensors <-> `statestore.State`: the only bridge between an engine's tensors and stored
bytes.

The rule of buffers:

* On the way out nothing is copied that lies contiguous in the machine's memory: the stored state
*is* the
  tensor's memory. So whoever made the tensors must not write to them afterwards; engines never do.
* On the way in every tensor is copied, into memory that torch allocates. A stored buffer may be
  read-only, shared with other readers or badly aligned, and the bits of a matrix product may depend
  on alignment: a resumed run must see its state lie as a cold run's does.

bfloat16, which NumPy lacks, crosses as plain bytes like every other dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from statestore.errors import StateError
from statestore.schema import OUTPUT_HIDDEN, DType, Schema, State
from statestore.schema import Tensor as StoredTensor

TORCH_DTYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I32: torch.int32,
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
    """The tensors by name, and the output where it is kept, in memory of their own.

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
    tensor = torch.empty(stored.spec.shape, dtype=TORCH_DTYPES[stored.spec.dtype])
    tensor.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(stored.data, np.uint8)
    return tensor.to(device)
