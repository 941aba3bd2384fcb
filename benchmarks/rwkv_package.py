"""The `rwkv` package in a process of its own, as its users have it: TorchScript on, and it may
change torch's settings as it likes.

    python -m benchmarks.rwkv_package WEIGHTS_WITHOUT_PTH STRATEGY THREADS CLOCK

Each line on stdin, ``prefill N`` or ``decode N``, is answered on stdout with seconds: of reading N
tokens in one call, or of N tokens one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Package:
    """The process, from the side of who asks it. Ended by `close`."""

    def __init__(self, weights: Path, strategy: str, threads: int, clock: str) -> None:
        name = str(weights.with_suffix(""))
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rwkv_package"]
        self._process = subprocess.Popen(
            [*command, name, strategy, str(threads), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask("ready 0")

    def prefill(self, tokens: int) -> float:
        """Seconds."""
        return self._ask(f"prefill {tokens}")

    def decode(self, tokens: int) -> float:
        """Seconds of one token."""
        return self._ask(f"decode {tokens}") / tokens

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, line: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        for answer in self._process.stdout:
            if answer.startswith("took "):  # the package prints lines of its own
                return float(answer.split()[1])
        raise RuntimeError("the rwkv package ended; is it installed? pip install rwkv")


def main(weights: str, strategy: str, threads: int, clock: str) -> None:
    """Answer until stdin ends."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch
    from rwkv.model import RWKV

    model, now = RWKV(weights, strategy), CLOCKS[clock]
    torch.set_num_threads(threads)
    _, state = model.forward(list(range(1, 17)), None)
    for line in sys.stdin:
        what, count = line.split()
        tokens = [7 * place % 60_000 + 1 for place in range(int(count))]
        began = now()
        if what == "prefill":
            model.forward(tokens, None)
        elif what == "decode":
            for token in tokens:
                scores, state = model.forward([token], state)
                int(scores.argmax())
        print(f"took {now() - began}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
