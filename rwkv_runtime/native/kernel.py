"""The kernel's side of Python: everything that C is given is checked here, or made here.

The bits are specified by the C files and stand for `REVISION`: they depend neither on the compiler
nor on the processor, nor on the number of threads. Another revision, other states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_runtime.errors import VocabularyError
from rwkv_runtime.hugepages import use_huge_pages
from rwkv_runtime.model import MIXES, LayerState, ModelState
from rwkv_runtime.native.blocks import Arranger
from rwkv_runtime.native.held import Held
from rwkv_runtime.weights import Architecture, WeightsFile
from statestore.errors import SettingsError, StateError

REVISION = 2
LANES = 16
ROWS = 256  # tokens of one call at most: they bound the memory that it works in
LARGE = 16 << 20  # bytes of logits: as small pages they would take longer to find than to fill
DTYPES = (torch.float32, torch.bfloat16)
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
CPU = torch.device(
    "cpu"
)  # told each time: a program may have set another place, or dtype, for its own

NORMS = {"ln1": "ln1", "ln2": "ln2", "ln_x": "att.ln_x"}
VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k")
LOW_RANKS = ("w1", "a1", "v1", "g1", "w2", "a2", "v2", "g2")
MATRICES = {
    "receptance": "att.receptance",
    "key": "att.key",
    "value": "att.value",
    "output": "att.output",
    "ffn_key": "ffn.key",
    "ffn_value": "ffn.value",
}


class _Matrix(ctypes.Structure):
    _fields_ = (("blocks", POINTER), ("in", INT), ("out", INT))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((f"{norm}_{part}", POINTER) for norm in NORMS for part in ("weight", "bias")),
        ("mix", POINTER),
        *((name, POINTER) for name in (*VECTORS, "ffn_mix")),
        *((name, _Matrix) for name in (*LOW_RANKS, *MATRICES)),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, INT) for name in ("layers", "width", "heads", "rank", "ffn_width", "is_bf16")),
        *((n, POINTER) for n in ("emb", "ln0_weight", "ln0_bias", "ln_out_weight", "ln_out_bias")),
        ("layer", ctypes.POINTER(_Layer)),
        ("head", _Matrix),
    )


class _Team(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("parallel", "barrier", "number", "count"))


@dataclass(frozen=True, slots=True)
class _Bound:
    """A model as C sees it."""

    model: _Model
    layers: ctypes.Array[_Layer]
    memory: tuple[object, ...]  # what the addresses point to, kept alive


class Kernel:
    """Reads tokens with one model: one stream's next ones, or one in each of several streams. Safe
    to use from several threads at once.

    What a token gives depends on the tokens before it, and neither on how they were cut into calls
    nor on the streams beside it.

    Args:
        weights: of a model on the CPU, in fp32 or bf16; may be packed.
        library: as `rwkv_runtime.native.library` gives it.
        arranger: one that has seen the weights being packed, where there is one.

    Raises:
        SettingsError: a dtype, a device or a shape that the kernel does not do.
    """

    def __init__(
        self, weights: WeightsFile, library: ctypes.CDLL, arranger: Arranger | None = None
    ) -> None:
        self._shape = weights.architecture
        self._dtype = weights.tensors["emb.weight"].dtype
        _check(self._shape, weights.tensors)
        self._bound = _bind(self._shape, weights.tensors, arranger or Arranger())
        self._team = _team()
        self._read = library.rwkv7_read
        self._read.restype = None
        self._read.argtypes = (POINTER, POINTER, *(INT,) * 3, *(POINTER,) * 5)
        self._logits = library.rwkv7_logits
        self._logits.restype = None
        self._logits.argtypes = (POINTER, POINTER, INT, INT, *(POINTER,) * 3)
        self._scratch = library.rwkv7_scratch
        self._scratch.restype = INT
        self._scratch.argtypes = (POINTER, INT, INT)
        self._spare: list[Tensor] = []

    def read(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Read int64 `tokens` [T], T >= 1 -> (the last one's hidden [C], the next state); the state
        that is given stays as it is.

        Raises:
            VocabularyError: a token that the model does not have, or none at all.
            StateError: a state that is not one of this model.
        """
        if not tokens.numel():
            raise VocabularyError("no tokens: there is nothing to read")
        for piece in torch.split(tokens.contiguous(), ROWS):
            hidden, (state,) = self._advance(piece, (state,))
        return hidden[0], state

    def step(self, token: int, state: ModelState) -> tuple[Tensor, ModelState]:
        """`read` of a single token."""
        hidden, (after,) = self.steps((token,), (state,))
        return hidden[0], after

    def steps(
        self, tokens: Sequence[int], states: Sequence[ModelState]
    ) -> tuple[Tensor, tuple[ModelState, ...]]:
        """The same for one token in each of several streams -> (hidden [streams, C], states)."""
        if len(tokens) != len(states):
            raise StateError(f"{len(tokens)} tokens for {len(states)} states")
        if not tokens:
            return torch.empty(0, self._shape.width, dtype=self._dtype, device=CPU), ()
        return self._advance(torch.tensor(tokens, device=CPU), states)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., C] -> float32 [..., vocabulary], in memory of its own.

        Raises:
            StateError: no hidden vectors of this model.
        """
        shape, out = self._shape, self._bound.model.head.out
        wanted = (*hidden.shape[:-1], shape.width)
        self._check_tensor("hidden", hidden, self._dtype, wanted)
        found = torch.empty(*hidden.shape[:-1], out, dtype=torch.float32, device=CPU)
        if found.nbytes >= LARGE:
            use_huge_pages([found])
        count = hidden.numel() // shape.width
        if not count:
            return found[..., : shape.vocabulary]
        threads = torch.get_num_threads()
        with self._memory(threads, count) as scratch:
            self._logits(
                ctypes.byref(self._bound.model),
                ctypes.byref(self._team),
                threads,
                count,
                hidden.data_ptr(),
                found.data_ptr(),
                scratch,
            )
        return found[..., : shape.vocabulary]

    def hold(self, state: ModelState) -> Held:
        """A copy of `state` to go on from.

        Raises:
            StateError: a state that is not one of this model.
        """
        self._addresses((state,))
        return Held(self, state)

    def go_on(self, tokens: Sequence[int], streams: Sequence[Held]) -> Tensor:
        """`steps` in the streams' own memory -> hidden [streams, C]. An error leaves all of them
        as they were.

        Raises:
            VocabularyError: a token that the model does not have.
            StateError: not one token for each stream, a stream twice, or another kernel's.
        """
        if len(tokens) != len(streams) or len({*streams}) != len(streams):
            raise StateError(f"{len(tokens)} tokens for {len({*streams})} streams")
        if any(stream.kernel is not self for stream in streams):
            raise StateError("a stream that another kernel holds")
        if not tokens:
            return torch.empty(0, self._shape.width, dtype=self._dtype, device=CPU)
        addresses = b"".join(stream.addresses for stream in streams)
        places = (POINTER * (len(addresses) // ctypes.sizeof(POINTER))).from_buffer_copy(addresses)
        return self._compute(torch.tensor(tokens, device=CPU), len(streams), places, places)

    def _advance(
        self, tokens: Tensor, states: Sequence[ModelState]
    ) -> tuple[Tensor, tuple[ModelState, ...]]:
        """One stream with any number of tokens, or several with one each."""
        after = tuple(tuple(self._empty_layer() for _ in state) for state in states)
        before = self._addresses(states)
        return self._compute(tokens, len(states), before, self._addresses(after)), after

    def _compute(
        self,
        tokens: Tensor,
        count: int,
        before: ctypes.Array[ctypes.c_void_p],
        after: ctypes.Array[ctypes.c_void_p],
    ) -> Tensor:
        """The hidden vectors of `count` streams. `before` and `after` may be the same where each
        has one token.
        """
        shape = self._shape
        if tokens.dtype is not torch.int64 or tokens.dim() != 1 or not tokens.is_cpu:
            raise VocabularyError(
                f"tokens are {tokens.dtype} {list(tokens.shape)} on {tokens.device}; the kernel "
                "expects one row of int64 on the CPU"
            )
        for token in (int(limit) for limit in tokens.aminmax()):
            if not 0 <= token < shape.vocabulary:
                raise VocabularyError(
                    f"the token is {token}, but the model's ids are 0 to {shape.vocabulary - 1}"
                )
        hidden = torch.empty(count, shape.width, dtype=self._dtype, device=CPU)
        first, row = hidden.data_ptr(), shape.width * hidden.element_size()
        threads = torch.get_num_threads()
        with self._memory(threads, len(tokens)) as scratch:
            self._read(
                ctypes.byref(self._bound.model),
                ctypes.byref(self._team),
                threads,
                count,
                len(tokens) // count,
                tokens.data_ptr(),
                before,
                after,
                (POINTER * count)(*range(first, first + count * row, row)),
                scratch,
            )
        return hidden

    @contextmanager
    def _memory(self, threads: int, rows: int) -> Iterator[int]:
        """The address of memory to work in; one piece of it is kept from call to call."""
        size = int(self._scratch(ctypes.byref(self._bound.model), threads, rows))
        try:
            scratch = self._spare.pop()
        except IndexError:  # the first call, or another thread has it
            scratch = torch.empty(0, dtype=torch.float32, device=CPU)
        if scratch.numel() < size:
            scratch = torch.empty(size, dtype=torch.float32, device=CPU)
            use_huge_pages([scratch])
        yield scratch.data_ptr()
        if not self._spare:
            self._spare.append(scratch)

    def _empty_layer(self) -> LayerState:
        """Memory that lies as a loaded state's does."""
        width, heads, size = self._shape.width, self._shape.heads, self._shape.head_size
        return LayerState(
            torch.empty(1, width, dtype=self._dtype, device=CPU),
            torch.empty(1, heads, size, size, dtype=torch.float32, device=CPU),
            torch.empty(1, width, dtype=self._dtype, device=CPU),
        )

    def _addresses(self, states: Sequence[ModelState]) -> ctypes.Array[ctypes.c_void_p]:
        """Three of each layer of each stream; every tensor is checked."""
        shape = self._shape
        vector, matrix = (1, shape.width), (1, shape.heads, shape.head_size, shape.head_size)
        found: list[int] = []
        for state in states:
            if len(state) != shape.layers:
                raise StateError(
                    f"a state of {len(state)} layers, but the model has {shape.layers}"
                )
            for layer in state:
                for name, kept, dtype, wanted in (
                    ("att_x_prev", layer.att_x_prev, self._dtype, vector),
                    ("att_kv", layer.att_kv, torch.float32, matrix),
                    ("ffn_x_prev", layer.ffn_x_prev, self._dtype, vector),
                ):
                    self._check_tensor(name, kept, dtype, wanted)
                    found.append(kept.data_ptr())
        return (POINTER * len(found))(*found)

    def _check_tensor(
        self, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        if (
            tensor.dtype is not dtype
            or tensor.shape != shape
            or not tensor.is_contiguous()
            or not tensor.is_cpu
        ):
            raise StateError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, strides "
                f"{tensor.stride()}; the kernel expects contiguous {dtype} {list(shape)} on the CPU"
            )


