"""Your own generation loop, with the `rwkv` package behind it (versions 4 to 7): the store is asked
for the prompt's state, and the rest is yours.

    python examples/own_loop.py model.pth report.txt "Who wrote it?"

For the project's own RWKV-7: `load_engine(path, dtype="bf16")` in place of `load_package_engine`.
"""

import sys
from pathlib import Path

from rwkv_runtime import Runtime, load_package_engine
from statestore import open_store

weights, document, question = sys.argv[1:4]
engine = load_package_engine(weights, "cpu fp32")
with open_store("./states") as store, Runtime(engine, store) as runtime:
    text = runtime.tokenizer
    segments = [
        text.encode(Path(document).read_text("utf-8")),
        text.encode(f"\n\nQ: {question}\n\nA:"),
    ]
    prompt = runtime.prefill(segments)  # from the store, or computed and kept for the next time
print(f"{prompt.cached_tokens} tokens from the store, {prompt.computed_tokens} computed")

logits, state = prompt.logits, prompt.state
answer: list[int] = []
for _ in range(32):
    answer.append(int(logits.argmax()))  # or your sampler
    output, state = engine.decode(answer[-1], state)  # a new state: the old one stays as it was
    logits = engine.logits(output)
print(text.decode(answer))
