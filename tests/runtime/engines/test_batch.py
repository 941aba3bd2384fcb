"""Streams side by side: whoever is beside a stream, its bits are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_runtime import Runtime
from rwkv_runtime.engines import Rwkv7Engine, load_engine
from rwkv_runtime.engines.batch import Batch
from rwkv_runtime.errors import VocabularyError
from rwkv_runtime.generation import Stop
from rwkv_runtime.model import ModelState
from rwkv_runtime.names import DTypeName
from rwkv_runtime.sampling import Sampling
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore.errors import InputError

DTYPES: tuple[DTypeName, ...] = ("fp32", "bf16")
TEXTS = [[(31 * i * s + s) % 256 for i in range(10)] for s in range(1, 18)]


KINDS = [(d, wide, "torch") for wide in (False, True) for d in DTYPES]


@pytest.fixture(scope="module", params=[*KINDS, *((d, True, "native") for d in DTYPES)])
def engine(
    request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Rwkv7Engine:
    dtype, wide, kernel = request.param
    if wide:  # so that its matrices are packed
        model_path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
        write_random_weights(model_path, small_architecture(layers=2, width=512, heads=8))
    return load_engine(model_path, dtype=dtype, threads=2, kernel=kernel)


def read(engine: Rwkv7Engine, text: Sequence[int]) -> ModelState:
    state: ModelState = engine.prefill(torch.tensor(text), engine.initial_state())[1]
    return state


def alone(engine: Rwkv7Engine, text: Sequence[int], width: int) -> tuple[list[Tensor], ModelState]:
    batch = Batch(engine, width)
    place = batch.join(read(engine, text))
    logits = [batch.step({place: token})[place] for token in text]
    return logits, batch.leave(place)


def same(one: ModelState, other: ModelState) -> bool:
    parts = ("att_x_prev", "att_kv", "ffn_x_prev")
    pairs = zip(one, other, strict=True)
    return all(torch.equal(getattr(a, p), getattr(b, p)) for a, b in pairs for p in parts)


@pytest.mark.parametrize("width", [8, 16])
def test_neighbours_that_come_and_go_change_no_bit(engine: Rwkv7Engine, width: int) -> None:
    expected, end = alone(engine, TEXTS[0], width)
    batch = Batch(engine, width)
    others: dict[int, list[int]] = {}
    mine = -1
    for number, token in enumerate(TEXTS[0]):
        if number == 0:
            for text in TEXTS[1:width]:  # so that the stream gets the last place
                others[batch.join(read(engine, text))] = list(text)
            mine = batch.join(read(engine, TEXTS[0]))
            assert batch.room == 0
        elif number == 4:
            batch.leave(others.popitem()[0])
        elif number == 6:
            others[batch.join(read(engine, TEXTS[-1]))] = list(TEXTS[-1])
        found = batch.step({mine: token} | {place: text[number] for place, text in others.items()})
        assert torch.equal(found[mine], expected[number])
    assert same(batch.leave(mine), end)


def test_a_batch_says_what_decoding_alone_says(engine: Rwkv7Engine) -> None:
    """To rounding: the products have other shapes."""
    state = read(engine, TEXTS[0])
    found, _ = alone(engine, TEXTS[0], 8)
    for token, logits in zip(TEXTS[0], found, strict=True):
        output, state = engine.decode(token, state)
        expected = engine.logits(output)
        bound = 1e-4 if engine.fingerprint.dtype == "fp32" else 0.1
        assert float((logits - expected).abs().max()) < bound * float(expected.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("streams", [1, 2, 3, 4, 7, 16])
def test_with_the_kernel_a_batch_says_bit_for_bit_what_decoding_alone_says(
    model_path: Path, dtype: DTypeName, streams: int
) -> None:
    engine = load_engine(model_path, dtype=dtype, kernel="native", threads=2)
    batch = Batch(engine, 16)
    states = [read(engine, text) for text in TEXTS[:streams]]
    places = [batch.join(state) for state in states]
    for number in range(3):
        tokens = {place: text[number] for place, text in zip(places, TEXTS, strict=False)}
        found = batch.step(tokens)
        for stream, place in enumerate(places):
            output, states[stream] = engine.decode(tokens[place], states[stream])
            assert torch.equal(found[place], engine.logits(output))
    for place, state in zip(places, states, strict=True):
        assert same(batch.leave(place), state)


def test_a_state_that_joins_stays_as_it_is(engine: Rwkv7Engine) -> None:
    state, copy = read(engine, TEXTS[0]), read(engine, TEXTS[0])
    batch = Batch(engine, 8)
    place = batch.join(state)
    kept = batch.step({place: 7})[place]
    before = kept.clone()
    batch.step({place: 8})
    assert same(state, copy)
    assert torch.equal(kept, before)


def test_a_state_that_has_left_is_written_to_no_more(engine: Rwkv7Engine) -> None:
    """Neither by those who go on, nor by who takes its place."""
    batch = Batch(engine, 8)
    texts = dict(zip([batch.join(read(engine, text)) for text in TEXTS[:3]], TEXTS, strict=False))
    batch.step({place: text[0] for place, text in texts.items()})
    place = min(texts)
    left = batch.leave(place)
    output, _ = engine.decode(5, left)
    logits = engine.logits(output)
    assert batch.join(read(engine, TEXTS[4])) == place
    for number in range(1, 4):
        batch.step({place: text[number] for place, text in texts.items()})
    assert torch.equal(engine.logits(engine.decode(5, left)[0]), logits)


def test_a_batch_without_streams_takes_its_step(engine: Rwkv7Engine) -> None:
    """As the server does, to have paid for the first one."""
    batch = Batch(engine, 8)
    assert batch.step({}) == {}
    assert batch.advance({}).shape == (0, engine.vocabulary)


def test_what_cannot_be_stepped_is_refused_and_nothing_is_read(engine: Rwkv7Engine) -> None:
    batch = Batch(engine, 8)
    place = batch.join(read(engine, TEXTS[0]))
    for tokens in ({}, {place: 1, place + 1: 1}, {place + 1: 1}):
        with pytest.raises(InputError, match="one token for each"):
            batch.step(tokens)
    with pytest.raises(VocabularyError, match="256"):
        batch.step({place: 256})
    assert same(batch.leave(place), read(engine, TEXTS[0]))
    with pytest.raises(InputError, match="no stream"):
        batch.leave(place)
    for _ in range(8):
        batch.join(read(engine, TEXTS[0]))
    with pytest.raises(InputError, match="full"):
        batch.join(read(engine, TEXTS[0]))
    for width in (0, 2, 6, 12):
        with pytest.raises(InputError, match="width"):
            Batch(engine, width)


def test_a_seed_gives_one_text_at_every_place(engine: Rwkv7Engine) -> None:
    """Whoever sits beside it, with every setting of sampling at work."""
    sampling = Sampling(
        temperature=1.0,
        top_k=50,
        top_p=0.9,
        min_p=0.01,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        penalty_decay=0.996,
        seed=7,
    )
    runtime = Runtime(engine, None)
    prompt = runtime.prefill([list(b"It was a dark and stormy night. ")])
    texts = set()
    for place in (0, 7):
        batch = Batch(engine, 8)
        others = [batch.join(engine.initial_state()) for _ in range(place)]
        mine = batch.join(prompt.state)
        text = runtime.continuation(max_tokens=12, sampling=sampling, stop=Stop())
        logits, tokens = prompt.logits, list[int]()
        while text.ended is None:
            text.take(text.choose(logits))
            logits = batch.step(dict.fromkeys(others, place) | {mine: text.token})[mine]
            tokens.append(text.token)
        texts.add(tuple(tokens))
    assert len(texts) == 1