def _check(shape: Architecture, tensors: Mapping[str, Tensor]) -> None:
    emb = tensors["emb.weight"]
    if emb.device.type != "cpu" or emb.dtype not in DTYPES:
        raise SettingsError(
            f"kernel native computes in fp32 or bf16 on the CPU, not in {emb.dtype} on "
            f"{emb.device.type}; take --kernel torch"
        )
    if shape.head_size % LANES or shape.ffn_width % LANES:
        raise SettingsError(
            f"kernel native needs heads and a channel mixing that are multiples of {LANES} wide, "
            f"not {shape.head_size} and {shape.ffn_width}; take --kernel torch"
        )


def _bind(shape: Architecture, tensors: Mapping[str, Tensor], arranger: Arranger) -> _Bound:
    memory: list[object] = []

    def kept(tensor: Tensor) -> int:
        memory.append(tensor)
        return tensor.data_ptr()

    def vector(name: str) -> int:
        return kept(tensors[name].float().contiguous())

    def matrix(weight: Tensor) -> _Matrix:
        found = arranger.blocks_of(weight)
        memory.append(found.owner)
        return _Matrix(found.address, found.inputs, found.out)

    layers = (_Layer * shape.layers)()
    for number, layer in enumerate(layers):
        _bind_layer(layer, f"blocks.{number}", tensors, vector, matrix, kept)
    model = _Model(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        rank=max(getattr(layer, name).out for layer in layers for name in LOW_RANKS[:4]),
        ffn_width=layers[0].ffn_key.out,
        is_bf16=tensors["emb.weight"].dtype is torch.bfloat16,
        emb=kept(tensors["emb.weight"].contiguous()),
        ln0_weight=vector("blocks.0.ln0.weight"),
        ln0_bias=vector("blocks.0.ln0.bias"),
        ln_out_weight=vector("ln_out.weight"),
        ln_out_bias=vector("ln_out.bias"),
        layer=layers,
        head=matrix(tensors["head.weight"]),
    )
    return _Bound(model, layers, tuple(memory))


