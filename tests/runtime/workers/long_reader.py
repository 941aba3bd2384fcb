"""A process that reads one long prompt.

    python -m tests.runtime.workers.long_reader MODEL STORE TOKENS

Keeps the state at every boundary. Says how much memory that took beyond a short prompt's, the
tokens themselves aside, and what came out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkv_runtime import Prefill, Runtime, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.session.admission import Everything
from statestore import open_store
from tests.runtime.workers.footprint import memory, reset_peak

SHORT = 5_000
HELD = 24  # bytes for a token: as u32 and int64, and both once more while they are packed


def prompt(n_tokens: int) -> NDArray[np.uint32]:
    """Byte ids, always the same."""
    return np.random.default_rng(1).integers(0, 256, n_tokens, dtype=np.uint32)


def digests(engine: Engine, read: Prefill) -> list[str]:
    """Of the logits and of every tensor of the state."""
    stored = engine.to_stored(read.state, read.output)
    parts = [read.logits.numpy().tobytes(), *(bytes(tensor.data) for tensor in stored.parts)]
    return [hashlib.sha256(part).hexdigest() for part in parts]


def main(model: str, url: str, n_tokens: str) -> None:
    engine = load_engine(Path(model), threads=1)
    with open_store(url) as store, Runtime(engine, store, admission=Everything()) as runtime:
        runtime.prefill([prompt(SHORT)[::-1].copy()])
        runtime.flush()
        tokens = prompt(int(n_tokens))
        before = memory("VmRSS")
        reset_peak()
        read = runtime.prefill([tokens])
        grown = memory("VmHWM") - before - HELD * len(tokens)
        found = {"computed": read.computed_tokens, "grown": grown, "seconds": read.seconds}
        print(json.dumps(found | {"digests": digests(engine, read)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
