"""States of any program, kept and found without torch: what is yours is arrays, and a function that
reads a chunk of tokens.

    python examples/by_hand.py ./states

Run it twice: the second time only the question is read.
"""

import hashlib
import sys

import numpy as np
from numpy.typing import NDArray

from statestore import ChunkRule, Fingerprint, Identity, Role, State, StateStore, open_store, plan
from statestore.schema import Tensor, rwkv7

Arrays = list[NDArray[np.float32]]  # a state of this program

# 1. What decides a state's value besides the tokens. Two programs with equal fingerprints share
#    states; whatever changes a bit (weights, dtype, chunk sizes, your code) belongs here.
LAYERS, WIDTH = 2, 64
WEIGHTS = np.random.default_rng(0).standard_normal((256, WIDTH), dtype=np.float32)
rule = ChunkRule(chunk=256, min_chunk=32)
fingerprint = Fingerprint(
    weights_digest=hashlib.sha256(WEIGHTS.tobytes()).hexdigest(),
    architecture="rwkv7",
    shapes=(("layers", LAYERS), ("width", WIDTH)),
    engine="my-program",
    revision=1,  # raise it when your code gives other bits
    device="cpu",
    dtype="fp32",
    chunk=rule.chunk,
    min_chunk=rule.min_chunk,
)
identity = Identity(fingerprint.digest)

# 2. What a state consists of. There are `rwkv4`, `rwkv5` (5 to 6) and `rwkv7`, as the rwkv package
#    has them; with torch tensors, `rwkv_runtime.state` has `to_stored` and `from_stored`.
schema = rwkv7(layers=LAYERS, width=WIDTH, heads=1, head_size=64)


def to_stored(arrays: Arrays) -> State:
    pairs = zip(schema.tensors, arrays, strict=True)
    return State(schema.id, tuple(Tensor.of(t.name, t.dtype, t.shape, a) for t, a in pairs))


def from_stored(state: State) -> Arrays:
    schema.validate(state)
    return [np.frombuffer(t.data, np.float32).reshape(t.spec.shape).copy() for t in state.tensors]


# 3. Your model, in whose place this stands.
def read(tokens: list[int], state: Arrays) -> Arrays:
    return [0.9 * array + WEIGHTS[tokens].mean(axis=0) for array in state]


def prefill(store: StateStore, segments: list[list[int]]) -> tuple[Arrays, int]:
    """The state after all segments, and how many of their tokens came from the store."""
    tokens = [token for segment in segments for token in segment]
    prompt = plan(segments, fingerprint, rule)
    found = store.find(identity, prompt.keys_deepest_first)
    state, cached = [np.zeros(t.shape, np.float32) for t in schema.tensors], 0
    if found is not None:
        state, cached = from_stored(found.state), found.entry.key.n_tokens
    position = cached
    boundaries = {boundary.position: boundary for boundary in prompt.boundaries}
    for end in (end for end in prompt.ends if end > cached):  # exactly these chunks: the key
        state, position = read(tokens[position:end], state), end  # says how a state was computed
        boundary = boundaries.get(end)
        if boundary is not None and boundary.role is Role.SEGMENT:
            store.put(
                identity,
                boundary.key,
                to_stored(state),
                token_digest=boundary.token_digest,
                role=boundary.role,
                model="my-program",
            )
    return state, cached


document, question = list(b"Carla is at home in Brno. " * 45), list(b"Where is Carla at home?")
with open_store(sys.argv[1]) as store:
    _, cached = prefill(store, [document, question])
print(f"{cached} of {len(document) + len(question)} tokens came from the store")
