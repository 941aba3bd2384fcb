"""``make bench``: every benchmark, one after the other, each in a process of its own.

``python -m benchmarks --full`` measures stores of a million entries too: some minutes more.
"""

from __future__ import annotations

import subprocess
import sys

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
    for title, command in BENCHMARKS.items():
        command = command + (FULL.get(command[0], []) if full else [])
        print(f"\n# {title}: python -m {' '.join(command)}\n", flush=True)
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
