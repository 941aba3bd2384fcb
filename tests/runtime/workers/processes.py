"""Second processes that load a model once and prefill on command (`worker.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.checkout import ROOT

WORKER = Path(__file__).with_name("worker.py")


class Profile(NamedTuple):
    """How a worker computes."""

    dtype: str = "fp32"
    threads: int = 1
    chunk: int = 16
    min_chunk: int = 4
    stride: int = 2
    lossy: str = "none"
    kernel: str = "torch"


class Worker:
    """A real second process with a loaded model."""

    def __init__(self, model: Path, profile: Profile) -> None:
        command = [sys.executable, str(WORKER), str(model), *map(str, profile)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(
        self, segments: list[list[int]], store: str | None, tokens: int = 4, **more: object
    ) -> None:
        assert self.process.stdin is not None
        asked = {"segments": segments, "store": store, "tokens": tokens, **more}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def prefill(
        self, segments: list[list[int]], store: str | None, tokens: int = 4, **more: object
    ) -> dict[str, Any]:
        self.send(segments, store, tokens, **more)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Workers:
    """Workers by profile and number, started when first asked for."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._running: dict[tuple[Profile, int], Worker] = {}

    def __call__(self, profile: Profile, number: int = 0) -> Worker:
        key = (profile, number)
        if key not in self._running:
            self._running[key] = Worker(self._model, profile)
        return self._running[key]

    def close(self) -> None:
        for worker in self._running.values():
            worker.close()
