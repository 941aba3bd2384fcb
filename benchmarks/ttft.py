"""Time to the first token of a question about a stored document, at the shape of the 0.1B model.

Peer: the same question from the same state that is already in memory, which nothing can beat.
Documents of 1 k and 32 k tokens show that the time does not grow with the document. Each question
is new (a repeated one would cost no computing at all), 16 tokens long, and asked of random
weights: speed does not depend on them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.stats import Timing, alternate
from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import DTypeName, Engine
from rwkv_runtime.sampling import sample
from rwkv_runtime.testing import SHAPE_0B1, write_random_weights
from statestore import open_store

QUESTION_TOKENS = 16
DOCUMENTS = {"1 k": 1024, "32 k": 32768}


@click.command()
@click.option("--dtype", type=click.Choice(("fp32", "bf16")), default="bf16", show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--codec", type=click.Choice(("raw", "lossless")), default="lossless")
@click.option("--json", "as_json", is_flag=True)
def main(dtype: DTypeName, runs: int, codec: str, as_json: bool) -> None:
    """Measure warm time to first token."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "random.safetensors")
        write_random_weights(weights, SHAPE_0B1, dtype=torch.bfloat16)
        engine = load_engine(weights, dtype=dtype)
        timings = measure(engine, f"file://{scratch}/store?codec={codec}", runs)
    if as_json:
        click.echo(json.dumps({name: vars_of(t) for name, t in timings.items()}, indent=2))
    else:
        report(timings)


def measure(engine: Engine, url: str, runs: int) -> dict[str, Timing]:
    """Warm each document, then ask in turn."""
    source = np.random.default_rng(0)
    documents = {
        name: source.integers(1, engine.vocabulary, size).tolist()
        for name, size in DOCUMENTS.items()
    }
    with open_store(url) as store, Runtime(engine, store) as runtime:
        for document in documents.values():
            runtime.prefill([document, [1]])
        runtime.flush()
        things: dict[str, Callable[[], float]] = {
            f"stored, {name}": _stored(runtime, document, source)
            for name, document in documents.items()
        }
        things["in memory"] = _in_memory(engine, runtime.prefill([documents["1 k"]]).state, source)
        return alternate(runs, things)


def _stored(
    runtime: Runtime, document: list[int], source: np.random.Generator
) -> Callable[[], float]:
    def ask() -> float:
        question = source.integers(1, runtime.engine.vocabulary, QUESTION_TOKENS).tolist()
        began = time.perf_counter()
        next(iter(runtime.generate([document, question], max_tokens=1)))
        took = time.perf_counter() - began
        runtime.flush()
        return took

    return ask


def _in_memory(engine: Engine, state: object, source: np.random.Generator) -> Callable[[], float]:
    def ask() -> float:
        question = source.integers(1, engine.vocabulary, QUESTION_TOKENS)
        began = time.perf_counter()
        with torch.inference_mode():
            output, _ = engine.prefill(torch.from_numpy(question), state)
            sample(engine.logits(output))
        return time.perf_counter() - began

    return ask


def vars_of(timing: Timing) -> dict[str, float]:
    """A timing for JSON."""
    return {"median_s": timing.median_s, "p90_s": timing.p90_s, "p99_s": timing.p99_s}


def report(timings: dict[str, Timing]) -> None:
    """Print the table."""
    base = timings["in memory"].median_s
    click.echo(f"{'time to first token, ms':<24}{'median':>9}{'p90':>9}{'p99':>9}{'ratio':>8}")
    for name, timing in timings.items():
        cells = "".join(f"{cell:>9}" for cell in timing.milliseconds())
        click.echo(f"{name:<24}{cells}{timing.median_s / base:>8.2f}")
    growth = timings["stored, 32 k"].median_s / timings["stored, 1 k"].median_s
    click.echo(f"32 k against 1 k: {growth:.2f}")


if __name__ == "__main__":
    main()
