"""The server under load: seconds to the first token of a question, warm against cold, while others'
answers are being written; and tokens each second for 1 and 16 streams.

Cold is a question about a document that nobody has read, warm one about a document that was put
before. Server and clients share this machine. Without --url a server of two workers is started
over a new file store.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.stats import Timing
from rwkv_runtime.demo.corpus import unseen_document

STREAMS = (1, 16)
WRITTEN = 128  # tokens of each answer that counts for throughput


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured."""

    document_tokens: int
    load_streams: int
    cold: Timing
    warm: Timing
    tokens_per_s: dict[int, float]  # by streams
    failures: int


@click.command()
@click.option("--url", help="A server that runs already, with the demo model.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--facts", type=click.IntRange(min=1), default=40, help="Of a document; 50 tokens.")
@click.option("--load", type=click.IntRange(min=0), default=8, help="Streams beside the questions.")
@click.option("--runs", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=10.0, help="Per throughput.")
@click.option("--json", "as_json", is_flag=True)
def main(
    url: str | None,
    workers: int,
    facts: int,
    load: int,
    runs: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Ask a server under load."""
    with _server(url, workers) as address:
        result = asyncio.run(_measured(address, facts, load, runs, seconds))
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2))
        return
    click.echo(
        f"Documents of {result.document_tokens} tokens, beside {result.load_streams} streams; "
        f"{result.failures} failures\n\nfirst token     p50 ms     p90 ms     p99 ms"
    )
    for name, timing in (("cold", result.cold), ("warm", result.warm)):
        click.echo(f"{name:<12}" + "".join(f"{value:>11}" for value in timing.milliseconds()))
    one, many = (result.tokens_per_s[streams] for streams in STREAMS)
    click.echo(f"\n1 stream {one:.0f} tokens/s, {STREAMS[1]} streams {many:.0f}: {many / one:.1f}x")


@contextmanager
def _server(url: str | None, workers: int) -> Iterator[str]:
    """The address of a server; of one's own, for as long as the block."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "rwkv_runtime", "serve", "--quiet", "--port", "0"]
        command += ["--workers", str(workers), "--store", str(Path(directory, "states"))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            found = re.search(r"at (\S+) ", process.stdout.readline())
            if found is None:
                raise click.ClickException("the server did not start")
            yield found[1]
        finally:
            process.terminate()
            process.wait()


async def _measured(url: str, facts: int, load: int, runs: int, seconds: float) -> Result:
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        rates = {streams: await _throughput(client, streams, seconds) for streams in STREAMS}
        known = unseen_document(1, facts=facts)
        put = (await client.put("/v1/documents", json={"text": known.text})).json()
        cold: list[float] = []
        warm: list[float] = []
        failures = 0
        async with _others(client, load):
            for run in range(runs):
                new = unseen_document(1000 + time.time_ns() % 10**9, facts=facts)
                question = known.questions[run % len(known.questions)].text
                texts = [{"role": "system", "content": new.text}]
                for seconds_of, messages, documents in (
                    (cold, texts, []),
                    (warm, [], [put["id"]]),
                ):
                    asked = [*messages, {"role": "user", "content": question}]
                    taken = await _first_token(client, asked, documents)
                    failures += taken is None
                    seconds_of += [] if taken is None else [taken]
    return Result(put["tokens"], load, Timing.of(cold), Timing.of(warm), rates, failures)


async def _first_token(
    client: httpx.AsyncClient, messages: list[dict[str, str]], documents: list[str]
) -> float | None:
    """Seconds; ``None``: there was none."""
    began, first = time.perf_counter(), None
    body = {"messages": messages, "documents": documents, "temperature": 0, "max_tokens": 16}
    async for chunk in _chunks(client, "/v1/chat/completions", body):
        if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - began
    return first


async def _throughput(client: httpx.AsyncClient, streams: int, seconds: float) -> float:
    """Tokens each second that so many streams got together."""
    until = time.perf_counter() + seconds

    async def one(number: int) -> int:
        tokens = 0
        while time.perf_counter() < until:
            number += 1000
            tokens += await _written(client, number)
        return tokens

    await _written(client, 1)
    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(number) for number in range(streams))))
    return tokens / (time.perf_counter() - began)


async def _written(client: httpx.AsyncClient, seed: int) -> int:
    body = {
        "prompt": "In the town there lives",
        "max_tokens": WRITTEN,
        "seed": seed,
        "stream_options": {"include_usage": True},
    }
    chunks = [chunk async for chunk in _chunks(client, "/v1/completions", body)]
    return int(chunks[-1]["usage"]["completion_tokens"])


@asynccontextmanager
async def _others(client: httpx.AsyncClient, streams: int) -> AsyncIterator[None]:
    """So many answers are being written for as long as the block."""

    async def one(seed: int) -> None:
        while True:
            await _written(client, seed)

    async with AsyncExitStack() as stack:
        for number in range(streams):
            stack.callback(asyncio.ensure_future(one(number)).cancel)
        yield


async def _chunks(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> AsyncIterator[Any]:
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


if __name__ == "__main__":
    main()