def _bind_layer(
    layer: _Layer,
    prefix: str,
    tensors: Mapping[str, Tensor],
    vector: Callable[[str], int],
    matrix: Callable[[Tensor], _Matrix],
    kept: Callable[[Tensor], int],
) -> None:
    for field, name in NORMS.items():
        for part in ("weight", "bias"):
            setattr(layer, f"{field}_{part}", vector(f"{prefix}.{name}.{part}"))
    mixes = [tensors[f"{prefix}.att.{name}"].float().flatten() for name in MIXES]
    layer.mix = kept(torch.stack(mixes))
    layer.ffn_mix = vector(f"{prefix}.ffn.x_k")
    for name in VECTORS:
        if f"{prefix}.att.{name}" in tensors:
            setattr(layer, name, vector(f"{prefix}.att.{name}"))
    for name in LOW_RANKS:
        if f"{prefix}.att.{name}" in tensors:
            # They are kept as [in, out].
            setattr(layer, name, matrix(tensors[f"{prefix}.att.{name}"].mT))
    for field, name in MATRICES.items():
        setattr(layer, field, matrix(tensors[f"{prefix}.{name}.weight"]))


def _team() -> _Team:
    """Of the OpenMP that torch itself computes with; one thread where it has none."""
    names = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = [ctypes.cast(getattr(torchs, name), POINTER).value for name in names]
    except (OSError, AttributeError):
        return _Team()
    return _Team(*found)
