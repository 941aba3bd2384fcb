"""Speed and size of the container codecs, beside blosc2, zipnn and a plain copy of the same bytes.

States have the shapes of the 0.1B and 7.2B models: normal values whose scale differs from row to
row, fp32 matrices and vectors in the given dtype. `--state-file` adds a real one: any blob of a
store. Every thing writes to memory that it has just obtained, as a request does. Peer: blosc2,
shuffle and zstandard at level 1, as many threads; it keeps no checksum. zipnn joins in where it is
installed (``pip install zipnn``). ``RWKV_STATESTORE_KERNEL=numpy`` measures without
compiled C.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import blosc2
import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.stats import Timing, alternate, timed
from statestore.codec import CodecName, Header, decode, encode, kernel
from statestore.codec.parallel import default_threads
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor, rwkv7

SETTLED_S = 60.0  # the codec's kernel is compiled, where it was not
SHAPES = {
    "0.1B, fp32": (12, 768, 12, DType.F32),
    "7.2B, bf16": (32, 4096, 64, DType.BF16),
}


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="default: by size")
@click.option(
    "--state-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="a blob of a store",
)
@click.option("--json", "as_json", is_flag=True)
def main(runs: int, threads: int | None, state_file: tuple[Path, ...], as_json: bool) -> None:
    """Measure encoding and decoding in turn."""
    used = kernel.settled(SETTLED_S).name
    states = {name: synthetic(*shape) for name, shape in SHAPES.items()}
    states |= {path.name[:16]: decode(path.read_bytes())[1] for path in state_file}
    results = {name: measure(state, runs, threads) for name, state in states.items()}
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        for name, rows in results.items():
            report(f"{name}, {states[name].nbytes / 1e6:.1f} MB, {used}", rows)


def synthetic(layers: int, width: int, heads: int, dtype: DType) -> State:
    """A state of these shapes with values like those of a trained model."""
    source = np.random.default_rng(0)
    schema = rwkv7(layers=layers, width=width, heads=heads, head_size=64, dtype=dtype)
    tensors: list[Tensor] = []
    for spec in schema.tensors:
        scale = np.exp(source.normal(size=(*spec.shape[:-1], 1)))
        values = (source.normal(size=spec.shape) * scale).astype("<f4")
        if spec.dtype is DType.BF16:
            values = (values.view("<u4") >> 16).astype("<u2")
        tensors.append(Tensor.of(spec.name, spec.dtype, spec.shape, values))
    return State(schema.id, tuple(tensors))


def measure(state: State, runs: int, threads: int | None) -> dict[str, dict[str, float]]:
    """Per operation: stored size as a share of the state's, seconds, bytes of state per second."""
    image = np.frombuffer(b"".join(tensor.data for tensor in state.parts), np.uint8)
    things: dict[str, Callable[[], float]] = {"copy": partial(timed, image.copy)}
    sizes = {"copy": image.nbytes}
    peers = threads or default_threads()
    for add in (ours_of("raw", state, threads), ours_of("lossless", state, threads),
                peer_of(image, peers), zipnn_of(image, peers)):  # fmt: skip
        stored, more = add
        things |= more
        sizes |= dict.fromkeys(more, stored)
    timings = alternate(runs, things)
    return {name: row(timing, sizes[name], state.nbytes) for name, timing in timings.items()}


def ours_of(
    codec: CodecName, state: State, threads: int | None
) -> tuple[int, dict[str, Callable[[], float]]]:
    """Stored size, and this codec's operations; each gives its seconds."""
    header = Header.of(state, key=StateKey(bytes(32), 1), fingerprint=bytes(32), namespace="bench")
    blob = b"".join(encode(header, state, codec))
    return len(blob), {
        f"{codec} encode": partial(timed, lambda: encode(header, state, codec, threads=threads)),
        f"{codec} decode": partial(timed, lambda: decode(blob, threads=threads)),
    }


def peer_of(image: NDArray[np.uint8], threads: int) -> tuple[int, dict[str, Callable[[], float]]]:
    """The same for blosc2 over the same bytes."""
    written = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        typesize=4,
        filters=[blosc2.Filter.SHUFFLE],
        nthreads=threads,
    )
    read = blosc2.DParams(nthreads=threads)
    packed = blosc2.compress2(image, cparams=written)
    return len(packed), {
        "blosc2 encode": partial(timed, lambda: blosc2.compress2(image, cparams=written)),
        "blosc2 decode": partial(timed, lambda: blosc2.decompress2(packed, dparams=read)),
    }


def zipnn_of(image: NDArray[np.uint8], threads: int) -> tuple[int, dict[str, Callable[[], float]]]:
    """The same for zipnn, if it is there."""
    try:
        from zipnn import ZipNN
    except ModuleNotFoundError:
        return 0, {}
    coder = ZipNN(input_format="byte", bytearray_dtype="float32", threads=threads)
    packed = coder.compress(bytearray(image))

    def compress() -> float:
        data = bytearray(image)  # it takes nothing else, and leaves other bytes there
        return timed(lambda: coder.compress(data))

    return len(packed), {
        "zipnn encode": compress,
        "zipnn decode": partial(timed, lambda: coder.decompress(packed)),
    }


def row(timing: Timing, stored: int, size: int) -> dict[str, float]:
    """One operation's figures."""
    rate = size / timing.median_s / 1e9
    return asdict(timing) | {"ratio": stored / size, "gigabytes_per_s": rate}


def report(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    table = Table("", "ratio", "GB/s", "median ms", "p90", "p99", title=title)
    for name, r in rows.items():
        times = [f"{r[key] * 1e3:.2f}" for key in ("median_s", "p90_s", "p99_s")]
        table.add_row(name, f"{r['ratio']:.3f}", f"{r['gigabytes_per_s']:.2f}", *times)
    Console().print(table)


if __name__ == "__main__":
    main()
