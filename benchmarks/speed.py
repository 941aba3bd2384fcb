"""Reading and writing at the machine's limit: tokens a second beside the `rwkv` package and beside
what the hardware allows, all in one run.

    prefill    `--tokens` tokens in chunks, and the logits at their end
    decode     one stream, token by token, with logits and their largest
    batched    one step of full batches

All of them also by the kernel that is compiled, where there is a compiler.

The limit of a prefill is the time of its matrix products alone: the same products in the same
layout, and nothing else. The limit of a token decoded is the time to read every weight that it
needs once, at the speed at which this machine sums a large array. Random weights: speed does not
depend on them. On a machine that has other work take ``--threads 1 --clock cpu``.

    python -m benchmarks.speed --shapes 0.1B,0.4B --plots docs
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.rwkv_package import CLOCKS, Package
from benchmarks.speed_report import plot, report
from benchmarks.stats import Timing, alternate
from rwkv_runtime import load_engine
from rwkv_runtime.engines import DTypeName, Rwkv7Engine
from rwkv_runtime.engines.batch import WIDTHS, Batch
from rwkv_runtime.hugepages import use_huge_pages
from rwkv_runtime.projection import Projection
from rwkv_runtime.testing import SHAPE_0B1, write_random_weights
from statestore.errors import SettingsError

# The official sizes.
SHAPES = {
    "0.1B": SHAPE_0B1,
    "0.4B": replace(SHAPE_0B1, layers=24, width=1024, heads=16, ffn_width=4096),
    "1.5B": replace(
        SHAPE_0B1, layers=24, width=2048, heads=32, ffn_width=8192,
        decay_rank=96, rate_rank=96, value_rank=64, gate_rank=256,
    ),
}  # fmt: skip
DTYPES: tuple[DTypeName, ...] = ("fp32", "bf16")
DECODED = 8  # tokens of one measurement
READ_BYTES = 1 << 28  # to measure how fast memory is read


@dataclass(frozen=True, slots=True)
class Row:
    """One thing's time for so many tokens."""

    shape: str
    dtype: str
    name: str
    tokens: int
    timing: Timing

    @property
    def tokens_per_s(self) -> float:
        """By the median."""
        return self.tokens / self.timing.median_s


class Clock:
    """Seconds of a call, on the wall or of this process."""

    def __init__(self, name: str) -> None:
        self._now = CLOCKS[name]

    def __call__(self, thing: Callable[[], object]) -> float:
        """Of one call."""
        began = self._now()
        thing()
        return self._now() - began


