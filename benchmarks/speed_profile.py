"""Where the time of a prefill and of a decoded token goes, by kind of operation, at 0.1B shapes.

    python -m benchmarks.speed_profile --dtype bf16

The profiler sees the wall: take a machine that has nothing else to do, or read the shares as rough.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch.profiler import profile

from rwkv_runtime import load_engine
from rwkv_runtime.engines import DTypeName
from rwkv_runtime.testing import SHAPE_0B1, write_random_weights

KINDS = {
    "products with large matrices": ("mkldnn::_linear_pointwise", "aten::addmm"),
    "low-rank products": ("aten::mm",),
    "the recurrence's products": (
        "aten::bmm",
        "aten::baddbmm",
        "aten::baddbmm_",
        "aten::linalg_solve_triangular",
    ),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::stack", "aten::index_select"),
    "norms": ("aten::native_layer_norm", "aten::linalg_vector_norm"),
}
REST = "vectors element by element, and calls"


@click.command()
@click.option("--dtype", type=click.Choice(("fp32", "bf16")), default="bf16", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=1024, show_default=True)
def main(dtype: DTypeName, threads: int, tokens: int) -> None:
    """Print shares."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "random.safetensors")
        write_random_weights(weights, SHAPE_0B1, dtype=torch.bfloat16)
        engine = load_engine(weights, dtype=dtype, threads=threads, cache_dir=Path(scratch))
    prompt = torch.arange(tokens) * 7 % 60_000

    def read() -> None:
        state = engine.initial_state()
        for piece in torch.split(prompt, engine.rule.chunk):
            output, state = engine.prefill(piece, state)
        engine.logits(output)

    _, start = engine.prefill(prompt[:16], engine.initial_state())

    def write() -> None:
        state = start
        for token in range(32):
            output, state = engine.decode(token, state)
            engine.logits(output)

    for name, thing in {"prefill": read, "decode": write}.items():
        found = shares(thing)
        click.echo(f"{name}, {dtype}")
        for kind, share in found.most_common():
            click.echo(f"  {kind:<40}{share:>6.1%}")


def shares(thing: Callable[[], None]) -> Counter[str]:
    """Of the time, by kind; after a run that is not counted."""
    thing()
    with profile() as profiled:
        thing()
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        found[kind_of.get(event.key, REST)] += event.self_cpu_time_total
    whole = found.total()
    return Counter({kind: time / whole for kind, time in found.items()})


if __name__ == "__main__":
    main()
