"""Streams side by side: tokens each second for 1 to 64 of them, and how long a stream waits for its
next token while others read long prompts.

The shipped demo model, unless another is named; two streams' texts differ, and every one is as long
as it may be. The gap is the time between two tokens of one stream. `alone` is one text decoded by
`Runtime.generate`, without a batch.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.stats import Timing
from rwkv_runtime import Runtime, Sampling, demo, load_engine
from rwkv_runtime.engines import DTypeName
from rwkv_runtime.engines.batch import WIDTHS
from rwkv_runtime.serving import Ended, Event, Failed, Piece, Request, Streams

DEMO = Path(demo.__file__).with_name("model.safetensors")
STREAMS = (1, 4, 16, 64)
PROMPT_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured with so many streams."""

    streams: int
    tokens_per_s: float
    gap: Timing
    long_prompts: bool = False


class Client:
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.ended = threading.Event()
        self.error: Exception | None = None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Piece):
            self.at.append(time.perf_counter())
        elif isinstance(event, Ended | Failed):
            self.error = event.error if isinstance(event, Failed) else None
            self.ended.set()


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEMO, help="Weights; the demo's.")
@click.option("--dtype", type=click.Choice(("fp32", "bf16")), default="fp32", show_default=True)
@click.option("--threads", type=int, help="Of the engine.")
@click.option("--width", type=click.Choice([str(w) for w in WIDTHS]), default="32")
@click.option("--tokens", type=int, default=200, show_default=True, help="Of each stream.")
@click.option("--temperature", type=float, default=0.0, help="0: greedy.", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: Path,
    dtype: DTypeName,
    threads: int | None,
    width: str,
    tokens: int,
    temperature: float,
    as_json: bool,
) -> None:
    """Measure throughput and gaps."""
    runtime = Runtime(load_engine(model, dtype=dtype, threads=threads), None)
    sampling = Sampling(temperature=temperature, seed=0)
    streams = Streams(runtime, width=int(width), readers=64, waiting=64)
    run(streams, runtime, 1, tokens, sampling)  # what the first calls cost
    alone = _alone(runtime, tokens, sampling)
    rows = [run(streams, runtime, count, tokens, sampling) for count in STREAMS]
    rows += [run(streams, runtime, n, tokens, sampling, long_prompts=True) for n in (1, 16)]
    streams.close()
    runtime.close()
    if as_json:
        click.echo(json.dumps({"alone": alone, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        report(alone, rows)


def run(
    streams: Streams,
    runtime: Runtime,
    count: int,
    tokens: int,
    sampling: Sampling,
    *,
    long_prompts: bool = False,
) -> Row:
    """So many at once, from the first token of the last until the last token of the first."""
    source = np.random.default_rng(count)
    vocabulary = runtime.engine.vocabulary
    reading = threading.Event()
    reader = threading.Thread(target=_read_on, args=(streams, vocabulary, reading))
    if long_prompts:
        reader.start()
    clients = [Client() for _ in range(count)]
    began = time.perf_counter()
    for client in clients:
        prompt = source.integers(1, vocabulary, PROMPT_TOKENS)
        streams.submit(Request([prompt], max_tokens=tokens, sampling=sampling), client)
    for client in clients:
        client.ended.wait()
        if client.error is not None:
            raise client.error
    seconds = time.perf_counter() - began
    if long_prompts:
        reading.set()
        reader.join()
    gaps = np.concatenate([np.diff(client.at) for client in clients])
    produced = sum(len(client.at) for client in clients)
    return Row(count, produced / seconds, Timing.of(gaps.tolist()), long_prompts)


def report(alone: float, rows: list[Row]) -> None:
    """Print the table."""
    one = rows[0].tokens_per_s
    click.echo(f"without a batch: {alone:.0f} tokens/s\n")
    click.echo(
        f"{'streams':<28}{'tokens/s':>10}{'ratio':>8}{'gap p50':>10}{'p90':>9}{'p99':>9}  ms"
    )
    for row in rows:
        name = f"{row.streams}{', long prompts beside' if row.long_prompts else ''}"
        p50, p90, p99 = row.gap.milliseconds()
        ratio = row.tokens_per_s / one
        click.echo(f"{name:<28}{row.tokens_per_s:>10.0f}{ratio:>8.1f}{p50:>10}{p90:>9}{p99:>9}")


def _alone(runtime: Runtime, tokens: int, sampling: Sampling) -> float:
    prompt = np.random.default_rng(0).integers(1, runtime.engine.vocabulary, PROMPT_TOKENS)
    began = time.perf_counter()
    count = sum(1 for _ in runtime.generate([prompt], max_tokens=tokens, sampling=sampling))
    return count / (time.perf_counter() - began)


def _read_on(streams: Streams, vocabulary: int, enough: threading.Event) -> None:
    """Read prompts without end, one after the other."""
    source = np.random.default_rng(1)

    def progress(_done: int, _whole: int) -> None:
        if enough.is_set():
            raise TimeoutError

    while not enough.is_set():
        try:
            streams.read([source.integers(1, vocabulary, 1 << 15)], None, progress)
        except TimeoutError:
            return


if __name__ == "__main__":
    main()