@click.command()
@click.option("--shapes", default="0.1B", show_default=True, help=f"Of {', '.join(SHAPES)}.")
@click.option("--dtypes", default=",".join(DTYPES), show_default=True)
@click.option("--tokens", type=click.IntRange(min=64), default=2048, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of every engine; torch's number.")
@click.option("--clock", type=click.Choice(tuple(CLOCKS)), default="wall", show_default=True)
@click.option("--batches/--no-batches", default=True, help="Full batches too.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="SVGs go there.")
@click.option("--json", "as_json", is_flag=True)
def main(
    shapes: str,
    dtypes: str,
    tokens: int,
    runs: int,
    threads: int | None,
    clock: str,
    batches: bool,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Measure everything in turn."""
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes.split(","):
            weights = Path(scratch, f"{shape}.pth")
            write_random_weights(weights, SHAPES[shape], dtype=torch.bfloat16)
            for dtype in dtypes.split(","):
                engine = load_engine(weights, dtype=dtype, threads=threads)  # type: ignore[arg-type]
                assert isinstance(engine, Rwkv7Engine)
                native = with_kernel(weights, dtype, threads)
                with closing(Package(weights, f"cpu {dtype}", threads, clock)) as package:
                    timings = beside(engine, native, package, tokens, runs, Clock(clock))
                if batches:
                    timings |= batched(engine, native, runs, Clock(clock))
                rows += [Row(shape, dtype, *row) for row in named(timings, tokens)]
            weights.unlink()
    if plots is not None:
        plot(rows, plots)
    if as_json:
        found = [asdict(row) | {"tokens_per_s": row.tokens_per_s} for row in rows]
        click.echo(json.dumps({"threads": threads, "clock": clock, "rows": found}, indent=2))
    else:
        report(rows, f"{threads} threads, {clock} time")


def with_kernel(weights: Path, dtype: str, threads: int) -> Rwkv7Engine | None:
    """The same engine with the compiled kernel; says why where it is not to be had."""
    try:
        engine = load_engine(weights, dtype=dtype, threads=threads, kernel="native")  # type: ignore[arg-type]
    except SettingsError as error:
        click.echo(error, err=True)
        return None
    assert isinstance(engine, Rwkv7Engine)
    return engine


def named(timings: dict[str, Timing], tokens: int) -> Iterator[tuple[str, int, Timing]]:
    """Each with the number of tokens that it took."""
    for name, timing in timings.items():
        kind, _, width = name.partition(" ")
        count = int(width.split()[0]) if kind == "batch" else tokens if kind == "prefill" else 1
        yield name, count, timing


def beside(
    engine: Rwkv7Engine,
    native: Rwkv7Engine | None,
    package: Package,
    tokens: int,
    runs: int,
    clock: Clock,
) -> dict[str, Timing]:
    """Prefill and decode: this engine, with the kernel, the package, the limit, in turn."""
    chunk = engine.rule.chunk
    prompt = torch.arange(tokens) * 7 % 60_000 + 1
    products, last = prefill_products(engine, tokens)
    memory = torch.ones(READ_BYTES // 4)
    use_huge_pages([memory])
    share = weight_bytes(engine) / memory.nbytes

    def read(reader: Rwkv7Engine) -> None:
        state = reader.initial_state()
        for piece in torch.split(prompt, chunk):
            output, state = reader.prefill(piece, state)
        reader.logits(output)

    def multiply() -> None:
        with torch.inference_mode():
            for product, x in products:
                product(x)
            engine.logits(last)

    prefills = {"prefill": lambda: clock(lambda: read(engine))}
    if native is not None:
        prefills["prefill native"] = lambda: clock(lambda: read(native))
    timings = alternate(
        runs,
        prefills
        | {
            "prefill package": lambda: package.prefill(tokens),
            "prefill limit": lambda: clock(multiply),
        },
        warmup=1,
    )
    own = {"decode": decoding(engine, clock)}
    if native is not None:
        own["decode native"] = decoding(native, clock)
    return timings | alternate(
        4 * runs,
        own
        | {
            "decode package": lambda: package.decode(DECODED),
            "decode limit": lambda: clock(memory.sum) * share,
        },
    )


def decoding(engine: Rwkv7Engine, clock: Clock) -> Callable[[], float]:
    """Seconds of a token."""
    _, state = engine.prefill(torch.arange(1, 17), engine.initial_state())

    def step() -> None:
        nonlocal state
        for token in range(1, 1 + DECODED):
            output, state = engine.decode(token, state)
            int(engine.logits(output).argmax())

    return lambda: clock(step) / DECODED


def batched(
    engine: Rwkv7Engine, native: Rwkv7Engine | None, runs: int, clock: Clock
) -> dict[str, Timing]:
    """A step of full batches, by width."""
    things: dict[str, Callable[[], float]] = {}
    for width in WIDTHS:
        things[f"batch {width}"] = stepping(engine, width, clock)
        if native is not None:
            things[f"batch {width} native"] = stepping(native, width, clock)
    return alternate(2 * runs, things, warmup=1)


def stepping(engine: Rwkv7Engine, width: int, clock: Clock) -> Callable[[], float]:
    """Seconds of a step of a full batch."""
    batch, state = Batch(engine, width), engine.initial_state()
    tokens = {batch.join(state): place + 1 for place in range(width)}
    return lambda: clock(lambda: batch.advance(tokens).argmax(-1).tolist())


def prefill_products(
    engine: Rwkv7Engine, tokens: int
) -> tuple[list[tuple[Projection, Tensor]], Tensor]:
    """Every product with weights of a prefill, each with an input; and a vector for the logits."""
    weights, shape = engine.weights, engine.architecture
    dtype, found = weights.emb.dtype, []
    for length in map(len, torch.split(torch.arange(tokens), engine.rule.chunk)):
        inputs = {
            size: torch.randn(length, size).to(dtype)
            for size in {shape.width, shape.ffn_width, *ranks(engine)}
        }
        x = inputs[shape.width]
        for block in weights.blocks:
            att = block.att
            found += [(p, x) for p in (att.receptance, att.key, att.value, att.output)]
            found += [(block.ffn.key, x), (block.ffn.value, inputs[shape.ffn_width])]
            for pair in filter(None, (att.w, att.a, att.v, att.g)):
                found.append((_product(pair.down), x))
                found.append((_product(pair.up), inputs[pair.up.shape[0]]))
    return found, x[0]


def _product(matrix: Tensor) -> Projection:
    return lambda x: x @ matrix


def ranks(engine: Rwkv7Engine) -> set[int]:
    """Of the low-rank products."""
    shape = engine.architecture
    return {shape.decay_rank, shape.rate_rank, shape.value_rank, shape.gate_rank}


def weight_bytes(engine: Rwkv7Engine) -> int:
    """What a decoded token reads: all weights but the embedding."""
    shapes = engine.architecture.shapes()
    elements = sum(
        torch.Size(shape).numel() for name, shape in shapes.items() if name != "emb.weight"
    )
    return elements * engine.weights.emb.element_size()


if __name__ == "__main__":
    main()
