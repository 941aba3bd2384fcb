"""``make bench``: every benchmark, one after the other, each in a process of its own. One that
fails keeps no other from being run.

``python -m benchmarks --full`` measures stores of a million entries too: some minutes more.
"""

from __future__ import annotations

import subprocess
import sys
import time

import click

BENCHMARKS = {
    "Reading and writing, beside the rwkv package and the machine's limit": [
        "benchmarks.speed",
        "--tokens",
        "512",
        "--runs",
        "2",
    ],
    "Time to first token of a question about a stored document": ["benchmarks.ttft"],
    "Find and fetch in every store": ["benchmarks.storage_fetch"],
    "Stores that grow": ["benchmarks.storage_scale"],
    "What admission and policy add to a request": ["benchmarks.admission"],
    "Policies, over traffic of several kinds": ["benchmarks.traffic"],
    "File backend": ["benchmarks.bench_file_backend"],
    "Codecs": ["benchmarks.bench_codec"],
    "Streams side by side": ["benchmarks.serving"],
    "The server under load": ["benchmarks.serve_load"],
    "Redis": ["benchmarks.redis_fetch"],
    "Redis, up to a million entries": ["benchmarks.redis_scale"],
}
FULL = {"benchmarks.storage_scale": ["--full"]}


@click.command()
@click.option("--full", is_flag=True, help="A million entries too.")
def main(full: bool) -> None:
    """Run all; the exit code is the first failure's."""
    _say(
        f"{len(BENCHMARKS)} benchmarks: a quarter of an hour on a quiet machine. Ctrl-C ends them."
    )
    codes: dict[str, int] = {}
    for number, (title, command) in enumerate(BENCHMARKS.items(), start=1):
        command = command + (FULL.get(command[0], []) if full else [])
        line = f"python -m {' '.join(command)}"
        print(f"\n# {number} of {len(BENCHMARKS)}. {title}: {line}\n", flush=True)
        began = time.monotonic()
        codes[line] = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        _say(f"({time.monotonic() - began:.0f} s)")
    failed = {line: code for line, code in codes.items() if code}
    for line, code in failed.items():
        _say(f"failed with exit code {code}: {line}")
    sys.exit(next(iter(failed.values()), 0))


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
