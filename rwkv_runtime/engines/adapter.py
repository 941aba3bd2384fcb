"""RWKV versions 4, 5, 5.1, 5.2, 6, 7 and 7a, computed by the `rwkv` package.

For whoever runs these models with it already: strategy strings are those of the package, and
decide bits, so they are in the fingerprint with its release and its rescaling of fp16. A state is
the package's list of tensors. The package writes to it in place, and leaves views of whole
activations in it: it is cloned before and after every call. The package gives logits and no hidden
vector, so logits are what is kept with a state. It reads `.pth` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from torch import Tensor

from rwkv_runtime.engines.base import Engine, check_tokens
from rwkv_runtime.engines.computing import Computing
from rwkv_runtime.engines.lossy import LossyEngine
from rwkv_runtime.engines.package import load_model, package_switches, package_version
from rwkv_runtime.engines.package_state import PackageState, schema_of, start_of
from rwkv_runtime.engines.strategy import Strategy
from rwkv_runtime.engines.switches import machine, switches
from rwkv_runtime.errors import WeightsError
from rwkv_runtime.names import Lossy
from rwkv_runtime.state import DTYPES, from_stored, to_stored
from rwkv_runtime.weights import check_kind
from rwkv_runtime.weights.digests import Progress, check_unchanged, weights_digest
from rwkv_runtime.weights.tensors import open_tensors
from rwkv_runtime.weights.tuned import TunedState, check_shapes, read_tuned
from rwkv_runtime.weights.versions import Dimensions, dimensions_of
from statestore.errors import InputError, StateError
from statestore.keys import ChunkRule, Fingerprint
from statestore.schema import OUTPUT_LOGITS, State

ADAPTER_NAME: Final = "rwkv-package"
# Raise with any change of the bits that come out of the same release of the package.
ADAPTER_REVISION: Final = 1

# What it raises over tensors that are missing, misshapen or of another kind, and over a file that
# is exchanged between our look at it and its own.
_STUMBLES: Final = (
    EOFError,
    OSError,
    UnpicklingError,
    KeyError,
    AttributeError,
    IndexError,
    TypeError,
    RuntimeError,
    ValueError,
    AssertionError,
)


class PackageEngine:
    """An `Engine`; made by `load_package_engine`.

    Args:
        model: the package's.
        dimensions: of its weights.
        fingerprint: of everything here.
        rule: how prompts are cut into chunks.
        threads, tuned: as for `Rwkv7Engine`.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - untyped
        dimensions: Dimensions,
        fingerprint: Fingerprint,
        rule: ChunkRule,
        threads: int | None = None,
        tuned: TunedState | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.rule = rule
        self.vocabulary = dimensions.vocabulary
        self._model = model
        self._computing = Computing(threads, fingerprint.device)
        self._start = start_of(model, dimensions)
        if tuned is not None:  # between the two vectors of each layer
            matrices = zip(self._start[1::3], tuned.matrices, strict=True)
            found = [matrix.to(zeros) for zeros, matrix in matrices]
            self._start = tuple(
                found[place // 3] if place % 3 == 1 else tensor
                for place, tensor in enumerate(self._start)
            )
        self._devices = [tensor.device for tensor in self._start]
        self.schema = schema_of(dimensions, [DTYPES[tensor.dtype] for tensor in self._start])
        self._names = [spec.name for spec in self.schema.tensors]

    def initial_state(self) -> PackageState:
        """Zeros, or the state that the weights file brings along."""
        return self._start

    def prefill(self, tokens: Tensor, state: PackageState) -> tuple[Tensor, PackageState]:
        """See `Engine`. The output is the logits [vocabulary], fp32."""
        check_tokens(tokens, self.vocabulary)
        with self._computing():
            logits, after = self._model.forward(tokens.tolist(), [x.clone() for x in state])
            return logits.float().cpu().clone(), tuple(x.clone() for x in after)

    def decode(self, token: int, state: PackageState) -> tuple[Tensor, PackageState]:
        """See `Engine`."""
        return self.prefill(torch.tensor([token], device="cpu"), state)

    def logits(self, output: Tensor) -> Tensor:
        """See `Engine`."""
        return output.clone()

    def to_stored(self, state: PackageState, output: Tensor | None) -> State:
        """See `Engine`."""
        tensors = dict(zip(self._names, state, strict=True))
        return to_stored(self.schema, tensors, output, output_name=OUTPUT_LOGITS)

    def from_stored(self, stored: State) -> tuple[PackageState, Tensor | None]:
        """See `Engine`."""
        with torch.inference_mode():
            tensors, output = from_stored(self.schema, stored)
            found = zip(self._names, self._devices, strict=True)
            return tuple(tensors[name].to(device) for name, device in found), output


def load_package_engine(
    path: str | Path,
    strategy: str = "cpu fp32",
    *,
    rule: ChunkRule | None = None,
    strict: bool = False,
    threads: int | None = None,
    initial: str | Path | None = None,
    lossy: Lossy | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Load a `.pth` file of any version with the `rwkv` package.

    Args:
        path: The weights file.
        strategy: As the package's users write it, for example ``"cuda fp16i8 *10 -> cpu fp32"``.
        rule: How prompts are cut into chunks.
        strict: As for `load_engine`.
        threads: As for `load_engine`.
        initial: A state-tuned file to begin from, instead of what the weights say.
        lossy: As for `load_engine`.
        progress: As for `load_engine`.
        cache_dir: As for `load_engine`.

    Raises:
        WeightsError: no `.pth`, no RWKV, a version without a constant state, or tensors that are
            missing or do not fit together.
        DeviceError: the package is not installed, or refuses the strategy, or a device of it is not
            to be had.
    """
    path = Path(path)
    digest, identity = weights_digest(path, cache_dir=cache_dir, progress=progress)
    dimensions = _checked(path)
    known = Strategy.of(strategy, seven=dimensions.is_seven)
    with _stumbling(path):
        model = load_model(str(path.with_suffix("")), known.text, dimensions.version)
    _own(model)
    check_unchanged(path, identity)
    if initial is None and dimensions.tuned and dimensions.is_seven:
        initial = path  # the package passes over what the weights bring along
    tuned = (
        None
        if initial is None
        else read_tuned(
            Path(initial),
            dimensions.version,
            dimensions.layers,
            dimensions.heads,
            dimensions.head_size,
            cache_dir=cache_dir,
        )
    )
    rule = rule or ChunkRule()
    if strict and threads is None:
        threads = torch.get_num_threads()
    extra = (
        ("strategy", known.text),
        ("package", package_version()),
        ("rescale_layer", str(getattr(model, "RESCALE_LAYER", 0))),
        *package_switches(),
        *switches(known.device),
        *(machine(known.device, threads) if strict else ()),
    )
    fingerprint = Fingerprint(
        weights_digest=digest.hex(),
        architecture=f"rwkv{dimensions.version}",
        shapes=_shapes(dimensions),
        engine=ADAPTER_NAME,
        revision=ADAPTER_REVISION,
        device=known.device,
        dtype=known.dtype,
        chunk=rule.chunk,
        min_chunk=rule.min_chunk,
        initial_state="" if tuned is None else tuned.digest,
        extra=extra,
    )
    engine = PackageEngine(model, dimensions, fingerprint, rule, threads, tuned)
    _try(engine, path)
    return engine if lossy is None else LossyEngine(engine, lossy)


def _try(engine: PackageEngine, path: Path) -> None:
    """Compute once: the package asks for a tensor, and minds its shape, when it needs it."""
    for tokens in ([0], [0, 0]):  # one token and several take different ways
        with _stumbling(path):
            output, state = engine.prefill(
                torch.tensor(tokens, device="cpu"), engine.initial_state()
            )
        try:
            engine.schema.validate(engine.to_stored(state, output))
        except StateError as error:
            raise WeightsError(f"{path}: its tensors do not fit together: {error}") from error


@contextmanager
def _stumbling(path: Path) -> Iterator[None]:
    """What the package raises where it stumbles over the file at `path` is a `WeightsError`."""
    try:
        yield
    except InputError:
        raise
    except _STUMBLES as error:
        reason = str(error).split("\n", 1)[0]
        raise WeightsError(
            f"{path}: the rwkv package cannot compute with it: {type(error).__name__}: {reason}"
        ) from error


def _checked(path: Path) -> Dimensions:
    """What is in the file; read once with every check of ours, before the package reads it."""
    if path.suffix != ".pth":
        raise WeightsError(f"{path}: the rwkv package reads files whose names end in .pth")
    with open_tensors(path) as (shapes, load):
        dimensions = dimensions_of(path, shapes)
        if dimensions.tuned:
            check_shapes(path, shapes, dimensions.layers, dimensions.heads, dimensions.head_size)
        for name in shapes:  # the package would take whole numbers for values
            check_kind(path, name, load(name))
    return dimensions


def _own(model: Any) -> None:  # noqa: ANN401 - untyped
    """Copy weights that are views of the mapped file: overwriting it must not change a model."""
    tensors = getattr(model, "z", {})
    for name in list(tensors):  # one at a time, so that no more than one is there twice
        tensors[name] = tensors[name].clone()


def _shapes(dimensions: Dimensions) -> tuple[tuple[str, int], ...]:
    known = asdict(dimensions)
    return tuple((name, int(known[name])) for name in known if name != "version")
