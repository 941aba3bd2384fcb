"""``make bench``: every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {
    "Time to first token of a question about a stored document": ["benchmarks.ttft"],
    "File backend": ["benchmarks.bench_file_backend"],
    "Codecs": ["benchmarks.bench_codec"],
    "Redis": ["benchmarks.redis_fetch"],
}


def main() -> int:
    """Run all; the exit code is the first failure's."""
    for title, command in BENCHMARKS.items():
        print(f"\n# {title}: python -m {' '.join(command)}\n", flush=True)
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
