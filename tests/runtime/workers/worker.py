"""A second process for tests: loads a model once, then prefills what it is told, line by line.

Reads a JSON object per line: {"segments": [[...]], "store": URL or null, "tokens": N, "all": bool};
by default the state at every boundary is kept, worth it or not. Answers
with digests of the logits' and every state tensor's bytes, N greedy tokens, and what was cached.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines.lossy import LossyEngine
from rwkv_runtime.session.admission import Admission, Everything
from statestore import ChunkRule, open_store
from statestore.schema import Tensor


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.data).hexdigest()


def main(
    model: str,
    dtype: str,
    threads: str,
    chunk: str,
    min_chunk: str,
    stride: str,
    lossy: str,
    kernel: str,
) -> None:
    rule = ChunkRule(int(chunk), int(min_chunk), int(stride))
    engine = load_engine(Path(model), dtype=dtype, threads=int(threads), rule=rule, kernel=kernel)
    if lossy != "none":
        engine = LossyEngine(engine, lossy)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with ExitStack() as stack:
            store = stack.enter_context(open_store(asked["store"])) if asked["store"] else None
            admission = Everything() if asked.get("all", True) else Admission()
            runtime = stack.enter_context(Runtime(engine, store, admission=admission))
            result = runtime.prefill(asked["segments"])
            new = list(runtime.continue_from(result, max_tokens=asked.get("tokens", 4)))
            stored = engine.to_stored(result.state, result.output)
            answer = {
                "cached": result.cached_tokens,
                "computed": result.computed_tokens,
                "logits": hashlib.sha256(result.logits.numpy().tobytes()).hexdigest(),
                "state": [digest(tensor) for tensor in stored.tensors],
                "output": digest(stored.output),
                "greedy": [generated.token for generated in new],
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
